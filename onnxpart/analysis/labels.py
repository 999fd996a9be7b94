"""Label fields, ties between labels, and their solution.

A label names a unit at one place of the graph. A *field* says, for one tensor, which label each element carries: an
integer array of the tensor's rank in which each dimension is either the tensor's own or 1 (the label doesn't vary
along it). A tensor carries a tuple of fields; an element belongs to a part when every one of its labels does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, starmap
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Field = np.ndarray[Any, np.dtype[np.int32]]
Fields = tuple[Field, ...]
Pair = tuple[Field, Field]
Number = TypeVar("Number", bound=np.number[Any])
Key = TypeVar("Key")
Value = TypeVar("Value")
SHARED = 0
"""The label of what belongs to every part."""
MAX_FIELD = 1 << 22
"""A field is not expanded beyond this many elements: labels are tied instead, which is always safe."""
MAX_LABELS = 1 << 27
"""A graph with more labels or ties, or a field of more elements, is refused: each takes tens of bytes in a plan."""


class TooMany(Exception):
    """More than MAX_LABELS labels, ties, or elements of a field; the message says along which axis."""


def bounded(shape: Iterable[int], held: int = 0, limit: str = "units are told apart") -> tuple[int, ...]:
    """The shape of a field that is about to be made or tied, where there are `held` labels or ties already.

    :raises TooMany: when that is too large; `limit` says of what there are at most so many.
    """
    shape = tuple(shape)
    if held + prod(shape) > MAX_LABELS:
        size = max(shape)
        raise TooMany(f"axis {shape.index(size)} is {size:,} long, and at most {MAX_LABELS:,} {limit}")
    return shape


class ByIdentity(MutableMapping[Key, Value], Generic[Key, Value]):
    """A mapping whose keys are objects themselves, however equal others are; it keeps them alive.

    Arrays have no hash, and two fields with the same labels may be of two tensors.
    """

    def __init__(self, items: Iterable[tuple[Key, Value]] = ()) -> None:
        self._items = {id(key): (key, value) for key, value in items}

    def __getitem__(self, key: Key) -> Value:
        return self._items[id(key)][1]

    def __setitem__(self, key: Key, value: Value) -> None:
        self._items[id(key)] = key, value

    def __delitem__(self, key: Key) -> None:
        del self._items[id(key)]

    def __iter__(self) -> Iterator[Key]:
        return (key for key, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return id(key) in self._items


def each_once(items: Iterable[Key]) -> list[Key]:
    """Objects in their order, each object once, however equal others are."""
    return list({id(item): item for item in items}.values())


def varying(f: Field) -> frozenset[int]:
    """Axes along which the field's label differs from place to place."""
    return _longer_than_one(f.shape)


@lru_cache(maxsize=4096)
def _longer_than_one(shape: tuple[int, ...]) -> frozenset[int]:
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def tight(fields: Fields) -> Fields:
    """The same fields, each with size 1 along the axes where its labels turn out to be all the same, and each once.

    Those of a tensor without elements are left out.
    """
    result: list[Field] = []
    for f in fields:
        if 0 in f.shape:
            continue
        for axis in varying(f):
            first = f[(slice(None),) * axis + (slice(0, 1),)]
            second = f[(0,) * axis + (1,) + (0,) * (f.ndim - axis - 1)]
            if second == f.flat[0] and (f == first).all():
                f = first
        if not any(f.shape == e.shape and np.array_equal(f, e) for e in result):
            result.append(f)
    return tuple(result)


def align(f: Field, rank: int) -> Field:
    """The field of a tensor that broadcasts to `rank` axes, seen from there."""
    return f if f.ndim == rank else f.reshape((1,) * (rank - f.ndim) + f.shape)


@dataclass(frozen=True, eq=False)
class Choice:
    """Soft ties: wanted but not needed, in order of preference; a plan takes the first that leaves K classes.

    `node` is the index of the operator that wants them and `reason` says why. When none holds, the labels in `drop`
    cease to be units: what they stand for is then in every part, and the ties `otherwise` hold. Without `drop`, what
    `sides` name becomes shared: all labels in the ties, or of two fields the one with fewer units, and there is nothing
    to choose where either is shared already. `mix` marks an operator that mixes units, and is duplicated when none
    holds.
    """

    node: int
    reason: str
    alternatives: tuple[tuple[Pair, ...], ...]
    drop: Field | None = None
    mix: bool = False
    otherwise: tuple[Pair, ...] = ()
    sides: Fields = ()


@dataclass(frozen=True, eq=False)
class Groups:
    """A grouped operator: labels of its inputs and outputs by group, int32 [groups, width] (None: shared)."""

    node: int
    inputs: Field | None
    outputs: Field


@dataclass
class Labels:
    """All labels of one graph and what is known of them; label 0 is SHARED.

    `node` is the index of the operator whose rule is at work, `tied_at` who made each of the ties, and `tied` about how
    many pairs of labels these are.
    """

    count: int = 1
    tied: int = 0
    node: int = -1
    ties: list[Pair] = field(default_factory=list)
    tied_at: list[int] = field(default_factory=list)
    pins: list[tuple[Field, int, str]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    groups: list[Groups] = field(default_factory=list)
    roots: list[tuple[Field, int]] = field(default_factory=list)
    grids: list[tuple[Field, int]] = field(default_factory=list)
    """Fields that are no tensor's but must come out as one's would: along each axis its own labels."""
    mixed: list[tuple[int, int]] = field(default_factory=list)

    def fresh(self, shape: Sequence[int]) -> Field:
        """A field of new labels.

        :raises TooMany: when the graph has too many.
        """
        shape = bounded(shape, self.count)
        start, self.count = self.count, self.count + prod(shape)
        return np.arange(start, self.count, dtype=np.int32).reshape(shape)

    def mix(self, shape: Sequence[int]) -> Field:
        """A field of new labels that cease to be units where the mix that they come from is duplicated."""
        f = self.fresh(shape)
        self.mixed.append((self.count - f.size, self.count))
        return f

    def is_mixed(self, f: Field) -> bool:
        """Whether any label of a field comes from a mix."""
        return bool(self.mixed) and bool((self._mixes(f) % 2).any())

    def _mixes(self, f: Field) -> NDArray[np.intp]:
        """For each label of a field an odd number that tells the mix that it comes from, or an even one."""
        return np.searchsorted(np.asarray(self.mixed).ravel(), f.ravel(), side="right")

    def tie(self, a: Field, b: Field) -> None:
        """The labels of `a` and `b` at the same place are the same unit; shapes broadcast.

        :raises ValueError: when they don't. :raises TooMany: when the graph has too many ties.
        """
        if a is not b:
            if a.shape != b.shape:
                np.broadcast_shapes(a.shape, b.shape)
            larger = a if a.size > b.size else b
            bounded(larger.shape, self.tied, "ties of units are kept")
            self.tied += larger.size
            self.ties.append((a, b))
            self.tied_at.append(self.node)

    def tie_along(self, f: Field, keep: Iterable[int]) -> Field:
        """`f` made to vary along the axes `keep` at most, by tying what lies along the others.

        Where a mixture, which may be in every part, meets other units, all are in every part.
        """
        extra = varying(f) - frozenset(keep)
        if not extra:
            return f
        g = f[tuple(slice(0, 1) if axis in extra else slice(None) for axis in range(f.ndim))]
        self.tie(f, g)
        if self.is_mixed(f) and np.ptp(self._mixes(f)):
            self.share(f, self.node, "it meets a mixture of units")
        return g

    def share(self, f: Field, node: int, reason: str) -> None:
        """The labels of `f` belong to every part, because of `node` (an index, or -1 for the graph itself)."""
        if f.size > 1 or f.flat[0] != SHARED:
            self.pins.append((f, node, reason))

    def root(self, f: Field, node: int) -> None:
        """`f` is where units come into being: the output axis of a contraction at `node`."""
        self.roots.append((f, node))

    def rooted(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The labels of all roots one behind the other, and the number of the root that each is of."""
        return listed([f for f, _ in self.roots])


def listed(fields: Sequence[Field]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The labels of some fields one behind the other, and the number of the field that each is of."""
    number = np.repeat(np.arange(len(fields), dtype=np.int32), [f.size for f in fields])
    return np.concatenate(fields, axis=None) if fields else number, number


def ascending(values: NDArray[Number]) -> NDArray[Number]:
    """The distinct values of an array in ascending order.

    Labels come in runs, which a stable sort merges: np.unique takes many times as long.
    """
    ordered = np.sort(values, axis=None, kind="stable")
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def cut(values: NDArray[Number], places: NDArray[np.intp]) -> list[NDArray[Number]]:
    """The pieces of a one-dimensional array between places that ascend: np.split takes ten times as long."""
    return [values[start:end] for start, end in pairwise([0, *places.tolist(), len(values)])]


def extent(parts: NDArray[np.int16], fields: Sequence[Field]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The least and the greatest part of any label of each field; `parts` is each label's."""
    if not fields:
        return parts[:0], parts[:0]
    here, starts = parts.take(np.concatenate(fields, axis=None)), np.cumsum([0, *[f.size for f in fields[:-1]]])
    return np.minimum.reduceat(here, starts), np.maximum.reduceat(here, starts)


def flatten(pairs: Iterable[Pair]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The two ends of all ties as flat arrays."""
    left, right = [], []
    for pair in pairs:
        alike = pair[0].shape == pair[1].shape
        for a, b in [pair] if alike else starmap(np.broadcast_arrays, _spanning(*pair)):
            left.append(a.ravel())
            right.append(b.ravel())
    if not left:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return np.concatenate(left), np.concatenate(right)


def _spanning(a: Field, b: Field) -> list[Pair]:
    """Ties of the same labels as that of `a` and `b`, of which each has its own axes: not each label with each."""
    rank = max(a.ndim, b.ndim)
    a, b = align(a, rank), align(b, rank)
    both = varying(a) & varying(b)
    if both in (varying(a), varying(b)) or 0 in (*a.shape, *b.shape):
        return [(a, b)]
    first = first_along(a, both), first_along(b, both)
    return [(a, first[0]), (b, first[1]), first]


def solve(count: int, left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int32]:
    """Unit class of each label: connected components of the ties.

    :param count: number of labels. :param left: int32 [ties]. :param right: int32 [ties].
    :returns: int32 [count]; classes are numbered by their smallest label, so class 0 is the shared one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left)), (left, right)), shape=(count, count))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component  # numbered in the order in which its search, from label 0 on, comes to them


def alike(e: Field, f: Field) -> bool:
    """Whether two fields tell units apart in the same way, place by place."""
    return e.shape == f.shape and np.array_equal(e - e.flat[0], f - f.flat[0])


def first_along(f: Field, keep: Iterable[int]) -> Field:
    """The first label of `f` along all axes but `keep`."""
    kept = frozenset(keep)
    return f[tuple(slice(None) if axis in kept else slice(0, 1) for axis in range(f.ndim))]


def collapse(f: Field, keep: Iterable[int]) -> tuple[Pair, ...]:
    """Ties that make `f` vary along the axes `keep` at most."""
    return ((f, first_along(f, keep)),)


def drop_axes(f: Field, axes: Iterable[int]) -> Field:
    """The field without some axes along which it doesn't vary."""
    gone = frozenset(axes)
    return f.reshape(tuple(size for a, size in enumerate(f.shape) if a not in gone))
