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
