"""What is known about a model before K is chosen."""

from __future__ import annotations

from models.golden import GOLDEN
from onnxpart import analyse, load
from tests.networks.net import Net


def test_what_operators_read_and_make() -> None:
    n = Net(("x", ("N", 4)))
    h = n.op("Relu", n.linear("x", 4, 6, name="first"), name="hidden")
    done = analyse(load(n.model(n.linear(h, 6, 2, name="last"), shape=("N", 2))))
    assert [op.op_type for op in done.ops] == ["Gemm", "Relu", "Gemm"]
    assert done.producer["hidden"] == 1
    assert done.consumers["hidden"] == [2]
    assert done.inputs(2) == ["hidden", "last.weight", "last.bias"]
    assert done.activations == [["x"], ["first"], ["hidden"]]
    assert done.parameters[2] == ["last.weight", "last.bias"]
    assert done.used_outputs == [["first"], ["hidden"], ["last"]]


def test_fields_are_listed_once() -> None:
    done = analyse(load(GOLDEN["residual"]()))
    found = done.all_fields()
    assert len({id(f) for f in found}) == len(found)
    assert any(f is g for f in found for g in done.fields("stem"))
    assert done.fields("nothing") == ()


def test_barriers_are_named_by_operator() -> None:
    n = Net(("x", ("N", 4)))
    h = n.op("Odd", n.linear("x", 4, 6), domain="nowhere", name="odd")
    dims = {n.op("Add", "x", n.random("bias", 4)): ("N", 4), h: ("N", 6)}
    done = analyse(load(n.model(*dims, shape=dims)))
    (reason,) = done.barriers.values()
    assert "nowhere" in reason
    assert "odd" in next(iter(done.barriers))


def test_labels_are_those_of_the_walk() -> None:
    done = analyse(load(GOLDEN["chain"]()))
    assert done.labels is done.state.labels
    assert done.labels.count > 1
