"""Counts by part: they sum up, are within one of the exact shares, and are alike in all groups of a side."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpart.planning.balance import Counts, balance, quotas

SHARES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@given(st.integers(0, 200), SHARES)
def test_quotas_sum_up_within_one_of_the_exact_shares(size: int, shares: list[int]) -> None:
    found = quotas(size, shares)
    assert sum(found) == size
    assert all(abs(n - size * s / sum(shares)) < 1 for n, s in zip(found, shares, strict=True))


@given(st.lists(st.integers(0, 20), max_size=6), SHARES)
def test_what_is_owed_keeps_the_sum_of_several_divisions_near(sizes: list[int], shares: list[int]) -> None:
    total, owed = sum(shares), [0] * len(shares)
    for size in sizes:
        counts = quotas(size, shares, owed)
        owed = [o + size * s - total * n for o, s, n in zip(owed, shares, counts, strict=True)]
    assert sum(owed) == 0
    assert all(abs(o) < len(shares) * total for o in owed)


@pytest.mark.parametrize(
    ("size", "shares", "owed", "load", "counts"),
    [
        (5, [1, 1], None, None, [3, 2]),
        (5, [1, 1], [0, 1], None, [2, 3]),
        (5, [1, 1], None, [2.0, 1.0], [2, 3]),
        (7, [2, 1, 1], None, None, [3, 2, 2]),
        (4, [1, 1, 1, 1], None, None, [1, 1, 1, 1]),
        (0, [1, 2], None, None, [0, 0]),
    ],
    ids=["the first", "the one owed", "the least loaded", "the largest remainder", "even", "nothing"],
)
def test_who_gets_the_rest(
    size: int, shares: list[int], owed: list[int] | None, load: list[float] | None, counts: list[int]
) -> None:
    assert quotas(size, shares, owed, load) == counts


def alike(counts: Counts, cells: list[int], groups: Counts, sides: list[int]) -> bool:
    """Whether all classes are given away, and every group of a side is divided in the same way."""
    held = groups.T @ counts
    return bool(
        (counts >= 0).all()
        and (counts.sum(axis=1) == cells).all()
        and all((held[g] == held[sides.index(side)]).all() for g, side in enumerate(sides))
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], Counts, list[int]]:
    """Cells, what each of their classes is to each group, and the sides of the groups."""
    cells = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    sides = draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))
    rows = draw(st.lists(st.lists(st.integers(0, 3), min_size=len(sides), max_size=len(sides)),
                         min_size=len(cells), max_size=len(cells)))  # fmt: skip
    return cells, np.asarray(rows, np.int64), sides


@settings(max_examples=60)
@given(problems(), st.lists(st.integers(1, 2), min_size=2, max_size=2))
def test_a_division_is_right_and_is_found_where_there_is_one(
    problem: tuple[list[int], Counts, list[int]], shares: list[int]
) -> None:
    cells, groups, sides = problem
    found = balance(cells, groups, sides, shares)
    if found is not None:
        assert alike(found, cells, groups, sides)
        return
    for first in product(*(range(size + 1) for size in cells)):
        counts = np.asarray([(n, size - n) for n, size in zip(first, cells, strict=True)])
        assert not (alike(counts, cells, groups, sides) and (groups.T @ counts > 0).all())


def test_groups_that_overlap() -> None:
    """Channels shuffled between two groupings of 4: every cell is a class in one group of each."""
    groups = np.asarray([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
    found = balance([2, 2, 2, 2], groups, [0, 0, 1, 1], [1, 1])
    assert found is not None
    assert found.tolist() == [[1, 1]] * 4
    odd = balance([1, 1, 1, 1], groups, [0, 0, 1, 1], [1, 1])
    assert odd is not None
    assert (groups.T @ odd == 1).all()


def test_what_cant_be_divided_alike_is_said() -> None:
    """Twos in one group of six, threes in the other: a part has no equal count of both but all or nothing."""
    assert balance([3, 2], np.asarray([[2, 0], [0, 3]]), [0, 0], [1, 1]) is None


def test_groups_of_one_side_are_of_one_width() -> None:
    assert balance([2, 3], np.asarray([[1, 0], [0, 1]]), [0, 0], [1, 1]) is None
