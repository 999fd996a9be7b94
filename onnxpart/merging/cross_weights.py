"""Cross weights: those between units of different parts. No part has them; a merge leaves them zero or fills them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from onnxpart.errors import UsageError, check_seed
from onnxpart.planning.plan import InitializerPlan, Plan
from onnxpart.storage.rows import CHUNK, Array, Rows, Stream, stream, windows

_NAMED = 8
"""At most this many initializers are named in an error."""


@dataclass(frozen=True)
class Edges:
    """How cross weights start: at zero, drawn with a `spread` (see `draw_edges`), or with their original values.

    `keep` names the initializers that keep theirs, whatever the spread; None: all do.
    """

    spread: float = 0.0
    keep: frozenset[str] | None = frozenset()
    seed: int = 0

    def keeps(self, name: str) -> bool:
        """Whether an initializer keeps its cross weights."""
        return self.keep is None or name in self.keep

    def kept(self, plan: Plan) -> list[str]:
        """The initializers of a plan that keep their cross weights, in its order."""
        return [name for name in between(plan) if self.keeps(name)]

    def keeping(self, names: Collection[str]) -> Edges:
        """The same edges, but these initializers keep theirs, too."""
        return self if self.keep is None else replace(self, keep=self.keep | frozenset(names))

    def check(self, plan: Plan) -> None:
        """Check that the named initializers have cross weights.

        :raises UsageError: when one has none.
        """
        have = between(plan)
        for name in sorted((self.keep or frozenset()) - set(have)):
            some = f"; name some of {', '.join(have[:_NAMED])}" if have else ": nothing in this network has any"
            raise UsageError(f"{name!r} has no weights between parts to keep{some}.")


ZERO = Edges()


def between(plan: Plan) -> list[str]:
    """The initializers that have cross weights, in the plan's order."""
    return [i.name for i in plan.initializers if not i.constant and _has_cross_weights(i)]


def fill_edges(
    plan: Plan,
    whole: Mapping[str, Stream],
    original: Mapping[str, Rows],
    edges: Edges,
) -> dict[str, Stream]:
    """Fill the cross weights of a merge as `edges` says, a few rows at a time; leave everything else as it is.

    If some are kept or drawn, the whole no longer computes the mean of its parts.

    :param plan: the plan that the parts were merged by.
    :param whole: initializer name -> array in the whole's shape, as from `merge`; weights, no momenta.
    :param original: the same of the original network; an initializer that it lacks keeps nothing.
    :returns: initializer name -> array of the same shape and dtype.
    :raises UsageError: when the spread or the seed is negative.
    """
    result = draw_streams(plan, whole, edges.spread, seed=edges.seed)
    for name in edges.kept(plan):
        if name in whole and name in original:
            result[name] = _kept(plan.by_name[name], whole[name], original[name])
    return result


def _kept(initializer: InitializerPlan, whole: Stream, original: Rows) -> Stream:
    """The array, with the original's elements in the places that no part has."""

    def chunks(size: int) -> Iterator[Array]:
        for rows, array in _rows(whole, size):
            yield np.where(initializer.counts(*rows) > 0, array, original[(slice(*rows),)].astype(array.dtype))

    return Stream(whole.shape, whole.dtype, chunks)


def draw_edges(plan: Plan, whole: Mapping[str, Array], spread: float, *, seed: int = 0) -> dict[str, Array]:
    """Draw the cross weights from a normal distribution; leave everything else as it is.

    The whole then no longer computes the mean of its parts, but units of different parts are connected.

    :param plan: the plan that the parts were merged by.
    :param whole: initializer name -> array in the whole's shape, as from `merge`; weights, no momenta.
    :param spread: standard deviation, relative to that of the initializer's elements in the parts.
    :param seed: of the draws.
    :returns: initializer name -> array of the same shape and dtype; elements that are in a part are as they were.
    :raises UsageError: when the spread or the seed is negative.
    """
    drawn = draw_streams(plan, {name: stream(array) for name, array in whole.items()}, spread, seed=seed)
    return {name: each.array() for name, each in drawn.items()}


def draw_streams(plan: Plan, whole: Mapping[str, Stream], spread: float, *, seed: int = 0) -> dict[str, Stream]:
    """Draw the cross weights a few rows at a time (see `draw_edges`).

    :raises UsageError: when the spread or the seed is negative.
    """
    check_seed(seed)
    if not spread >= 0:
        raise UsageError(f"the spread {spread} of cross weights isn't possible; give 0 or more.")
    result = dict(whole)
    for number, initializer in enumerate(plan.initializers):
        name = initializer.name
        if spread and name in whole and not initializer.constant and _has_cross_weights(initializer):
            result[name] = _drawn(initializer, whole[name], spread, (seed, number))
    return result


def _has_cross_weights(initializer: InitializerPlan) -> bool:
    """Whether elements of the whole may be in no part: two axes are divided."""
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
