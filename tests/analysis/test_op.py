"""What a rule sees of its operator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxpart.analysis.op import Carried, Op, qualified
from onnxpart.ir.flatten import ENTER, LEAVE
from tests.networks.alone import Alone

AXES = st.frozensets(st.integers(0, 3))


@pytest.mark.parametrize(
    ("domain", "name"), [("", "Pad"), ("ai.onnx", "Pad"), ("ai.onnx.ml", "ai.onnx.ml.Pad"), ("own", "own.Pad")]
)
def test_an_operator_of_another_domain_has_it_in_its_name(domain: str, name: str) -> None:
    assert qualified(domain, "Pad") == name
    op = Op(Alone("Relu", [(2,)]).op.state, 0, helper.make_node("Pad", ["x"], ["y"], domain=domain))
    assert op.op_type == name
    assert op.title == "Pad '-> y'"


@pytest.mark.parametrize("domain", [ENTER, LEAVE])
def test_a_marker_is_of_its_operators_domain(domain: str) -> None:
    op = Op(Alone("Relu", [(2,)]).op.state, 0, helper.make_node("Loop", ["x"], ["y"], domain=domain))
    assert (op.op_type, op.schema_domain, op.domain, op.opset) == ("Loop", "", domain, 17)


def test_inputs_that_are_left_out() -> None:
    alone = Alone("Relu", [(2, 3)])
    op = Op(alone.op.state, 0, helper.make_node("Clip", ["x0", "", "x0"], ["y"], name="clip"))
    assert [op.has(i) for i in range(4)] == [True, False, True, False]
    assert op.fields(1) == op.fields(3) == ()
    assert op.value(1) is None
    assert op.reads == ["x0", "x0"]
    assert op.title == "Clip 'clip'"


def test_integers_are_an_attribute_or_an_input() -> None:
    by_attribute = Alone("Squeeze", [(2, 1, 1)], opset=11, axes=[1, -1])
    by_input = Alone("Squeeze", [(2, 1, 1)], [np.asarray([1, -1], np.int64)])
    assert by_attribute.op.ints(1, "axes") == by_input.op.ints(1, "axes") == [1, -1]
    assert Alone("Squeeze", [(2, 1, 1)]).op.ints(1, "axes") is None
    assert Alone("Softmax", [(2, 3)], axis=-1).op.ints(1, "axis") == [-1]


@pytest.mark.parametrize(("axis", "found"), [(-1, 2), (-3, 0), (1, 1)])
def test_axes_are_counted_from_the_front(axis: int, found: int) -> None:
    assert Alone("Softmax", [(2, 3, 4)], axis=axis).op.axis(1) == found
    assert Alone("Softmax", [(2, 3, 4)]).op.axis(axis) == found
    assert Alone("Softmax", [(2, 3, 4)], axis=-1).op.axis(0, rank=7) == 6


def test_weights_are_told_from_constants() -> None:
    op = Alone("Add", [(2, 3)], [(3,)]).op
    assert [op.weights_only(i) for i in (0, 1)] == [False, True]
    assert (op.trainable(1), op.constant(1)) == (True, False)
    op.state.depends_on_parameters.clear()
    assert (op.trainable(1), op.constant(1)) == (False, True)


@given(st.lists(st.tuples(st.lists(AXES, max_size=3), st.booleans()), max_size=4))
def test_what_a_state_carries_only_grows_and_axes_stay_apart(more: list[tuple[list[frozenset[int]], bool]]) -> None:
    carried = Carried()
    for axes, depends in more:
        joined = carried.joined(axes, depends)
        assert joined.joined(axes, depends) == joined
        assert all(any(old <= new for new in joined.axes) for old in [*carried.axes, *filter(None, axes)])
        assert sum(map(len, joined.axes)) == len(frozenset().union(*joined.axes))
        assert joined.depends_on_parameters == (carried.depends_on_parameters or depends)
        carried = joined


def test_a_trial_leaves_the_state_as_it_is() -> None:
    alone = Alone("Relu", [(2, 3)])
    state = alone.op.state
    f = alone.label(0, 1)
    trial = state.trial()
    trial.fields["y"] = (trial.labels.fresh((3,)),)
    trial.labels.tie(f, f[:, :1])
    trial.read.add("y")
    assert "y" not in state.fields
    assert state.labels.ties == []
    assert "y" not in state.read
    assert trial.fields["x0"] == (f,)
    assert state.labels.count == 4
    assert int(trial.fields["y"][0][0]) == 4
