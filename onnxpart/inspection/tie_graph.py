"""The decisions for K as a graph of labels and ties, and the shortest way in it from a unit to what holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import SHARED, Choice, Field, Pair, flatten, varying
from onnxpart.planning.assign import Order
from onnxpart.planning.layers import few_classes
from onnxpart.planning.plan import ORDERS
from onnxpart.planning.planner import settle

Kind = Literal["output", "barrier", "operator", "soft tie", "mix", "narrow", "shared", "input"]
"""What holds units: a graph output; an operator without a rule; one that needs them whole; a soft tie that was given
up; a mix that was duplicated; a layer of fewer than K classes; what every part has; nothing made them here."""


_Edges: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], list[tuple[int, str]]]
"""Both ends of every tie, the number of the tie, and for each number its operator and reason."""
FIRST_ORDER = Order(ORDERS[0], 0)


@dataclass(frozen=True)
class Step:
    """One tie: `node` makes units of `source` and of `target` the same (`reason`: why, where the tie is soft)."""

    node: str
    source: str
    target: str
    reason: str = ""


@dataclass(frozen=True)
class Cause:
    """What keeps units from being divided: at which `node` (or output) and why; `classes` are how many there are."""

    kind: Kind
    node: str
    reason: str
    classes: int | None = None


@dataclass(frozen=True)
class _Ways:
    """Ways to causes: how near each label is (its `place`; the number of labels where no way leads from it), the label
    `before` it as seen from the cause, and the cause `of` each label that one is about.
    """

    place: NDArray[np.int64]
    before: NDArray[np.int32]
    of: dict[int, Cause]


class Ties:
    """What was decided about an analysis for K parts, and what ties its labels to one another.

    `shares` are the relative sizes of the parts, equal when omitted, and `order` is how units are dealt out to them.
    """

    def __init__(
        self, analysis: Analysis, k: int, shares: Sequence[int] | None = None, order: Order = FIRST_ORDER
    ) -> None:
        self.analysis = analysis
        self.k = k
        self.trial, self.decision, self.parts = settle(analysis, shares or (1,) * k, order)

    @cached_property
    def _edges(self) -> _Edges:
        """The ties as they were decided."""
        soft = [*self.decision.granted, *((c, c.otherwise) for c in self.decision.failed)]
        return self._without_dropped(self._tied(soft))

    @cached_property
    def _hard(self) -> _Edges:
        """The ties that are no soft ones."""
        return self._without_dropped(self._tied([]))

    @cached_property
    def _wanted(self) -> _Edges:
        """The ties if no soft one were given up."""
        return self._tied([*self.decision.granted, *((c, c.alternatives[0]) for c in self.decision.failed)])

    def _tied(self, soft: Sequence[tuple[Choice, tuple[Pair, ...]]]) -> _Edges:
        labels = self.trial.labels
        made = [(pair, (node, "")) for pair, node in zip(labels.ties, labels.tied_at, strict=True)]
        made += [(pair, (c.node, c.reason)) for c, pairs in soft for pair in pairs]
        ends = [flatten((pair,)) for pair, _ in made]
        left, right = (np.concatenate([side, *more]) for side, *more in zip(flatten(()), *ends, strict=True))
        number = np.repeat(np.arange(len(made)), [len(side) for side, _ in ends])
        return left, right, number, [origin for _, origin in made]

    def _without_dropped(self, edges: _Edges) -> _Edges:
        """The ties between what are units still."""
        left, right, number, origins = edges
        gone = np.zeros(self.trial.labels.count, bool)
        for choice in self.decision.failed:
            if choice.drop is not None:
                gone[choice.drop.ravel()] = True
        kept = ~(gone[left] | gone[right])
        return left[kept], right[kept], number[kept], origins

    def title(self, node: int) -> str:
        """How an operator is named; the graph itself is -1."""
        return self.analysis.ops[node].title if node >= 0 else "the graph"

    def chain(self, labels: NDArray[np.int32], start: str) -> tuple[tuple[Step, ...], Cause]:
        """The shortest chain of ties from undivided units to what holds them.

        Where they are too few, it is the chain that joins two of them.

        :param labels: of the units, int32; any of them may begin the chain.
        :param start: what they are called.
        :returns: the steps in order, none where nothing is in between; and the cause.
        """
        labels = labels[labels != SHARED]
        if not len(labels):
            return (), Cause("shared", "", "it comes from what every part has")
        for choice in self.decision.failed:
            if choice.drop is not None and np.isin(labels, choice.drop).any():
                return (), Cause("mix" if choice.mix else "soft tie", self.title(choice.node), choice.reason)
        for causes in (self._to_decrees, self._to_silent):
            nearest = labels[np.argmin(causes.place[labels])]
            if causes.place[nearest] < self.trial.labels.count:
                end, steps = self._steps(int(nearest), causes.before, start, self._edges)
                return tuple(steps), causes.of[end]
        return self._joined(labels, start), self._without_decree(labels)

    @cached_property
    def _to_decrees(self) -> _Ways:
        return self._ways(self._decrees)

    @cached_property
    def _to_silent(self) -> _Ways:
        return self._ways(self._silent)

    def _ways(self, causes: Sequence[tuple[Field, Cause]]) -> _Ways:
        """The way from every label to the nearest of some causes."""
        of: dict[int, Cause] = {}
        for f, cause in causes:
            for label in np.unique(f).tolist():
                of.setdefault(label, cause)
        order, before = self._walk(np.fromiter(of, np.int32, len(of)), self._edges)
        place = np.full(self.trial.labels.count, self.trial.labels.count)
        place[order] = np.arange(len(order))
        return _Ways(place, before, of)

    @cached_property
    def _decrees(self) -> list[tuple[Field, Cause]]:
        """Labels that every part must have, and why."""
        found = []
        for f, node, reason in self.trial.labels.pins:
            if node in self.trial.state.barriers:
                found.append((f, Cause("barrier", self.title(node), self.trial.state.barriers[node])))
            elif node < 0 and (output := self._output(f)):
                found.append((f, Cause("output", output, reason)))
            elif reason:
                found.append((f, Cause("operator", self.title(node), reason)))
        return found + [(f, Cause("soft tie", self.title(c.node), c.reason)) for c, f in self.decision.shared]

    @cached_property
    def _silent(self) -> list[tuple[Field, Cause]]:
        """Labels that meet what every part has."""
        meets = "it meets what every part has"
        found = [(f, Cause("shared", self.title(n), meets)) for f, n, reason in self.trial.labels.pins if not reason]
        left, right, number, origins = self._edges
        ties = np.unique(number[(left == SHARED) | (right == SHARED)])
        bounds = zip(np.searchsorted(number, ties), np.searchsorted(number, ties, side="right"), strict=True)
        for tie, (start, stop) in zip(ties, bounds, strict=True):
            ends = np.concatenate([left[start:stop], right[start:stop]])
            found.append((ends[ends != SHARED], Cause("shared", self.title(origins[tie][0]), meets)))
        return found

    def _output(self, f: Field) -> str:
        names: list[str] = self.analysis.model.outputs
        return next((n for n in names if any(g is f for g in self.analysis.fields(n))), "")

    def _walk(self, labels: NDArray[np.int32], edges: _Edges) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Labels in the order of their distance from `labels`, and the one before each on the way."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import breadth_first_order

        left, right, _, _ = edges
        units = (left != SHARED) & (right != SHARED)
        hub = self.trial.labels.count
        ends = np.concatenate([left[units], np.full(len(labels), hub)]), np.concatenate([right[units], labels])
        graph = coo_array((np.ones(len(ends[0]), np.int32), ends), shape=(hub + 1, hub + 1)).tocsr()
        order, before = breadth_first_order(graph, hub, directed=False)
        return order[1:], before

    def _joined(self, labels: NDArray[np.int32], start: str) -> tuple[Step, ...]:
        """The chain of ties that joins two of the `labels`, the farthest from each other; empty where none does.

        Where only soft ties make too few classes of them, one that was wanted is in the chain, even if it was given up.
        """
        edges = self._hard
        order, before = self._walk(labels[:1], edges)
        met = order[np.isin(order, labels)]
        if len(np.unique(self.decision.free[labels])) >= self.k:
            for soft in (self._wanted, self._edges):
                order, by_soft = self._walk(labels[:1], soft)
                apart = order[np.isin(order, labels) & ~np.isin(order, met)]
                if len(apart):
                    met, before, edges = apart, by_soft, soft
                    break
        return tuple(self._steps(int(met[-1]), before, start, edges)[1])

    def _steps(self, label: int, before: NDArray[np.int32], start: str, edges: _Edges) -> tuple[int, list[Step]]:
        """The ties on the way from a label, which is called `start`, to where a walk began, and the label there."""
        left, right, number, origins = edges
        steps: list[Step] = []
        name = start
        while before[label] != len(before) - 1:
            target = int(before[label])
            here = (left == label) & (right == target) | (left == target) & (right == label)
            node, reason = origins[number[np.argmax(here)]]
            steps.append(Step(self.title(node), name, self._name(target), reason))
            label, name = target, steps[-1].target
        return label, steps

    def _name(self, label: int) -> str:
        names, owner = self._owners
        return names[owner[label]] if owner[label] >= 0 else "units of no tensor's own"

    @cached_property
    def _owners(self) -> tuple[list[str], NDArray[np.int32]]:
        """For each label the tensor and axis to name it by, an initializer if it can be; -1 for none."""
        analysis = self.analysis
        names: list[str] = []
        owner = np.full(self.trial.labels.count, -1, np.int32)
        for name in sorted(analysis.state.fields, key=lambda n: n not in analysis.model.initializers):
            for f in analysis.fields(name):
                if (owner[f] < 0).any():
                    owner[f[owner[f] < 0]] = len(names)
                    names.append(along(name, f))
        return names, owner

    def _without_decree(self, labels: NDArray[np.int32]) -> Cause:
        """Why units are undivided that nothing shares: too few of them, or not made by any contraction."""
        roots = self.trial.labels.roots
        reached = np.zeros(self.trial.labels.count, bool)
        reached[self._walk(labels, self._edges)[0]] = True
        home = next((i for i, (f, _) in enumerate(roots) if reached[f].any()), None)
        if home is None:
            return Cause("input", "", "no contraction makes these units")
        classes = self.decision.narrow[home]
        return Cause("narrow", self.title(roots[home][1]), few_classes(classes, self.k), classes)


def along(name: str, f: Field) -> str:
    """How the units of a field of the tensor `name` are called."""
    axes = sorted(varying(f))
    return f"{name} axis {' x '.join(map(str, axes))}" if axes else name
