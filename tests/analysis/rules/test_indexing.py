"""Operators that look up, write or mask positions: place by place along the other axes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpart.analysis.op import Barrier
from tests.networks.alone import Alone


def test_positions_are_in_every_part_and_the_rest_is_place_by_place() -> None:
    alone = Alone("GatherElements", [(2, 3)], [np.zeros((2, 3), np.int64)], axis=0)
    rows, columns = alone.label(0, 0), alone.label(0, 1)
    ((out,),) = alone.run()
    assert out is columns
    assert alone.units(rows) == [-1, -1]
    assert alone.reasons() == ["it depends on positions along a divided axis"]


def test_what_is_scattered_is_the_same_units() -> None:
    alone = Alone("TensorScatter", [(1, 4, 3), (1, 2, 3)], opset=24)
    f, g = alone.label(0, 2), alone.label(1, 2)
    ((out,),) = alone.run()
    assert alone.same(f, g)
    assert alone.units(out) == [0, 1, 2]


def test_some_of_the_places_along_units_are_no_units() -> None:
    alone = Alone("GatherElements", [(2, 3)], [np.zeros((2, 2), np.int64)], axis=0)
    alone.label(0, 1)
    with pytest.raises(Barrier, match="it reaches some of the places along a divided axis only"):
        alone.run()


def test_blocks_are_looked_up_whole() -> None:
    alone = Alone("GatherND", [(2, 3, 4)], [np.zeros((5, 1), np.int64)])
    first, f = alone.label(0, 0), alone.label(0, 1, 2)
    ((out,),) = alone.run()
    assert out.tolist() == f.tolist()
    assert alone.units(first) == [-1, -1]


def test_blocks_are_written_whole() -> None:
    alone = Alone("ScatterND", [(5, 4)], [np.zeros((2, 1), np.int64), (2, 4)])
    f = alone.label(0, 1)
    assert alone.run() == [(f,)]
    rows, columns = alone.op.fields(2)
    assert alone.same(f, columns)
    assert alone.units(rows) == [-1, -1]


@pytest.mark.parametrize(("axis", "left"), [(0, True), (1, False), (2, False)])
def test_a_triangle_depends_on_the_last_two_axes(axis: int, left: bool) -> None:
    alone = Alone("Trilu", [(2, 3, 4)])
    f = alone.label(0, axis)
    assert alone.run() == [(f,) if left else ()]


@pytest.mark.parametrize(("axis", "left"), [(0, False), (1, False), (2, True)])
def test_a_sequence_is_reversed_along_time_and_batch(axis: int, left: bool) -> None:
    alone = Alone("ReverseSequence", [(2, 3, 4)], [np.ones(3, np.int64)])
    f = alone.label(0, axis)
    assert alone.run() == [(f,) if left else ()]


@pytest.mark.parametrize(("axis", "left"), [(0, True), (1, False), (2, False)])
def test_a_transform_sums_along_its_axis(axis: int, left: bool) -> None:
    alone = Alone("DFT", [(2, 3, 2)], axis=1)
    f = alone.label(0, axis)
    assert alone.run() == [(f,) if left else ()]


def test_one_hot_adds_an_axis_without_units() -> None:
    alone = Alone("OneHot", [(2, 3)], [np.asarray(5, np.int64), np.asarray([0, 1], np.float32)], axis=1)
    f = alone.label(0, 1)
    ((out,),) = alone.run()
    assert out.tolist() == f.reshape(1, 1, 3).tolist()
