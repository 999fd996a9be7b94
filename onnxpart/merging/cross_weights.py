"""Cross weights: the weights between units of different parts, which no part has. Zero after a merge, or drawn here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

import numpy as np

from onnxpart.errors import UsageError
from onnxpart.planning.plan import InitializerPlan, Plan
from onnxpart.storage.rows import CHUNK, Array, Stream, stream, windows


def draw_edges(plan: Plan, whole: Mapping[str, Array], spread: float, *, seed: int = 0) -> dict[str, Array]:
    """Draw the cross weights from a normal distribution; leave everything else as it is.

    The whole then no longer computes the mean of its parts, but has no direction in which all parts are left alone.

    :param plan: the plan that the parts were merged by.
    :param whole: initializer name -> array in the whole's shape, as from `merge`; weights, no momenta.
    :param spread: standard deviation, as a share of that of the initializer's elements that are in parts.
    :param seed: of the draws.
    :returns: initializer name -> array of the same shape and dtype; elements that are in a part are as they were.
    :raises UsageError: when the spread is negative.
    """
    drawn = draw_streams(plan, {name: stream(array) for name, array in whole.items()}, spread, seed=seed)
    return {name: each.array() for name, each in drawn.items()}


def draw_streams(plan: Plan, whole: Mapping[str, Stream], spread: float, *, seed: int = 0) -> dict[str, Stream]:
    """Draw the cross weights a few rows at a time (see `draw_edges`).

    :raises UsageError: when the spread is negative.
    """
    if not spread >= 0:
        raise UsageError(f"the spread {spread} of cross weights is no share of the others'; give 0 or more.")
    result = dict(whole)
    for number, initializer in enumerate(plan.initializers):
        name = initializer.name
        if spread and name in whole and not initializer.constant and _has_cross_weights(initializer):
            result[name] = _drawn(initializer, whole[name], spread, (seed, number))
    return result


def _has_cross_weights(initializer: InitializerPlan) -> bool:
    """Whether an element of the whole may be in no part: two of its axes are divided."""
    return any(sum(ranges is not None for ranges in block) > 1 for blocks in initializer.blocks for block in blocks)


def _drawn(initializer: InitializerPlan, whole: Stream, spread: float, seed: tuple[int, ...]) -> Stream:
    """The array with its cross weights drawn; the seed alone decides them, not the rows read at a time."""

    def chunks(size: int) -> Iterator[Array]:
        deviation, rng = spread * _deviation(initializer, whole), np.random.default_rng(seed)
        for rows, array in _rows(whole, size):
            noise = rng.standard_normal(array.shape, np.float32) * np.float32(deviation)
            yield np.where(initializer.counts(*rows) > 0, array, noise.astype(array.dtype))

    return Stream(whole.shape, whole.dtype, chunks)


def _deviation(initializer: InitializerPlan, whole: Stream) -> float:
    """The standard deviation of the elements that are in parts."""
    count, total, squares = 0, 0.0, 0.0
    for rows, array in _rows(whole, CHUNK):
        found = array[initializer.counts(*rows) > 0].astype(np.float64)
        count, total, squares = count + found.size, total + float(found.sum()), squares + float(np.square(found).sum())
    return sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else 0.0


def _rows(whole: Stream, size: int) -> Iterator[tuple[tuple[int, int], Array]]:
    """Pieces of an array, and which of its rows they are."""
    yield from zip(windows(whole.shape, whole.dtype, size), whole.chunks(size), strict=True)
