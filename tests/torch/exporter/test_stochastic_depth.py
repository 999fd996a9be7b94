"""Random masks of training as dropouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnxpart.torch import import_onnx
from onnxpart.torch.exporter.stochastic_depth import as_dropouts

SHARE = 0.75


def model(*, compare: str = "Less", size: int = 1, **bounds: float) -> onnx.ModelProto:
    share = helper.make_tensor("share", TensorProto.FLOAT, [size] if size > 1 else [], [SHARE] * size)
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["drawn"], **bounds),
        helper.make_node("Constant", [], ["share"], value=share),
        helper.make_node(compare, ["drawn", "share"], ["less"]),
        helper.make_node("Cast", ["less"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "mask"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_mask_is_its_mean_in_evaluation_and_drawn_in_training() -> None:
    proto = model()
    as_dropouts(proto.graph)
    module, x = import_onnx(proto), torch.ones(4000, 1)
    assert module.eval()(x).unique().tolist() == [SHARE]
    drawn = np.asarray(module.train()(x))
    assert sorted(set(drawn.ravel().tolist())) == [0.0, pytest.approx(1.0)]
    assert float(drawn.mean()) == pytest.approx(SHARE, abs=0.04)
    assert "RandomUniformLike" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("other", [{"compare": "Greater"}, {"high": 2.0}, {"low": 0.5}, {"size": 2}], ids=str)
def test_other_masks_stay(other: dict[str, Any]) -> None:
    proto = model(**other)
    before = [node.op_type for node in proto.graph.node]
    as_dropouts(proto.graph)
    assert [node.op_type for node in proto.graph.node] == before
