"""Depth of networks as people write them, from both of torch's exporters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxpart import load, shallow
from onnxpart.analysis.stacks import stacks
from onnxpart.merging.deepen import deepened, growth
from tests.networks.deep import NETWORKS
from tests.networks.exported import convert
from tests.networks.running import run_onnx


@pytest.mark.parametrize(("name", "exporter"), [*((name, "torchscript") for name in NETWORKS), ("vit", "dynamo")])
def test_blocks_are_found_left_out_and_stacked_with_the_function_kept(name: str, exporter: str) -> None:
    torch.manual_seed(0)
    build, example, counts = NETWORKS[name]
    network, x = build().eval(), example()
    for parameter in network.parameters():  # torch's encoder starts with layers that are copies of one
        torch.nn.init.normal_(parameter, std=0.3)
    model = load(convert(network, (x,), exporter, 18, dynamic=exporter == "torchscript"))
    assert [len(stack.blocks) for stack in stacks(model)] == counts
    made = shallow(model, 1)
    deep = deepened(model, load(made), growth(model, made, "zero")).model()
    assert load(deep).digest == model.digest
    feed = {model.inputs[0]: x.numpy()}
    (one,), (other,) = (run_onnx(each, feed) for each in (made, deep))
    assert np.abs(one - other).max() <= 1e-5
