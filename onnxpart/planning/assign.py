"""Unit classes -> parts: balanced, in the order asked for, with every group of a grouped operator divided alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Groups, ascending, cut
from onnxpart.planning.balance import balance, quotas
from onnxpart.planning.soft_ties import Classes
from onnxpart.planning.unit_classes import Decision, held_classes, selections

Parts = NDArray[np.int16]
ANYWHERE = -1
"""The part of what is shared."""


class Infeasible(Exception):
    """Grouped operators whose groups can't all be divided alike."""

    def __init__(self, groups: list[Groups]) -> None:
        super().__init__()
        self.groups = groups


@dataclass(frozen=True)
class Order:
    """How the classes of a layer are laid out over the parts."""

    kind: str
    seed: int

    def deal(self, counts: Sequence[int], salt: int) -> NDArray[np.int16]:
        """Part of each of some classes; `counts` go to each part, and `salt` makes random orders differ."""
        parts = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
        if self.kind == "interleaved":
            place = np.concatenate([(np.arange(n) + 0.5) / n if n else np.zeros(0) for n in counts])
            parts = parts[np.argsort(place, kind="stable")]
        elif self.kind == "random":
            parts = np.random.default_rng((self.seed, salt)).permutation(parts)
        return parts


def assign(analysis: Analysis, decision: Decision, shares: Sequence[int], order: Order) -> Parts:
    """Part of every label (ANYWHERE: shared).

    :returns: int16 [labels]; each layer's classes are divided in proportion to `shares`, within one class.
    :raises Infeasible: when grouped operators can't be divided alike.
    """
    classes, home = decision.classes, decision.home
    part = np.full(classes.max() + 1, ANYWHERE, np.int16)
    held = held_classes(classes)
    cells = _Cells(analysis, classes, home, held)
    load = [0.0] * len(shares)
    counts = cells.counts(shares)
    layers = cut(np.arange(len(cells.home)), np.flatnonzero(np.diff(cells.home)) + 1)
    for members in layers:
        owed = [0] * len(shares)
        for cell in members.tolist():
            fixed = counts.get(cell)
            size = len(cells.members[cell])
            relative = [v / s for v, s in zip(load, shares, strict=True)]
            n = quotas(size, shares, owed, relative) if fixed is None else fixed
            owed = [o + size * s - sum(shares) * c for o, s, c in zip(owed, shares, n, strict=True)]
            part[cells.members[cell]] = order.deal(n, int(cells.members[cell][0]))
            load = [v + c / size for v, c in zip(load, n, strict=True)]
    return part.take(classes)


def _whole(groups: Classes) -> bool:
    """Whether the units of every group are in one class [groups, units]."""
    return bool((groups == groups[:, :1]).all())


def apart(inputs: Classes, outputs: Classes) -> bool:
    """Whether units of a group would be in a part without its inputs, which what else ties them leaves in one."""
    if not inputs.any() or not _whole(inputs):
        return False
    return not (_whole(outputs) and np.array_equal(inputs[:, 0], outputs[:, 0]))


class _Cells:
    """Interchangeable classes: of the same layer, in the same pieces, and held by the same groups."""

    def __init__(self, analysis: Analysis, classes: Classes, home: Classes, held: NDArray[np.int32]) -> None:
        self.bins: list[tuple[Groups, int]] = []
        """The operator of each group, and which side of it the group is on."""
        rows: list[NDArray[np.int64]] = []
        columns: list[NDArray[np.int64]] = []
        self._collect(analysis, classes, rows, columns)
        generator = np.random.default_rng(0)
        random = generator.integers(1, 2**62, max(len(self.bins), 1), dtype=np.uint64)
        groups, pieces = np.zeros((2, len(held)), np.uint64)
        if self.bins:
            row, column = np.concatenate(rows), np.concatenate(columns)
            np.add.at(groups, np.searchsorted(held, row), random[column])
        for f in selections(analysis):
            found = ascending(classes.take(f))
            found = found[found > 0]
            pieces[np.searchsorted(held, found)] += generator.integers(1, 2**62, dtype=np.uint64)
        order = np.lexsort((pieces, groups, home[held]))
        sorted_keys = [key[order] for key in (home[held], groups, pieces)]
        changes = np.flatnonzero(np.any([key[1:] != key[:-1] for key in sorted_keys], axis=0)) + 1
        self.members: list[NDArray[np.int32]] = cut(held[order], changes) if len(held) else []
        first = np.asarray([members[0] for members in self.members], np.int32)
        self.home = home[first]
        if self.bins:
            from scipy.sparse import coo_array, csr_array

            held_by = coo_array((np.ones(len(row), np.int64), (row, column)), shape=(len(home), len(self.bins)))
            self.matrix = csr_array(held_by)[first]

    def _collect(
        self,
        analysis: Analysis,
        classes: Classes,
        rows: list[NDArray[np.int64]],
        columns: list[NDArray[np.int64]],
    ) -> None:
        """Add a bin for each group, and to `rows` and `columns` the classes that it holds and the bin's number.

        :raises Infeasible: when groups are torn (see `apart`), or differ in their number of divided units.
        """
        groups = analysis.labels.groups
        torn = [g for g in groups if g.inputs is not None and apart(classes[g.inputs], classes[g.outputs])]
        if torn:
            raise Infeasible(torn)
        sides = [(g, side) for g in groups for side in (g.inputs, g.outputs) if side is not None]
        for number, (g, side) in enumerate(sides):
            here = classes[side]
            if not here.any() or _whole(here):
                continue
            if len(np.unique((here > 0).sum(axis=1))) > 1:
                raise Infeasible([g])
            for one in here:
                found = one[one > 0].astype(np.int64)
                rows.append(found)
                columns.append(np.full(len(found), len(self.bins), np.int64))
                self.bins.append((g, number))

    def counts(self, shares: Sequence[int]) -> dict[int, list[int]]:
        """For each cell that a group holds, how many of its classes each part gets."""
        if not self.bins:
            return {}
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        cells, bins = self.matrix.shape
        coo = self.matrix.tocoo()
        sides = np.asarray([side for _, side in self.bins])
        row = np.concatenate([coo.row, cells + np.arange(bins)])
        column = np.concatenate([coo.col + cells, cells + bins + sides])
        size = cells + bins + int(sides.max()) + 1
        joint = coo_array((np.ones(len(row), np.int8), (row, column)), shape=(size, size))
        _, component = connected_components(joint, directed=False)
        held = np.unique(coo.row)
        result: dict[int, list[int]] = {}
        for c in np.unique(component[held]):
            members = np.flatnonzero(component[:cells] == c)
            holders = np.flatnonzero(component[cells : cells + bins] == c)
            result.update(self._divide(members, holders, shares))
        return result

    def _divide(
        self, members: NDArray[np.int64], holders: NDArray[np.int64], shares: Sequence[int]
    ) -> dict[int, list[int]]:
        """Counts for cells that groups tie to one another."""
        counts = balance(
            [len(self.members[m]) for m in members],
            self.matrix[members][:, holders].toarray(),
            [self.bins[h][1] for h in holders],
            shares,
        )
        if counts is None:
            raise Infeasible([self.bins[h][0] for h in holders])
        return {int(m): [int(v) for v in row] for m, row in zip(members, counts, strict=True)}
