"""Data movement: labels come out where the data comes out."""

from __future__ import annotations

from itertools import permutations
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpart import split, verify
from onnxpart.analysis.op import Barrier
from onnxpart.analysis.rules import movement
from onnxpart.ir.shapes import Shape
from tests.networks.alone import Alone
from tests.networks.net import Array, Net


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


MOVES: dict[str, tuple[Alone, Any]] = {
    "Reshape": (Alone("Reshape", [(2, 3, 4)], [ints(6, 4)]), lambda f: f.reshape(6, 4)),
    "Flatten": (Alone("Flatten", [(2, 3, 4)], axis=1), lambda f: f.reshape(2, 12)),
    "Squeeze": (Alone("Squeeze", [(2, 1, 4)], [ints(1)]), lambda f: f.reshape(2, 4)),
    "Unsqueeze": (Alone("Unsqueeze", [(2, 4)], [ints(0, 3)]), lambda f: f.reshape(1, 2, 4, 1)),
    "Transpose": (Alone("Transpose", [(2, 3, 4)], perm=[2, 0, 1]), lambda f: f.transpose(2, 0, 1)),
    "Transpose: backwards": (Alone("Transpose", [(2, 3, 4)]), lambda f: f.T),
    "Slice": (
        Alone("Slice", [(4, 6)], [ints(3, 1), ints(-9, 5), ints(0, 1), ints(-1, 2)]),
        lambda f: f[::-1, 1:5:2],
    ),
    "Gather": (Alone("Gather", [(2, 3)], [ints(2, 0, -1)], axis=1), lambda f: f[:, [2, 0, 2]]),
    "Gather: two axes": (Alone("Gather", [(4, 3)], [ints(3, 1).reshape(1, 2)]), lambda f: f[[[3, 1]]]),
    "Tile": (Alone("Tile", [(2, 3)], [ints(1, 2)]), lambda f: np.tile(f, (1, 2))),
    "Expand": (Alone("Expand", [(2, 3)], [ints(4, 2, 3)]), lambda f: f.reshape(1, 2, 3)),
    "Identity of shape": (Alone("CenterCropPad", [(2, 3)], [ints(2, 3)], opset=18), lambda f: f),
}


@pytest.mark.parametrize("name", MOVES)
def test_labels_move_as_the_data_does(name: str) -> None:
    alone, move = MOVES[name]
    f = alone.label(0, *range(len(alone.op.shape(0))))
    ((out,),) = alone.run()
    assert out.tolist() == move(f).tolist()
    assert alone.op.labels.ties == []


def test_pieces() -> None:
    alone = Alone("Split", [(2, 5)], [ints(2, 3)], outputs=2, axis=1)
    f, rows = alone.label(0, 1), alone.label(0, 0)
    first, second = alone.run()
    assert [g.tolist() for g in first] == [f[:, :2].tolist(), rows.tolist()]
    assert [g.tolist() for g in second] == [f[:, 2:].tolist(), rows.tolist()]


def test_units_side_by_side() -> None:
    alone = Alone("Concat", [(2, 3), (2, 4), (2, 1)], axis=1)
    f, g = alone.label(0, 1), alone.label(1, 1)
    ((out,),) = alone.run()
    assert out.tolist() == [[*f.ravel(), *g.ravel(), 0]]


def test_padding_makes_places_of_any_unit() -> None:
    alone = Alone("Pad", [(2, 3)], [ints(0, 1, 0, 2)])
    f = alone.label(0, 1)
    ((out,),) = alone.run()
    assert out[:, 1:4].tolist() == f.tolist()
    assert len(set(out.ravel())) == 6
    alone = Alone("Pad", [(2, 3)], [ints(0, 1, 0, 2)], mode="reflect")
    alone.label(0, 1)
    with pytest.raises(Barrier, match="it pads a divided axis in a way without a rule"):
        alone.run()


@pytest.mark.parametrize(("mode", "units"), [("DCR", [0, 1] * 4), ("CRD", [0] * 4 + [1] * 4)])
def test_channels_of_a_block_are_one_unit(mode: str, units: list[int]) -> None:
    alone = Alone("DepthToSpace", [(1, 8, 2, 2)], blocksize=2, mode=mode)
    f = alone.label(0, 1)
    ((out,),) = alone.run()
    assert out.shape == (1, 2, 1, 1)
    assert alone.units(f) == units
    assert alone.units(out) == [0, 1]


def test_places_of_a_unit_become_channels_of_it() -> None:
    alone = Alone("SpaceToDepth", [(1, 2, 4, 4)], blocksize=2)
    alone.label(0, 1)
    assert alone.units(alone.run()[0][0]) == [0, 1] * 4


def test_a_table_that_is_looked_up_makes_units() -> None:
    alone = Alone("Gather", [(2,), (7, 3)])
    op = alone.op
    op.state.weights_only.add("x1")
    op.inputs = ("x1", "x0")
    f = op.labels.fresh((1, 3))
    op.state.fields["x1"] = (op.labels.fresh((7, 1)), f)
    ((out,),) = alone.run()
    assert out.tolist() == f.tolist()
    assert [(g.tolist(), node) for g, node in op.labels.roots] == [(f.tolist(), 0)]
    assert alone.units(op.fields(0)[0]) == [-1] * 7


@st.composite
def same_size(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes of the same size."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def cut(order: list[int]) -> Shape:
        ends = sorted(draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
        return tuple(prod(order[i:j]) for i, j in zip([0, *ends], [*ends, len(order)], strict=True))

    return cut(factors), cut(draw(st.sampled_from(list(permutations(factors))[:24])))


@given(same_size())
def test_ranges_of_axes_hold_the_same_data(shapes: tuple[Shape, Shape]) -> None:
    a, b = shapes
    pairs = movement.groups(a, b)
    assert [axis for i, _ in pairs for axis in range(i.start, i.stop)] == list(range(len(a)))
    assert [axis for _, j in pairs for axis in range(j.start, j.stop)] == list(range(len(b)))
    assert all(prod(a[i]) == prod(b[j]) for i, j in pairs)


@given(same_size(), st.sets(st.integers(0, 5)))
def test_a_reshaped_field_is_what_its_places_say(shapes: tuple[Shape, Shape], along: set[int]) -> None:
    a, b = shapes
    alone = Alone("Relu", [(1,)])
    f = alone.op.labels.fresh([n if axis in along else 1 for axis, n in enumerate(a)])
    g = movement.reshape_field(alone.op, f, a, b)
    assert np.array_equal(np.broadcast_to(g, b), np.broadcast_to(f, a).reshape(b))
    assert alone.op.labels.ties == []


def test_a_table_that_is_cut_at_run_time_is_divided_along_its_columns() -> None:
    """As are the positions of a decoder: its rows are looked at up to a length that the input has."""
    n = Net(("x", ("N", "T", 4)))
    length = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2))
    cut = n.op("Slice", n.random("table", 30, 6), n.ints(0), length, n.ints(0))
    h = n.op("Tanh", n.op("Add", n.op("MatMul", "x", n.random("a", 4, 6)), cut))
    result = split(n.model(n.op("MatMul", h, n.random("b", 6, 3)), shape=("N", "T", 3)), 2)
    assert {i.name: i.part_shape(0) for i in result.plan.initializers if not i.constant} == {
        "a": (4, 3), "table": (30, 3), "b": (3, 3)
    }  # fmt: skip
    assert not result.analysis.barriers
    assert verify(result.analysis, result.plan).holds


@pytest.mark.parametrize("axis", [1, 2])
def test_hidden_units_that_are_cut_at_run_time_are_in_every_part_and_others_are_not(axis: int) -> None:
    """Only one of two divided axes that meet stays so; it must be the other one, whichever is cut."""
    n = Net(("x", ("N", 4)))
    rows, columns = (n.op("MatMul", "x", n.random(name, 4, 6)) for name in ("a", "b"))
    h = n.op("Mul", n.op("Unsqueeze", rows, n.ints(2)), n.op("Unsqueeze", columns, n.ints(1)))
    h = n.op("Slice", h, n.ints(0), n.op("Slice", n.op("Shape", "x"), n.ints(0), n.ints(1)), n.ints(axis))
    h = n.op("ReduceSum", n.op("Tanh", h), n.ints(axis), keepdims=0)
    result = split(n.model(n.op("MatMul", h, n.random("c", 6, 3)), shape=("N", 3)), 2)
    assert {i.name: i.part_shape(0) for i in result.plan.initializers if not i.constant} == {
        "a": (4, 6 if axis == 1 else 3), "b": (4, 6 if axis == 2 else 3), "c": (3, 3)
    }  # fmt: skip
    assert verify(result.analysis, result.plan).holds
