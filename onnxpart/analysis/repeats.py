"""Sequences of cards that repeat -> blocks with a count. A card is anything that can be folded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """`count` times the same `period` cards from card `start` on; `items` are the first of them, folded further."""

    start: int
    period: int
    count: int
    items: tuple[Item, ...]


Item = int | Block
"""A card, by its number, or a block."""


def fold(signatures: Sequence[Hashable], reads: Sequence[Sequence[int]]) -> tuple[Item, ...]:
    """Fold cards that repeat.

    :param signatures: of each card; equal where two may stand for each other.
    :param reads: of each card, the cards that it reads; all before it.
    :returns: items that hold each card once. Repeats of a block are connected alike inside, and each reads from outside
        what the one before reads, or the same in the one before itself.
    """
    numbers: dict[Hashable, int] = {}
    codes = np.asarray([numbers.setdefault(s, len(numbers)) for s in signatures], np.int64)
    return tuple(_fold(codes, reads, 0, len(codes)))


def _fold(codes: NDArray[np.int64], reads: Sequence[Sequence[int]], begin: int, end: int) -> list[Item]:
    """The items of the cards from `begin` to `end`: what saves most cards is folded first."""
    taken: list[Block] = []
    for block in sorted(_blocks(codes, reads, begin, end), key=_preference(reads)):
        if all(_stop(block) <= t.start or _stop(t) <= block.start for t in taken):
            taken.append(block)
    items: list[Item] = []
    place = begin
    for block in sorted(taken, key=lambda b: b.start):
        once = block.start + block.period
        inner = _fold(codes, reads, block.start, once) if block.period > 1 else [block.start]
        items += [*range(place, block.start), replace(block, items=tuple(inner))]
        place = _stop(block)
    return [*items, *range(place, end)]


def _stop(block: Block) -> int:
    return block.start + block.period * block.count


def _preference(reads: Sequence[Sequence[int]]) -> Callable[[Block], tuple[int, int, int, int]]:
    """The order in which blocks are chosen: more cards saved, shorter, fewer cards read from outside, earlier."""

    def key(block: Block) -> tuple[int, int, int, int]:
        second = block.start + block.period
        outside = {r for card in range(second, second + block.period) for r in reads[card] if r < second}
        return -block.period * (block.count - 1), block.period, len(outside), block.start

    return key


def _blocks(codes: NDArray[np.int64], reads: Sequence[Sequence[int]], begin: int, end: int) -> Iterator[Block]:
    """All blocks of the cards from `begin` to `end`, but for those that repeat something shorter."""
    here = codes[begin:end]
    seen: list[tuple[int, int, int]] = []
    for period in range(1, len(here) // 2 + 1):
        same = here[period:] == here[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, length in zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True):
            stop = start + length + period
            if length < period or any(period % p == 0 and s <= start and stop <= t for p, s, t in seen):
                continue
            seen.append((period, start, stop))
            for first in range(begin + start, begin + stop - 2 * period + 1)[:period]:
                count = _alike(reads, first, period, (begin + stop - first) // period)
                if count > 1:
                    yield Block(first, period, count, ())


def _alike(reads: Sequence[Sequence[int]], start: int, period: int, count: int) -> int:
    """How many repeats, from the first on, are connected alike, each with the one before."""
    for repeat in range(1, count):
        here = start + period * repeat
        if not any(here - period <= r < here for card in range(here, here + period) for r in reads[card]):
            return repeat
        for card in range(here, here + period):
            if not _same_reads(reads[card - period], reads[card], here, period, repeat > 1):
                return repeat
    return count


def _same_reads(one: Sequence[int], other: Sequence[int], here: int, period: int, strict: bool) -> bool:
    """Whether a card of the repeat that begins at `here` reads what the same card one repeat before does.

    :param strict: whether that goes for what comes from outside as well; the first repeat may have it from elsewhere.
    """
    return len(one) == len(other) and all(
        s - r == period or (s < here and r < here - period and (s == r or not strict))
        for r, s in zip(one, other, strict=True)
    )
