"""Operators that mix units without a weight: which units they want together."""

from __future__ import annotations

import pytest

from onnxpart.analysis.labels import varying
from tests.networks.alone import Alone


@pytest.mark.parametrize(
    ("opset", "axes", "wanted"), [(17, (1,), 0), (17, (2,), 1), (11, (0,), 0), (11, (1,), 1), (11, (2,), 1)]
)
def test_softmax_mixes_from_an_axis_on_before_opset_13(opset: int, axes: tuple[int, ...], wanted: int) -> None:
    alone = Alone("Softmax", [(2, 3, 4)], opset=opset, axis=2 if opset > 12 else 1)
    f = alone.label(0, *axes)
    assert alone.run() == [(f,)]
    assert alone.soft() == ["normalises over units"] * wanted


def test_a_mix_is_a_soft_tie_of_what_lies_along_its_axes() -> None:
    alone = Alone("ReduceMax", [(2, 3, 4)], axes=[2], keepdims=0)
    f = alone.label(0, 1, 2)
    ((out,),) = alone.run()
    (choice,) = alone.op.labels.choices
    ((pair,),) = choice.alternatives
    assert choice.mix
    assert pair[0] is f
    assert pair[1].shape == (1, 3, 1)
    assert out.shape == (1, 3)
    assert alone.op.labels.is_mixed(out)


def test_what_is_not_mixed_passes() -> None:
    alone = Alone("ReduceSum", [(2, 3, 4)], keepdims=0, opset=11, axes=[2])
    f = alone.label(0, 1)
    ((out,),) = alone.run()
    assert out.tolist() == f.reshape(1, 3).tolist()
    assert alone.soft() == []


def test_no_axes_are_all_axes_or_none() -> None:
    all_axes, none = Alone("ReduceSum", [(2, 3)]), Alone("ReduceSum", [(2, 3)], noop_with_empty_axes=1)
    f = none.label(0, 1)
    assert none.run() == [(f,)]
    all_axes.label(0, 1)
    assert [varying(g) for g in all_axes.run()[0]] == [frozenset()]


def test_parameters_of_a_layer_norm_go_with_their_units() -> None:
    alone = Alone("LayerNormalization", [(2, 3, 4)], [(4,), (4,)], outputs=2)
    f = alone.label(0, 2)
    fields, (statistics,) = alone.run()
    assert fields == (f,)
    assert statistics.shape == (1, 1, 1)
    assert alone.same(f.ravel(), alone.op.fields(1)[0])
    assert alone.same(f.ravel(), alone.op.fields(2)[0])
    assert alone.soft() == ["normalises over units"]


def test_channels_of_a_group_want_to_stay_together() -> None:
    alone = Alone("GroupNormalization", [(1, 6, 4)], [(6,), (6,)], opset=21, num_groups=3)
    f = alone.label(0, 1)
    assert [g.tolist() for g in alone.run()[0]] == [f.tolist()]
    (choice,) = alone.op.labels.choices
    (((units, group),),) = choice.alternatives
    assert units.tolist() == f.reshape(3, 2).tolist()
    assert group.shape == (3, 1)
    (groups,) = alone.op.labels.groups
    assert groups.outputs.tolist() == f.reshape(3, 2).tolist()


def test_places_of_a_channel_are_mixed_by_an_instance_norm() -> None:
    alone = Alone("InstanceNormalization", [(1, 2, 3)], [(2,), (2,)])
    f = alone.label(0, 1, 2)
    assert alone.run() == [(f,)]
    assert alone.soft()[0] == "normalises over units"


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_positions_along_units_mean_nothing_in_a_part(op_type: str) -> None:
    alone = Alone(op_type, [(2, 3)], axis=1, keepdims=0)
    rows, columns = alone.label(0, 0), alone.label(0, 1)
    ((out,),) = alone.run()
    assert out.tolist() == rows.ravel().tolist()
    assert alone.units(columns) == [-1] * 3
    assert alone.reasons() == ["it returns positions along a divided axis"]


def test_a_window_that_slides_over_units_mixes_them() -> None:
    alone = Alone("AveragePool", [(1, 1, 4, 4)], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    f = alone.label(0, 2)
    assert alone.run() == [(f,)]
    assert alone.soft() == ["its window covers several units"]
