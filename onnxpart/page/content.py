"""What the page shows, as plain data: the cards with their units, sizes and reasons, and how they fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from onnxpart.analysis.labels import ByIdentity, Field
from onnxpart.analysis.repeats import Block, Item, fold
from onnxpart.inspection import outcomes
from onnxpart.inspection.sizes import Sizes
from onnxpart.inspection.tie_graph import Cause, Step, Ties, along
from onnxpart.page.cards import What, aside, cards, what
from onnxpart.planning.assign import Order
from onnxpart.planning.partition import Partition
from onnxpart.planning.planner import duplicated

MOST_RUNS = 96
"""Units that lie in more runs than this are drawn sorted by part."""
Run = tuple[int, int]
"""Part (-1: every part) and number of units."""


@dataclass(frozen=True)
class Operator:
    """One operator of a card: its name, type, the names of its outputs and the shape of the first as text."""

    name: str
    op: str
    outputs: tuple[str, ...]
    shape: str


@dataclass(frozen=True)
class Card:
    """What is drawn as one.

    `units` of its first operator's output (0: it has none), in `runs` of units that lie side by side in a part, sorted
    by part where those are too many (not `in_order`); `reads` are cards; `parameters` and `macs` of the whole,
    then of each part; `home` is the card at which its units come into being, -1 for none; `reason` why it is as it is;
    `chain` leads from what is undivided to the `cause`, which is at the card `held` (-1: at none).
    """

    title: str
    op: str
    what: What
    operators: tuple[Operator, ...]
    shape: str
    reads: tuple[int, ...]
    units: int = 0
    runs: tuple[Run, ...] = ()
    in_order: bool = True
    parameters: tuple[int, ...] = ()
    macs: tuple[int, ...] = ()
    initializers: tuple[dict[str, Any], ...] = ()
    home: int = -1
    reason: str = ""
    chain: tuple[dict[str, Any], ...] = ()
    cause: str = ""
    held: int = -1


@dataclass(frozen=True)
class Content:
    """All that the page shows; `items` hold the cards' numbers, folded."""

    model: str
    k: int
    order: str
    shares: tuple[int, ...]
    sizes: dict[str, Any]
    cards: tuple[Card, ...]
    items: tuple[Item, ...]


def content(made: Partition, sizes: Sizes) -> Content:
    """What the page shows of a partition.

    :param sizes: of its plan.
    :returns: cards for inputs, operators and outputs; every operator and initializer of the network is in one.
    """
    found = _Cards(made, sizes).all()
    plan = made.plan
    signatures = [(c.op, c.what, c.shape, c.runs, c.parameters, tuple(o.op for o in c.operators)) for c in found]
    total = {"whole": vars(sizes.whole), "parts": [vars(part) for part in sizes.parts]}
    items = fold(signatures, [card.reads for card in found])
    return Content(Path(made.analysis.model.name).name, plan.k, plan.order, plan.shares, total, tuple(found), items)


def told(card: Card, k: int) -> str:
    """What stands at a card, and how many units each part has where they are divided."""
    counts = [sum(size for part, size in card.runs if part == p) for p in range(k)]
    return f"{card.what}: {' + '.join(map(str, counts))}" if any(counts) else card.what


class _Cards:
    """The cards of a partition: first the inputs, then the operators', then the outputs."""

    def __init__(self, made: Partition, sizes: Sizes) -> None:
        self.made = made
        self.analysis = made.analysis
        self.groups = cards(made)
        self.inputs = {name: n for n, name in enumerate(self.analysis.model.inputs)}
        self.of = {i: n for n, group in enumerate(self.groups, len(self.inputs)) for i in group}
        self.by_title = {self.analysis.ops[i].title: n for i, n in self.of.items()}
        self.aside = aside(self.analysis)
        self.ties = Ties(self.analysis, made.plan.k, made.plan.shares, Order(made.plan.order, made.plan.seed))
        self.macs = {o.node: (o.whole, *o.parts) for o in sizes.operators}
        self.mixes = {c.node: c.reason for c in duplicated(self.ties.decision, made.division.parts)}
        self.held: ByIdentity[Field, tuple[tuple[Step, ...], Cause]] = ByIdentity()
        """The chains found so far."""

    def all(self) -> list[Card]:
        """All cards, in order."""
        made, outputs = self.made, self.analysis.model.outputs
        first = [Card(name, "Input", "input", (), _dims(made, name), ()) for name in self.inputs]
        last = [Card(name, "Output", "output", (), _dims(made, name), self._makers([name])) for name in outputs]
        return [*first, *(self._card(group) for group in self.groups), *last]

    def _card(self, group: Sequence[int]) -> Card:
        """The card of some operators."""
        analysis = self.analysis
        inner = [i for i in group if i not in self.aside]
        head = next(iter(inner or group))
        op, state, number = analysis.ops[head], what(self.made, head), self.of[head]
        output = next(name for name in op.outputs if name)
        own = self._initializers.get(number, [])
        macs = [self.macs[t] for i in group if (t := analysis.ops[i].title) in self.macs]
        reads = self._makers(n for i in inner for n in analysis.activations[i])
        card = Card(
            title=op.node.name or output,
            op=op.op_type,
            what=state,
            operators=tuple(self._operator(i) for i in group),
            shape=_dims(self.made, output),
            reads=tuple(n for n in reads if n != number),
            parameters=tuple(sum(prod(shape) for shape in each) for each in zip(*map(_shapes, own), strict=True)),
            macs=tuple(sum(each) for each in zip(*macs, strict=True)),
            initializers=tuple(own),
            reason=self._reason(head, state),
        )
        f = self._field(output)
        return card if f is None else self._with_units(card, f, output)

    def _with_units(self, card: Card, f: Field, name: str) -> Card:
        """The card with the units of a field of the tensor `name`."""
        units, runs, in_order = self._runs(f)
        card = replace(card, units=units, runs=runs, in_order=in_order, home=self._home(f))
        if all(part >= 0 for part, _ in runs):
            return card
        chain, cause, held = self._chain(f, name)
        return replace(card, chain=chain, cause=cause, held=held)

    def _reason(self, i: int, state: What) -> str:
        """Why an operator has no rule, or is duplicated."""
        if state == "blocked":
            return self.analysis.state.barriers[i]
        return self.mixes.get(i, "") if state == "duplicated" else ""

    def _operator(self, i: int) -> Operator:
        op = self.analysis.ops[i]
        outputs = tuple(name for name in op.outputs if name)
        return Operator(op.node.name, op.op_type, outputs, _dims(self.made, outputs[0]) if outputs else "")

    def _makers(self, names: Iterator[str] | list[str]) -> tuple[int, ...]:
        """The cards at which some tensors come into being, each once."""
        producer = self.analysis.producer
        found = (self.of[producer[n]] if n in producer else self.inputs.get(n) for n in names)
        return tuple(dict.fromkeys(card for card in found if card is not None))

    @cached_property
    def _initializers(self) -> dict[int, list[dict[str, Any]]]:
        """By card: the initializers that it is the first to read, and how they merge."""
        readers: dict[str, int] = {}
        for i, op in enumerate(self.analysis.ops):
            for name in op.reads:
                readers[name] = min(self.of[i], readers.get(name, self.of[i]))
        result: dict[int, list[dict[str, Any]]] = {}
        for row in outcomes.of_initializers(self.made.plan):
            if row["name"] in readers and row["merging"] != "constant":
                result.setdefault(readers[row["name"]], []).append(row)
        return result

    def _field(self, name: str) -> Field | None:
        """The units of a tensor that are drawn: those that are divided if any are, the most of them."""
        fields = self.made.division.divided_fields(name) or self.analysis.fields(name)
        return max(fields, key=lambda f: f.size, default=None)

    def _runs(self, f: Field) -> tuple[int, tuple[Run, ...], bool]:
        """How many units a field has, in which parts they lie, and whether in order: sorted where that is too much."""
        parts = self.made.division.parts.take(f).ravel()
        in_order = int((np.diff(parts) != 0).sum()) < MOST_RUNS
        if not in_order:
            parts = np.sort(parts)
        starts = np.flatnonzero(np.diff(parts, prepend=parts[0] - 1))
        lengths = np.diff(starts, append=len(parts))
        return len(parts), tuple(zip(parts[starts].tolist(), lengths.tolist(), strict=True)), in_order

    def _home(self, f: Field | None) -> int:
        """The card at which the divided units of a field come into being; -1 where there are none."""
        if f is None:
            return -1
        decision = self.ties.decision
        classes = np.unique(decision.classes.take(f))
        homes = decision.home[classes[classes > 0]]
        return self.of[self.ties.trial.labels.roots[int(homes.min())][1]] if len(homes) else -1

    def _chain(self, f: Field, name: str) -> tuple[tuple[dict[str, Any], ...], str, int]:
        """The ties from a field's undivided units to what holds them, that in words, and its card."""
        if f not in self.held:
            labels = np.unique(f)
            self.held[f] = self.ties.chain(labels[self.ties.decision.classes.take(labels) == 0], along(name, f))
        steps, cause = self.held[f]
        told = tuple({**vars(step), "card": self.by_title.get(step.node, -1)} for step in steps)
        outputs = {name: n for n, name in enumerate(self.analysis.model.outputs, len(self.inputs) + len(self.groups))}
        held = outputs.get(cause.node, -1) if cause.kind == "output" else self.by_title.get(cause.node, -1)
        return told, f"{cause.node}: {cause.reason}" if cause.node else cause.reason, held


def _shapes(row: dict[str, Any]) -> list[tuple[int, ...]]:
    """The shapes of an initializer in the whole and in each part."""
    return [row["shape"], *row["parts"]]


def _dims(made: Partition, name: str) -> str:
    """The shape of a tensor as text, `?` where it depends on a symbolic dimension; empty where it isn't known."""
    shapes = made.analysis.shapes
    if name not in shapes.shape:
        return ""
    dims = zip(shapes.shape[name], shapes.dynamic_dims(name), strict=True)
    return f"[{', '.join('?' if dynamic else str(size) for size, dynamic in dims)}]"


def tree(items: Sequence[Item]) -> list[Any]:
    """Items as JSON holds them: numbers, and objects for blocks."""
    return [{**vars(i), "items": tree(i.items)} if isinstance(i, Block) else i for i in items]
