"""One walk over the graph: what reaches which tensor."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxpart import ModelError, analyse, load
from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import flatten, solve
from tests.networks.looping import recurrent
from tests.networks.net import Net


def classes_of(analysis: Analysis, name: str, axis: int) -> list[int]:
    """Classes along an axis of a tensor by all ties that must hold, what is shared tied to class 0."""
    labels = analysis.labels
    shared = [(f, f * 0) for f, _, _ in labels.pins]
    found = solve(labels.count, *flatten([*labels.ties, *shared]))
    return next((found[f].ravel().tolist() for f in analysis.fields(name) if f.shape[axis] > 1), [0])


def chain() -> tuple[Net, str]:
    n = Net(("x", ("N", 8)))
    return n, n.linear(n.op("Relu", n.linear("x", 8, 6, name="first"), name="act"), 6, 3, name="last")


def test_units_are_the_same_on_both_sides_of_a_layer() -> None:
    n, y = chain()
    analysis = analyse(load(n.model(y, shape=("N", 3))))
    units = classes_of(analysis, "act", 1)
    assert len(set(units)) == 6
    assert units == classes_of(analysis, "first.weight", 0) == classes_of(analysis, "last.weight", 1)
    assert units == classes_of(analysis, "first.bias", 0)
    assert 0 not in units


def test_inputs_and_outputs_are_in_every_part() -> None:
    n, y = chain()
    analysis = analyse(load(n.model(y, shape=("N", 3))))
    assert analysis.fields("x") == ()
    assert classes_of(analysis, "last.weight", 0) == [0] * 3
    assert classes_of(analysis, "first.weight", 1) == [0] * 8
    reasons = {reason for f, _, reason in analysis.labels.pins}
    assert "it is tied to the output 'last'" in reasons


def test_operators_are_found_by_what_they_read_and_make() -> None:
    n, y = chain()
    analysis = analyse(load(n.model(y, shape=("N", 3))))
    assert [op.op_type for op in analysis.ops] == ["Gemm", "Relu", "Gemm"]
    assert analysis.producer == {"first": 0, "act": 1, "last": 2}
    assert analysis.consumers["act"] == [2]
    assert [rule.kind for rule in analysis.rules if rule] == ["contraction", "elementwise", "contraction"]


def test_what_flows_into_a_barrier_is_in_every_part() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.conv("x", 2, 6, name="before")
    analysis = analyse(load(n.model(n.op("Det", h, name="det"), shape=("N", 6))))
    assert classes_of(analysis, "before.weight", 0) == [0] * 6
    assert analysis.barriers == {"Det 'det'": "the operator Det has no rule: it needs its whole matrix"}
    assert analysis.rules[-1] is None


def moved(turn: bool) -> ModelProto:
    """A weight that reaches its product by movements, or after arithmetic."""
    n = Net(("x", ("N", 8)))
    w = n.op("Transpose", n.random("w", 6, 8), name="turned")
    w = w if turn else n.op("Mul", w, n.random("g", 6), name="scaled")
    h = n.op("MatMul", "x", w, name="h")
    return n.model(n.linear(h, 6, 3, name="last"), shape=("N", 3))


@pytest.mark.parametrize("turn", [True, False])
def test_what_is_made_of_weights_alone_is_known(turn: bool) -> None:
    state = analyse(load(moved(turn))).state
    name = "turned" if turn else "scaled"
    assert name in state.weights_only
    assert name in state.depends_on_parameters
    assert "h" not in state.weights_only
    assert "h" in state.depends_on_parameters
    assert state.sources(name) == ({"w"} if turn else set())
    assert ("w" in state.weights) == turn


def test_how_many_a_part_finds_is_its_own_number() -> None:
    n = Net(("x", ("N", 8)))
    h = n.linear("x", 8, 6, name="h")
    found = n.op("NonZero", n.op("Greater", h, n.number(0)))
    sizes = {"hidden": h, "given": n.op("NonZero", "x"), "own": found}
    zeros = [n.op("ConstantOfShape", n.op("Shape", v, name=f"{k}_size"), name=f"{k}_zeros") for k, v in sizes.items()]
    ends = [n.op("ReduceSum", value, keepdims=0) for value in zeros]
    y = n.op("Add", n.linear(h, 6, 3), n.op("Sum", *ends))
    state = analyse(load(n.model(y, shape=("N", 3)))).state
    for name in ("own_size", "own_zeros"):
        assert name in state.depends_on_parameters
        assert name not in state.weights_only
    for name in ("hidden_size", "hidden_zeros", "given_size", "given_zeros"):
        assert name not in state.depends_on_parameters
        assert name in state.weights_only


@pytest.mark.parametrize("op_type", ["Loop", "Scan"])
def test_a_state_is_divided_as_the_body_makes_it(op_type: str) -> None:
    analysis = analyse(load(recurrent("elman", op_type)))
    assert not analysis.barriers
    (carried,) = analysis.state.carried.values()
    assert carried.depends_on_parameters
    assert all(len(axes) == 1 for axes in carried.axes)
    assert carried.axes


def test_shapes_that_contradict_each_other_are_refused() -> None:
    n, y = chain()
    model = n.model(y, shape=("N", 3))
    bias = next(t for t in model.graph.initializer if t.name == "first.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[:5], bias.name))
    with pytest.raises(ModelError, match="contradict each other"):
        analyse(load(model))


def test_a_piece_of_unknown_size_that_nothing_reads_makes_a_barrier() -> None:
    n = Net(("x", ("N", 4)))
    found = n.op("ReduceMax", n.linear("x", 4, 2, name="sizes"), axes=[0], keepdims=0)
    sizes = n.op("Add", n.ints(3, 3), n.op("Cast", found, to=onnx.TensorProto.INT64))
    _, piece = n.ops("Split", n.linear("x", 4, 6, name="first"), sizes, count=2, axis=1)
    analysis = analyse(load(n.model(piece, shape=("N", 3))))
    (reason,) = analysis.barriers.values()
    assert reason == "the shape of 'split.0' isn't known"


def test_a_constant_that_is_cut_at_run_time_stays_one() -> None:
    """An operator that has a rule makes nothing of parameters out of constants; of one without a rule nobody knows."""
    n = Net(("x", ("N", "L", 4)))
    size = n.op("Shape", "x", name="size", start=1, end=2)
    table, square = (
        n.op("Constant", value=onnx.numpy_helper.from_array(np.ones(shape, np.float32))) for shape in ((40, 4), (4, 4))
    )
    cut = n.op("Slice", table, n.ints(0), size, n.ints(0), name="cut")
    y = n.op("Add", n.op("Add", "x", cut), n.op("Det", square, name="det"))
    analysis = analyse(load(n.model(y, shape=("N", "L", 4))))
    assert analysis.barriers == {"Det 'det'": "the operator Det has no rule: it needs its whole matrix"}
    assert "cut" not in analysis.state.depends_on_parameters
    assert "det" in analysis.state.depends_on_parameters
