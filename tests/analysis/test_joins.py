"""How labels of several operands meet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxpart.analysis.joins import follow, join, meet, mix
from onnxpart.analysis.labels import Field, Fields, varying
from tests.networks.alone import Alone

AXES = st.sets(st.integers(0, 2), min_size=1)


def wide() -> Alone:
    return Alone("Add", [(2, 3, 4), (2, 3, 4)])


@given(AXES, AXES)
def test_a_joined_field_says_of_each_place_what_the_operands_say(first: set[int], second: set[int]) -> None:
    """Units are tied along the same axes, or where one operand varies along more; else that is left to a plan."""
    alone = wide()
    f, g = alone.label(0, *first), alone.label(1, *second)
    result = join(alone.op, [0, 1], 3)
    common = first & second
    if first == second:
        assert len(result) == 1
        assert alone.same(f, g)
    elif common in (first, second):
        assert alone.same(f, g)
        assert alone.soft() == []
    else:
        assert alone.soft() == ["the product of two divided axes"]
        assert [varying(e) for e in result] == [frozenset(first), frozenset(second)]


def test_fields_of_shorter_operands_are_aligned() -> None:
    alone = Alone("Add", [(2, 3, 4), (4,)])
    f, g = alone.label(0, 2), alone.label(1, 0)
    assert join(alone.op, [0, 1], 3) == (f,)
    assert alone.same(f, g)


def test_parameters_follow_activations_whatever_their_order() -> None:
    alone = Alone("Add", [(2, 4)], [(4,)])
    f = alone.label(0, 1)
    (parameter,) = alone.op.fields(1)
    assert join(alone.op, [1, 0], 2) == (f,)
    assert alone.same(f, parameter)


def test_two_parameters_have_rows_and_columns() -> None:
    alone = Alone("Add", [], [(3, 4), (3, 4)])
    result = join(alone.op, [0, 1], 2)
    assert [f.shape for f in result] == [(3, 1), (1, 4)]
    for e, f in zip(result, alone.op.fields(1), strict=True):
        assert alone.same(e, f)
    assert alone.soft() == []


def follows(parameter: Field, *fields: Field, computed: bool = False) -> tuple[Alone, Fields]:
    alone = wide() if computed else Alone("Add", [(2, 3, 4)], [(2, 3, 4)])
    alone.op.labels.count = 100
    follow(alone.op, fields, 1, (parameter,))
    return alone, fields


def test_a_parameter_of_one_axis_for_units_of_two_is_a_soft_tie() -> None:
    labels = wide().op.labels
    alone, (f,) = follows(labels.fresh((1, 1, 4)), labels.fresh((1, 3, 4)))
    (choice,) = alone.op.labels.choices
    assert choice.reason == "the parameter is the same for several units"
    assert choice.alternatives[0][0][0] is f
    assert choice.drop is not None
    assert choice.drop.shape == (1, 1, 4)


def test_units_that_read_one_parameter_are_one_where_it_is_in_every_part() -> None:
    labels = wide().op.labels
    alone, (f,) = follows(labels.fresh((1, 1, 4)), labels.fresh((1, 3, 4)))
    (choice,) = alone.op.labels.choices
    ((wider, narrower),) = choice.otherwise
    assert wider is f
    assert narrower.tolist() == f[:, :, :1].tolist()


def test_a_parameter_along_another_axis_is_shared() -> None:
    labels = wide().op.labels
    parameter = labels.fresh((1, 3, 1))
    alone, _ = follows(parameter, labels.fresh((1, 1, 4)))
    assert alone.units(parameter) == [-1] * 3


def test_a_parameter_made_of_activations_keeps_its_units_only_where_all_have_them() -> None:
    labels = wide().op.labels
    parameter = labels.fresh((1, 1, 4))
    alone, (f,) = follows(parameter, labels.fresh((1, 1, 4)), computed=True)
    assert alone.same(f, parameter)
    alone, _ = follows(parameter, labels.fresh((1, 3, 4)), computed=True)
    assert alone.units(parameter) == [-1] * 4
    assert not alone.op.labels.choices


def test_a_parameter_made_of_activations_is_shared_where_they_are_mixed() -> None:
    """A mixture may be in every part, and then nothing of that size is there to be divided as the parameter is."""
    alone = wide()
    alone.op.labels.count = 100
    parameter, mixture = alone.op.labels.fresh((1, 1, 4)), alone.op.labels.mix((1, 1, 4))
    follow(alone.op, (mixture,), 1, (parameter,))
    assert alone.units(parameter) == [-1] * 4
    assert not alone.same(mixture, parameter)


def test_a_field_that_stands_already_is_not_added() -> None:
    alone = wide()
    f = alone.label(0, 1)
    result = [f]
    meet(alone.op, result, f)
    assert result == [f]
    assert alone.op.labels.ties == []


def test_a_mix_beside_units_is_said_by_a_field_of_its_own() -> None:
    alone = wide()
    f = alone.label(0, 1)
    mixed = [alone.op.labels.mix((1, 3, 1))]
    meet(alone.op, mixed, alone.op.labels.mix((1, 3, 1)))
    assert len(mixed) == 1
    assert alone.op.labels.is_mixed(mixed[0])
    plain = [mixed[0]]
    meet(alone.op, plain, f)
    assert [e is f for e in plain] == [True]


@given(AXES, AXES)
def test_what_lies_along_mixed_axes_becomes_one(along: set[int], mixed: set[int]) -> None:
    alone = wide()
    f = alone.label(0, *along)
    (result,) = mix(alone.op, (f,), mixed, "for a reason")
    assert varying(result) == frozenset(along - mixed)
    assert (result is f) == (not along & mixed)
    assert alone.soft() == ["for a reason"] * bool(along & mixed)
    (dropped,) = mix(alone.op, (f,), mixed, "for a reason", keepdims=False)
    assert dropped.ndim == 3 - len(mixed)
