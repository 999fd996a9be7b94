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
FORMS = {
    "below": ("Less", SHARE, False),
    "not above": ("LessOrEqual", SHARE, False),
    "above": ("Greater", 1 - SHARE, False),
    "not below": ("GreaterOrEqual", 1 - SHARE, False),
    "a number above": ("Greater", SHARE, True),
    "a number below": ("Less", 1 - SHARE, True),
    "rounded down": ("Add", SHARE, False),
    "a number and rounded down": ("Add", SHARE, True),
}
"""How a mask is made: by which operator, with which number, and whether that stands first."""


def model(form: str = "below", *, bound: float | None = None, size: int = 1, **bounds: float) -> onnx.ModelProto:
    kind, number, first = FORMS[form]
    number = number if bound is None else bound
    share = helper.make_tensor("share", TensorProto.FLOAT, [size] if size > 1 else [], [number] * size)
    rounds = kind == "Add"
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["drawn"], **bounds),
        helper.make_node("Constant", [], ["share"], value=share),
        helper.make_node(kind, ["share", "drawn"] if first else ["drawn", "share"], ["test"]),
        helper.make_node("Floor", ["test"], ["mask"]) if rounds
        else helper.make_node("Cast", ["test"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "mask"], ["y"]),
    ]  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_its_mean_in_evaluation_and_drawn_in_training(form: str) -> None:
    proto = model(form)
    as_dropouts(proto.graph)
    module, x = import_onnx(proto), torch.ones(4000, 1)
    assert module.eval()(x).unique().tolist() == [SHARE]
    drawn = np.asarray(module.train()(x))
    assert sorted(set(drawn.ravel().tolist())) == [0.0, pytest.approx(1.0)]
    assert float(drawn.mean()) == pytest.approx(SHARE, abs=0.04)
    assert "RandomUniformLike" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("form", ["below", "rounded down"])
@pytest.mark.parametrize("other", [{"high": 2.0}, {"low": 0.5}, {"size": 2}, {"bound": 1.5}, {"bound": -0.5}], ids=str)
def test_other_masks_stay(form: str, other: dict[str, Any]) -> None:
    proto = model(form, **other)
    before = [node.op_type for node in proto.graph.node]
    as_dropouts(proto.graph)
    assert [node.op_type for node in proto.graph.node] == before
