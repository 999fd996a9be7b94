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


def test_a_size_that_a_factor_makes_is_known() -> None:
    """A detector's: the shorter side becomes 32, or the longer one 48."""
    n = Net(("x", ("N", 2, "H", "W")))
    sides = n.op("Cast", n.op("Slice", n.op("Shape", "x"), n.ints(2), n.ints(4)), to=TensorProto.FLOAT)
    ends = [n.op(name, sides, keepdims=0) for name in ("ReduceMin", "ReduceMax")]
    factor = n.op(
        "Min", *(n.op("Mul", n.op("Reciprocal", e), n.number(v)) for e, v in zip(ends, (32, 48), strict=True))
    )
    sizes = n.op("Cast", n.op("Floor", n.op("Mul", sides, factor)), to=TensorProto.INT64)
    h = n.conv("x", 2, 6)
    kept = n.op("Slice", n.op("Shape", h), n.ints(0), n.ints(2))
    n.op("Resize", h, "", "", n.op("Concat", kept, sizes, axis=0), name="y")
    shapes = infer(onnxpart.load(n.model("y", shape=("N", 6, "A", "B"))))
    assert shapes.shape["y"] == (2, 6, 32, 32)
    assert not shapes.dynamic_dims("y")[1]


def test_all_results_of_an_operator_are_known() -> None:
    n = Net(("x", (2, 4)))
    size = n.op("Concat", n.op("Shape", "x"), n.ints(7), axis=0)
    best, place = n.ops("TopK", size, n.ints(2), count=2)
    for name, want in ((best, [7, 4]), (place, [2, 1])):
        folded = _folded(n, name)
        assert folded is not None
        assert folded.tolist() == want


@pytest.mark.parametrize("op_type", ["OneHot", "Pad"])
def test_much_of_little_is_not_computed(op_type: str) -> None:
    n = Net(("x", (2, 4)))
    many = n.op("Mul", n.op("Shape", "x"), n.ints(10**7))
    if op_type == "OneHot":
        depth = n.op("ReduceProd", many, keepdims=0)
        value = n.op("OneHot", n.op("Shape", "x"), depth, n.ints(0, 1))
    else:
        value = n.op("Pad", n.op("Shape", "x"), many)
    assert _folded(n, value) is None


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
