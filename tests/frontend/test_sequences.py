"""Sequences and optionals that only hand tensors on are replaced by the tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxpart import split, verify
from onnxpart.frontend.load import load
from onnxpart.frontend.sequences import OPERATORS, Piece
from onnxpart.ir.protos import all_nodes
from tests.networks.net import Net
from tests.networks.running import Array, run_onnx


def plain() -> onnx.ModelProto:
    """Two tensors put into a sequence, the second taken out again."""
    n = Net(("x", ("N", 4)))
    a, b = n.op("Relu", n.linear("x", 4, 6)), n.op("Tanh", n.linear("x", 4, 6))
    both = n.op("SequenceConstruct", a, b)
    return n.model(n.linear(n.op("SequenceAt", both, n.array("one", np.array(1))), 6, 2, name="out"), shape=("N", 2))


def joined() -> onnx.ModelProto:
    n = Net(("x", ("N", 4)))
    a, b = n.op("Relu", n.linear("x", 4, 6)), n.op("Tanh", n.linear("x", 4, 6))
    both = n.op("ConcatFromSequence", n.op("SequenceConstruct", a, b), axis=1)
    return n.model(n.linear(both, 12, 2, name="out"), shape=("N", 2))


def pieces() -> onnx.ModelProto:
    n = Net(("x", ("N", 4)))
    h = n.op("Relu", n.linear("x", 4, 6))
    halves = n.op("SplitToSequence", h, n.ints(4, 2), axis=1)
    first = n.op("SequenceAt", halves, n.array("zero", np.array(0)))
    return n.model(n.linear(first, 4, 2, name="out"), shape=("N", 2))


def reordered() -> onnx.ModelProto:
    """Three tensors: the last is inserted in the middle, the second is erased, what is left is joined and counted."""
    n = Net(("x", ("N", 4)))
    a, b, c = (n.op(kind, n.linear("x", 4, 6)) for kind in ("Relu", "Tanh", "Sigmoid"))
    three = n.op("SequenceInsert", n.op("SequenceConstruct", a, b), c, n.array("one", np.array(1)))
    two = n.op("SequenceErase", three, n.array("second", np.array(1)))
    both = n.op("ConcatFromSequence", two, axis=1)
    count = n.op("Cast", n.op("SequenceLength", three), to=TensorProto.FLOAT)
    inserted = n.op("SequenceAt", three, n.array("middle", np.array(1)))
    total = n.op("Add", n.linear(both, 12, 2), n.linear(inserted, 6, 2))
    return n.model(n.op("Mul", total, count, name="out"), shape=("N", 2))


def uneven() -> onnx.ModelProto:
    """Steps of four along an axis of six: the last piece is shorter."""
    n = Net(("x", ("N", 4)))
    halves = n.op("SplitToSequence", n.op("Relu", n.linear("x", 4, 6)), n.array("four", np.array(4)), axis=1)
    last = n.op("SequenceAt", halves, n.array("last", np.array(-1)))
    return n.model(n.linear(last, 2, 2, name="out"), shape=("N", 2))


def stacked() -> onnx.ModelProto:
    """All slices along the last axis, joined along a new first one."""
    n = Net(("x", ("N", 4)))
    slices = n.op("SplitToSequence", n.op("Relu", n.linear("x", 4, 6)), axis=1, keepdims=0)
    h = n.op("Transpose", n.op("ConcatFromSequence", slices, axis=0, new_axis=1), perm=[1, 0])
    return n.model(n.linear(h, 6, 2, name="out"), shape=("N", 2))


def counted() -> onnx.ModelProto:
    """A tensor and all slices of another, of which there are six: seven."""
    n = Net(("x", ("N", 6)))
    slices = n.op("SplitToSequence", n.op("Relu", n.linear("x", 6, 6)), axis=0)
    more = n.op("SequenceInsert", slices, "x", n.array("front", np.array(0)))
    count = n.op("Cast", n.op("SequenceLength", more), to=TensorProto.FLOAT)
    return n.model(n.op("Mul", n.linear("x", 6, 2), count, name="out"), shape=("N", 2))


@pytest.mark.parametrize("make", [plain, joined, pieces, reordered, uneven, stacked, counted])
def test_what_comes_out_is_what_came_out(make: object) -> None:
    assert callable(make)
    original = make()
    model = load(original).proto
    assert OPERATORS.isdisjoint(node.op_type for node in all_nodes(model.graph))
    width = original.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    feeds: dict[str, Array] = {"x": np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)}
    after, before = (np.asarray(run_onnx(m, feeds)[0], np.float32) for m in (model, original))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(("given", "there"), [("", False), ("x", True)])
def test_whether_an_optional_holds_something(given: str, there: bool) -> None:
    n = Net(("x", ("N", 4)))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    held = n.op("Optional", given) if given else n.op("Optional", type=kind)
    flag = n.op("Cast", n.op("OptionalHasElement", held), to=TensorProto.FLOAT)
    n.opset = 18
    model = load(n.model(n.op("Mul", n.linear("x", 4, 2), flag, name="out"), shape=("N", 2))).proto
    assert OPERATORS.isdisjoint(node.op_type for node in all_nodes(model.graph))
    out = np.asarray(run_onnx(model, {"x": np.ones((1, 4), np.float32)})[0])
    assert bool(out.any()) == there


@pytest.mark.parametrize("make", [plain, joined, pieces])
def test_they_are_gone_and_the_network_divides(make: object) -> None:
    assert callable(make)
    model = load(make())
    assert OPERATORS.isdisjoint(node.op_type for node in all_nodes(model.proto.graph))
    done = split(make(), 2)
    assert verify(done.analysis, done.plan).holds


def test_what_can_not_be_followed_stays() -> None:
    """Which tensor is taken out is known at run time only."""
    n = Net(("x", ("N", 4)))
    n.inputs.append(helper.make_tensor_value_info("which", TensorProto.INT64, []))
    a, b = n.op("Relu", n.linear("x", 4, 6)), n.op("Tanh", n.linear("x", 4, 6))
    chosen = n.op("SequenceAt", n.op("SequenceConstruct", a, b), "which")
    model = load(n.model(n.linear(chosen, 6, 2, name="out"), shape=("N", 2)))
    assert "SequenceAt" in {node.op_type for node in all_nodes(model.proto.graph)}


def test_a_piece_is_a_tensor_or_all_of_its_slices() -> None:
    assert Piece("a") == Piece("a", None, False) != Piece("a", 0)
