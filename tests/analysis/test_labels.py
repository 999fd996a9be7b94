"""Label fields, ties between labels, and their solution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpart.analysis import labels as module
from onnxpart.analysis.labels import (
    SHARED,
    Field,
    Labels,
    TooMany,
    align,
    alike,
    ascending,
    bounded,
    collapse,
    cut,
    drop_axes,
    extent,
    first_along,
    flatten,
    listed,
    solve,
    tight,
    varying,
)


@st.composite
def fields(draw: st.DrawFn, rank: int | None = None, highest: int = 8) -> Field:
    """A field of any shape, labels drawn from few so that some are alike."""
    shape = draw(st.lists(st.integers(1, 3), min_size=rank or 0, max_size=3 if rank is None else rank))
    size = int(np.prod(shape, dtype=int))
    values = draw(st.lists(st.integers(0, highest), min_size=size, max_size=size))
    return np.asarray(values, np.int32).reshape(shape)


def classes(labels: Labels) -> Field:
    return solve(labels.count, *flatten(labels.ties))


def naive(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Each label's smallest relative, by passing it on until nothing changes."""
    least = list(range(count))
    while True:
        before = list(least)
        for a, b in pairs:
            least[a] = least[b] = min(least[a], least[b])
        if least == before:
            return least


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_classes_are_the_connected_components_of_the_ties(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    left, right = np.asarray(pairs, np.int32).reshape(-1, 2).T
    found, least = solve(count, left, right), naive(count, pairs)
    assert found[SHARED] == 0
    assert [[a == b for b in found] for a in found] == [[a == b for b in least] for a in least]
    first = [int(np.flatnonzero(found == c)[0]) for c in range(found.max() + 1)]
    assert first == sorted(first)  # numbered by their smallest label


@given(fields())
def test_a_tight_field_says_the_same_with_fewer_places(f: Field) -> None:
    (g,) = tight((f,))
    assert np.array_equal(np.broadcast_to(g, f.shape), f)
    assert tight((g,))[0].shape == g.shape
    for axis in varying(g):
        assert (g != g.take([0], axis)).any()


def test_a_field_stands_once() -> None:
    f = np.asarray([[1], [2]], np.int32)
    assert len(tight((f, f.copy(), f[::-1]))) == 2


@given(fields(), st.sets(st.integers(0, 2)))
def test_ties_along_axes_leave_a_field_that_varies_along_the_others(f: Field, keep: set[int]) -> None:
    labels = Labels(count=9)
    g = labels.tie_along(f, keep)
    assert varying(g) == varying(f) & keep
    units = classes(labels)
    assert np.array_equal(np.broadcast_to(units[g], f.shape), units[f])
    ((left, right),) = collapse(f, keep)
    assert left is f
    assert np.array_equal(right, first_along(f, keep))
    assert np.array_equal(g, right)


@given(fields())
def test_aligned_axes_can_be_dropped_again(f: Field) -> None:
    wide = align(f, f.ndim + 2)
    assert wide.shape == (1, 1, *f.shape)
    assert np.array_equal(drop_axes(wide, (0, 1)), f)


@given(fields(), st.integers(1, 9))
def test_fields_are_alike_if_they_differ_by_a_number(f: Field, step: int) -> None:
    assert alike(f, f + np.int32(step))
    if f.size > 1:
        g = f.copy()
        g.flat[-1] += 1
        assert not alike(f, g)
        assert not alike(f, f.reshape(1, *f.shape))


@given(st.lists(fields(), max_size=4))
def test_listed_labels_stand_behind_each_other(found: list[Field]) -> None:
    values, numbers = listed(found)
    for number, f in enumerate(found):
        assert np.array_equal(values[numbers == number], f.ravel())
    assert len(values) == sum(f.size for f in found)


@given(st.lists(st.integers(-5, 5), min_size=1))
def test_ascending_values_are_distinct(values: list[int]) -> None:
    assert ascending(np.asarray(values, np.int32)).tolist() == sorted(set(values))


@given(st.integers(0, 6), st.lists(st.integers(0, 6), max_size=4))
def test_an_array_is_cut_as_numpy_cuts_it(size: int, places: list[int]) -> None:
    values, ascends = np.arange(size), np.asarray(sorted(places), np.intp)
    assert [c.tolist() for c in cut(values, ascends)] == [c.tolist() for c in np.split(values, ascends)]


@given(st.lists(st.integers(-1, 3), min_size=9, max_size=9), st.lists(fields(), min_size=1, max_size=4))
def test_extent_is_the_least_and_the_greatest_part(values: list[int], found: list[Field]) -> None:
    parts = np.asarray(values, np.int16)
    low, high = extent(parts, found)
    assert low.tolist() == [parts[f].min() for f in found]
    assert high.tolist() == [parts[f].max() for f in found]


@given(st.lists(st.lists(st.integers(1, 3), max_size=3), max_size=4))
def test_fresh_labels_are_new(shapes: list[list[int]]) -> None:
    labels = Labels()
    made = [labels.fresh(shape) for shape in shapes]
    assert [f.shape for f in made] == [tuple(shape) for shape in shapes]
    assert np.array_equal(listed(made)[0], np.arange(1, labels.count))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=6))
def test_labels_of_mixes_are_told_apart(made: list[tuple[bool, int]]) -> None:
    labels = Labels()
    found = [(mix, labels.mix([size]) if mix else labels.fresh([size])) for mix, size in made]
    assert [labels.is_mixed(f) for _, f in found] == [mix for mix, _ in found]


def test_ties_broadcast() -> None:
    labels = Labels()
    wide, narrow = labels.fresh((2, 3)), labels.fresh((1, 3))
    labels.tie(wide, narrow)
    assert np.array_equal(*np.broadcast_arrays(classes(labels)[wide], classes(labels)[narrow]))
    assert len(set(classes(labels)[wide].ravel())) == 3
    with pytest.raises(ValueError, match="shape mismatch"):
        labels.tie(wide, labels.fresh((2, 2)))


@given(
    st.tuples(*[st.sampled_from([1, 2, 3])] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.booleans()] * 3),
)
def test_a_tie_of_fields_along_different_axes_is_written_once_for_each_label(
    shape: tuple[int, ...], along_a: tuple[bool, ...], along_b: tuple[bool, ...]
) -> None:
    labels = Labels()
    a, b = (
        labels.fresh([n if along else 1 for n, along in zip(shape, axes, strict=True)]) for axes in (along_a, along_b)
    )
    left, right = flatten([(a, b)])
    assert len(left) <= 2 * (a.size + b.size)
    everywhere = [side.ravel() for side in np.broadcast_arrays(a, b)]
    assert np.array_equal(solve(labels.count, left, right), solve(labels.count, *everywhere))


def test_long_axes_are_not_multiplied() -> None:
    labels = Labels()
    a, b = labels.fresh((2, 100_000, 1)), labels.fresh((2, 1, 100_000))
    left, _ = flatten([(a, b)])
    assert len(left) == a.size + b.size + 2


def test_a_tie_says_which_operator_made_it() -> None:
    labels = Labels()
    f, g = labels.fresh((2,)), labels.fresh((2,))
    labels.node = 7
    labels.tie(f, f)
    assert labels.tied_at == []
    labels.tie(f, g)
    assert labels.tied_at == [7]


def test_what_is_shared_already_is_not_pinned() -> None:
    labels = Labels()
    labels.share(np.zeros((1, 1), np.int32), 3, "for no reason")
    assert labels.pins == []
    f = labels.fresh((1,))
    labels.share(f, 3, "a reason")
    assert labels.pins == [(f, 3, "a reason")]


def test_too_many_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LABELS", 20)
    assert bounded([4, 5]) == (4, 5)
    with pytest.raises(TooMany, match="axis 1 is 7 long, and at most 20 units are told apart"):
        bounded([3, 7])
    labels = Labels()
    labels.fresh([10])
    with pytest.raises(TooMany):
        labels.fresh([10])


def test_too_many_ties_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few labels they are between."""
    monkeypatch.setattr(module, "MAX_LABELS", 20)
    labels = Labels()
    a, b = labels.fresh((1, 7)), labels.fresh((2, 1))
    labels.tie(a, b)
    labels.tie(a, b)
    labels.tie(a, a)
    with pytest.raises(TooMany, match="axis 1 is 7 long, and at most 20 ties of units are kept"):
        labels.tie(b, a)
