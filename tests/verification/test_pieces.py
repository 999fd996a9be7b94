"""Graphs in pieces compute what they compute in one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxpart.verification import runtime
from onnxpart.verification.pieces import pieces
from onnxpart.verification.runtime import Session, assemble
from tests.networks.net import Array, Net

X = np.asarray([[1.0, -2.0, 3.0, 0.5]], np.float32)
WEIGHT = np.asarray([3.0, 4.0], np.float32)


def tangled() -> ModelProto:
    """Values that are read near and far, and in a branch; outputs that a node, the input and a weight are."""
    n = Net(("x", ("N", 4)))
    w = n.array("w", WEIGHT)
    left, right = n.ops("Split", "x", count=2, axis=1)
    near = n.op("Add", left, w)
    some = n.op("Less", n.op("ReduceMax", near, keepdims=0), n.op("ReduceMax", right, keepdims=0))
    yes, no = (
        helper.make_graph([helper.make_node(kind, [left, w], [f"{kind}_v"])], kind, [], [value(f"{kind}_v", "N", 2)])
        for kind in ("Mul", "Sub")
    )
    chosen = n.op("If", some, then_branch=yes, else_branch=no)
    model = n.model(n.op("Add", chosen, n.op("Relu", right)), near)
    model.graph.output.extend([value("x", "N", 4), value(w, 2)])
    return model


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("size", range(1, 8))
def test_each_size_gives_the_same(size: int, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if beside:
        monkeypatch.setattr(runtime, "SMALL_MODEL", 1)
        monkeypatch.setattr(runtime.files, "SMALL_TENSOR", 1)
    model = tangled()
    weights: dict[str, Array] = {"w": 2 * WEIGHT}
    expected = Session(*assemble(model, weights)).run({"x": X})
    monkeypatch.setattr(runtime, "MANY_NODES", size)
    cut = Session(*assemble(model, weights))
    assert len(vars(cut)["_sessions"]) == -(-len(model.graph.node) // size)
    found = cut.run({"x": X, "nothing": X})
    assert list(found) == list(expected) == [output.name for output in model.graph.output]
    for name, array in expected.items():
        assert found[name].tolist() == array.tolist()


def test_a_sequence_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    n = Net(("x", ("N", 4)))
    model = n.model(n.op("ConcatFromSequence", n.op("SplitToSequence", "x", axis=1), axis=0))
    monkeypatch.setattr(runtime, "MANY_NODES", 1)
    session = Session(model)
    (whole,) = vars(session)["_sessions"]
    assert whole.get_session_options().graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert [array.tolist() for array in session.run({"x": X}).values()] == [X.T.tolist()]


def test_what_nothing_reads_is_no_piece() -> None:
    n = Net(("x", ("N", 4)))
    n.op("Neg", "x")
    model = n.model(n.op("Relu", "x"))
    assert [len(piece.graph.node) for piece in pieces(model, 1, {v.name: v for v in model.graph.input})] == [1]
