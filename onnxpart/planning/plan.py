"""The frozen Plan: for every initializer and part the kept indices, and how the initializer merges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import pairwise
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxpart.errors import MergeError
from onnxpart.storage.json_text import from_json
from onnxpart.storage.rows import Array, RowIndex, Rows, Stream, windows


def copy_name(name: str, part: int) -> str:
    """Name, in the duplicated whole, of what exists once per part."""
    return f"{name}__part{part}"


def original_name(copy: str) -> str:
    """The name of what a copy is of (see `copy_name`); another name as it is."""
    return re.sub(r"__part\d+$", "", copy)


SCHEMA = 1
OrderKind = Literal["contiguous", "interleaved", "random"]
ORDERS: tuple[OrderKind, ...] = get_args(OrderKind)
METADATA = "onnxpart.plan"
"""Key under which an emitted model carries its plan."""
METADATA_PART = "onnxpart.part"
"""Key under which a part carries its index."""
Ranges = tuple[tuple[int, int, int], ...]
"""Indices along one axis as (start, stop, step)."""
Block = tuple[Ranges | None, ...]
"""Indices along each axis; None: all of them."""
Index = tuple[slice | NDArray[np.int64], ...]
_FEW = 16
"""Up to so many ranges, to join those of each is faster than to compute all at once."""


def to_ranges(indices: NDArray[np.int64]) -> Ranges:
    """Ascending indices as few ranges."""
    if len(indices) == 0:
        return ()
    first, last = int(indices[0]), int(indices[-1])
    if last - first == len(indices) - 1:
        return ((first, last + 1, 1),)
    steps = np.diff(indices)
    if len(indices) > 2 and (steps == steps[0]).all():
        return ((first, last + 1, int(steps[0])),)
    breaks = np.flatnonzero(steps != 1) + 1
    starts = indices[np.concatenate([[0], breaks])]
    stops = indices[np.concatenate([breaks - 1, [len(indices) - 1]])] + 1
    return tuple((int(a), int(b), 1) for a, b in zip(starts, stops, strict=True))


def from_ranges(ranges: Ranges) -> NDArray[np.int64]:
    """Indices of ranges, int64; there may be as many ranges as indices."""
    if 0 < len(ranges) <= _FEW:
        few = [np.arange(*r, dtype=np.int64) for r in ranges]
        return few[0] if len(few) == 1 else np.concatenate(few)
    start, stop, step = np.asarray(ranges, np.int64).reshape(-1, 3).T
    counts = -((start - stop) // step)
    before = np.cumsum(counts) - counts
    result: NDArray[np.int64] = np.repeat(start - before * step, counts)
    return result + np.arange(len(result)) * np.repeat(step, counts)


def _index(block: Block, shape: tuple[int, ...]) -> Index:
    """Slices where ranges allow (they copy nothing), at most one index array, else an open mesh."""
    plain = [slice(None) if r is None else slice(*r[0]) if len(r) == 1 else from_ranges(r) for r in block]
    if sum(not isinstance(i, slice) for i in plain) <= 1:
        return tuple(plain)
    return np.ix_(*[np.arange(n) if r is None else from_ranges(r) for r, n in zip(block, shape, strict=True)])


def _window(ranges: Ranges | None, start: int, stop: int) -> tuple[Ranges | None, int, int]:
    """The indices from `start` to `stop`, counted from there, and where among all they begin and end."""
    if ranges is None:
        return None, start, stop
    kept = from_ranges(ranges)
    first, last = (int(i) for i in np.searchsorted(kept, (start, stop)))
    return to_ranges(kept[first:last] - start), first, last


@dataclass(frozen=True)
class InitializerPlan:
    """How one initializer is divided.

    `shape` in the whole network; `blocks` for each part the blocks that its array is made of, one under the other
    along axis 0, indices ascending; `reduces`: scaled by 1/K, as a weight where the parts' contributions meet, or
    as what leads to one that can't be scaled; `after_reduction`: a parameter behind that point; `constant`: a
    number of the formula, no parameter; `stored` says how the duplicated whole holds it: `once`, `sum` (once,
    contributions unscaled), or `apart` (one array per part).
    """

    name: str
    shape: tuple[int, ...]
    blocks: tuple[tuple[Block, ...], ...]
    reduces: bool = False
    after_reduction: bool = False
    stored: Literal["once", "sum", "apart"] = "once"
    constant: bool = False

    def part_shape(self, part: int) -> tuple[int, ...]:
        """Shape of the part's array."""
        blocks = self.blocks[part]
        sizes = [
            [size if r is None else sum(len(range(*x)) for x in r) for r, size in zip(b, self.shape, strict=True)]
            for b in blocks
        ]
        return (sum(s[0] for s in sizes), *sizes[0][1:]) if self.shape else ()

    def pieces(self, part: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[Index, RowIndex]]:
        """Where the part's blocks are in an array of the whole's shape, and in which rows of the part's.

        :param start: the first row of the whole that is asked for, :param stop: the one behind the last. Places in the
            whole count from there; blocks without such a row are left out.
        """
        if not self.shape:
            yield (), ()
            return
        stop = self.shape[0] if stop is None else stop
        shape, before = (stop - start, *self.shape[1:]), 0
        for block in self.blocks[part]:
            count = self.shape[0] if block[0] is None else sum(len(range(*r)) for r in block[0])
            if shape == self.shape:
                yield _index(block, shape), (slice(before, before + count),)
            else:
                rows, first, last = _window(block[0], start, stop)
                if first < last:
                    yield _index((rows, *block[1:]), shape), (slice(before + first, before + last),)
            before += count

    def counts(self, start: int = 0, stop: int | None = None) -> NDArray[np.int16]:
        """In how many parts each element of some rows of the whole is (see `pieces`)."""
        rows = (len(range(*slice(start, stop).indices(self.shape[0]))), *self.shape[1:]) if self.shape else ()
        result = np.zeros(rows, np.int16)
        for part in range(len(self.blocks)):
            for index, _ in self.pieces(part, start, stop):
                result[index] += 1
        return result

    @cached_property
    def disjoint(self) -> bool:
        """Whether no element is in two parts."""
        if len(self.blocks) == 1:
            return True
        for axis, size in enumerate(self.shape):
            count = np.zeros(size, np.int32)
            for part in self.blocks:
                held = np.zeros(size, bool)
                for block in part:
                    ranges = block[axis]
                    held[slice(None) if ranges is None else from_ranges(ranges)] = True
                count += held
            if count.max(initial=0) <= 1:
                return True
        return False


def slice_array(initializer: InitializerPlan, part: int, array: Array) -> Array:
    """A part's piece of an array of the initializer's shape."""
    pieces = [array[index] for index, _ in initializer.pieces(part)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=0)


def slice_stream(initializer: InitializerPlan, part: int, rows: Rows) -> Stream:
    """A part's piece of an array that is read a few rows at a time."""
    return Stream(initializer.part_shape(part), rows.dtype, partial(_pieces, initializer, part, rows))


def _pieces(initializer: InitializerPlan, part: int, rows: Rows, size: int) -> Iterator[Array]:
    for start, stop in windows(initializer.shape, rows.dtype, size):
        pieces = [index for index, _ in initializer.pieces(part, start, stop)]
        if pieces:
            window = rows[(slice(start, stop),) if initializer.shape else ()]
            yield from (window[index] for index in pieces)


@dataclass(frozen=True)
class Layer:
    """One layer as the plan sees it: units that come into being at one node.

    `units` in the whole network, `classes` of units that move together, `parts` units per part (empty when not
    divided), `reason` why it isn't divided.
    """

    node: str
    units: int
    classes: int
    parts: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Every decision about one model and one K: pure data.

    `units` holds the part of every label as runs (part, length), part -1 being shared: from it and the model emission
    recomputes everything. `initializers` is what merging needs. `duplicated`, `replicated` and `blocked` name what
    could not simply be divided. `mean` are the tensors where the parts' outputs meet linearly, in front of the output
    functions. `same_graph` says whether the duplicated whole is the original graph.
    """

    k: int
    order: str
    seed: int
    shares: tuple[int, ...]
    source: str
    digest: str
    initializers: tuple[InitializerPlan, ...]
    units: tuple[tuple[int, int], ...]
    duplicated_nodes: tuple[int, ...]
    layers: tuple[Layer, ...]
    duplicated: tuple[str, ...]
    replicated: tuple[str, ...]
    blocked: tuple[str, ...]
    mean: tuple[str, ...]
    same_graph: bool
    schema: int = field(default=SCHEMA)

    @cached_property
    def by_name(self) -> Mapping[str, InitializerPlan]:
        """Initializer name -> its plan."""
        return {i.name: i for i in self.initializers}

    def parameters(self, part: int | None = None) -> int:
        """Number of parameters of a part, or of the original network."""
        return sum(prod(i.shape if part is None else i.part_shape(part)) for i in self.initializers if not i.constant)

    def parts_of_labels(self) -> NDArray[np.int16]:
        """Part of every label, int16 [labels]."""
        return np.repeat(np.asarray([p for p, _ in self.units], np.int16), [n for _, n in self.units])

    def to_json(self) -> str:
        """The plan as JSON."""
        return self._json

    @cached_property
    def _json(self) -> str:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps(data, default=vars, separators=(",", ":"))

    def _consistent(self) -> bool:
        """Whether every part has its share of every initializer, within the initializer's shape."""
        return len(self.shares) == self.k >= 1 and all(
            len(initializer.blocks) == self.k
            and all(parts and _fit(parts, initializer.shape) for parts in initializer.blocks)
            for initializer in self.initializers
        )

    @staticmethod
    def from_json(text: str, where: str = "the plan") -> Plan:
        """A plan from JSON.

        :raises MergeError: when the text isn't a plan, or is one of another version.
        """
        try:
            data = from_json(text)
            if data.get("schema") != SCHEMA:
                raise MergeError(
                    f"{where} has plan schema {data.get('schema')}, but this version reads {SCHEMA}; split the model "
                    "again."
                )
            data["initializers"] = tuple(_initializer(i) for i in data["initializers"])
            data["layers"] = tuple(Layer(**{**layer, "parts": tuple(layer["parts"])}) for layer in data["layers"])
            data["units"] = tuple((p, n) for p, n in data["units"])
            for key in ("shares", "duplicated_nodes", "duplicated", "replicated", "blocked", "mean"):
                data[key] = tuple(data[key])
            plan = Plan(**data)
            if not plan._consistent():
                raise ValueError("its numbers contradict each other")
            return plan
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MergeError(f"{where} isn't a plan ({error}); split the model again.") from None


def _fit(blocks: tuple[Block, ...], shape: tuple[int, ...]) -> bool:
    """Whether blocks are within a shape, and their indices ascend."""
    rows = [block[0] if block[0] is not None else ((0, shape[0], 1),) for block in blocks if shape]
    return _ascend(r for ranges in rows for r in ranges) and all(
        ranges is None
        or (_ascend(ranges) and all(0 <= start < stop <= size and step > 0 for start, stop, step in ranges))
        for block in blocks
        for ranges, size in zip(block, shape, strict=True)
    )


def _ascend(ranges: Iterable[tuple[int, int, int]]) -> bool:
    return all(one[1] <= other[0] for one, other in pairwise(ranges))


def _initializer(data: dict[str, Any]) -> InitializerPlan:
    blocks = tuple(
        tuple(tuple(None if r is None else tuple(tuple(x) for x in r) for r in b) for b in part)
        for part in data["blocks"]
    )
    return InitializerPlan(**{**data, "shape": tuple(data["shape"]), "blocks": blocks})
