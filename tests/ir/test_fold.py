"""Shape arithmetic: what is folded is what ONNX Runtime computes, and only what depends on no data is folded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxpart
from onnxpart.ir.infer import infer
from tests.networks.net import Net
from tests.networks.running import run_onnx


def _folded(n: Net, name: str) -> np.ndarray | None:
    """What is known of a value of a network with a layer and an output of unknown shape."""
    out = n.op("Add", n.linear("x", 4, 3), n.op("Cast", n.op("ReduceSum", name, keepdims=0), to=TensorProto.FLOAT))
    return infer(onnxpart.load(n.model(out, shape=("N", 3)))).value(name)


@pytest.mark.parametrize(
    ("opset", "name"), [(opset, op) for opset in (13, 18, 20) for op in ("ReduceSum", "ReduceMax")]
)
def test_an_empty_list_of_axes_means_all(opset: int, name: str) -> None:
    n = Net(("x", (2, 4)), opset=opset)
    axes = [n.array("axes", np.zeros(0, np.int64))] if name == "ReduceSum" or opset >= 18 else []
    total = n.op(name, n.op("Shape", n.op("Concat", "x", "x", axis=0)), *axes, keepdims=0)
    folded = _folded(n, total)
    assert folded is not None
    assert folded.shape == ()
    assert folded == (8 if name == "ReduceSum" else 4)


def test_what_depends_on_data_is_not_folded() -> None:
    n = Net(("x", (2, 4)))
    assert _folded(n, n.op("Cast", "x", to=TensorProto.INT64)) is None


def test_an_operator_that_fails_leaves_its_value_unknown() -> None:
    n = Net(("x", (2, 4)))
    size = n.op("Shape", "x")
    assert _folded(n, n.op("Gather", size, n.ints(7))) is None


@given(st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_arithmetic_is_what_onnx_runtime_computes(a: list[int], b: list[int]) -> None:
    names = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")
    nodes = [helper.make_node(op, ["a", "b"], [op]) for op in names]
    values = [numpy_helper.from_array(np.asarray(v, np.int64), n) for n, v in (("a", a), ("b", b), ("w", [1]))]
    nodes.append(helper.make_node("Mul", ["x", "weight"], ["y"]))
    values[2] = numpy_helper.from_array(np.ones(3, np.float32), "weight")
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [3]) for name in names]
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [3]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])], outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shapes = infer(onnxpart.load(model))
    computed = run_onnx(model, {"x": np.ones(3, np.float32)})
    for name, want in zip(names, computed, strict=False):
        np.testing.assert_array_equal(shapes.folded[name], want)
