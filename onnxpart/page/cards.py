"""Operators -> cards: what the page draws as one, a contraction with what only passes its units on."""

from __future__ import annotations

from math import prod
from typing import Literal

from onnxpart.analysis.analysis import Analysis
from onnxpart.planning.division import WEIGHTED
from onnxpart.planning.partition import Partition

What = Literal["input", "divided", "duplicated", "meeting", "mean", "replicated", "blocked", "shared", "output"]
"""What stands at a card: an input or output of the network; units of which each part has its own (`divided`), or that
each part mixes among its own (`duplicated`); the sum of what the parts contribute (`meeting`), and what is made of it
(`mean`); a copy of all units in every part, each with values of its own (`replicated`), because of an operator without
a rule (`blocked`); or what is the same in every part (`shared`)."""


def what(made: Partition, i: int) -> What:
    """What stands at operator `i`."""
    analysis, division, placement = made.analysis, made.division, made.placement
    if i in analysis.state.barriers:
        return "blocked"
    if i in division.duplicated:
        return "duplicated"
    if division.any_divided([name for name in analysis.ops[i].outputs if name]):
        return "divided"
    if i in division.meetings:
        return "meeting"
    if analysis.state.depends_on_parameters.isdisjoint(analysis.ops[i].outputs):
        return "shared"
    return "mean" if placement.modes[i] == "after_reduction" else "replicated"


def aside(analysis: Analysis) -> frozenset[int]:
    """The operators that work on shapes or weights alone, or make nothing."""
    weights = analysis.state.weights_only
    return frozenset(i for i, op in enumerate(analysis.ops) if all(n in weights for n in op.outputs if n))


def cards(made: Partition) -> list[list[int]]:
    """The operators of each card, in graph order.

    An operator joins the card that all of its activations come from, unless it has weights between units, what stands
    there differs, or it alone reads a tensor and leaves one value of an axis (a global pooling). One that works on
    shapes or weights alone joins the first that reads what it makes, and one that makes nothing (it says which branch
    an If takes) the next.

    :returns: operator indices, ascending within a card; cards in the order of the first that isn't such a one. Each
        operator is in one card.
    """
    analysis = made.analysis
    beside = aside(analysis)
    home: dict[int, int] = {}
    heads: list[list[int]] = []
    for i in range(len(analysis.ops)):
        if i in beside:
            continue
        into = _joins(made, i, home)
        if into is None:
            into = len(heads)
            heads.append([])
        heads[into].append(i)
        home[i] = into
    for i in sorted(beside, reverse=True):
        readers = [home[j] for name in analysis.ops[i].outputs for j in analysis.consumers.get(name, ()) if j in home]
        if not any(analysis.ops[i].outputs) and i + 1 in home:
            readers = [home[i + 1]]
        home[i] = min(readers, default=len(heads))
        if home[i] == len(heads):
            heads.append([])
        heads[home[i]].append(i)
    return [sorted(operators) for operators in heads]


def _joins(made: Partition, i: int, home: dict[int, int]) -> int | None:
    """The card that operator `i` joins; None where it begins one."""
    analysis = made.analysis
    rule = analysis.rules[i]
    if rule is None or rule.kind in WEIGHTED:
        return None
    producers = [analysis.producer.get(name) for name in analysis.activations[i]]
    sources = {None if p is None else home.get(p) for p in producers}
    if len(sources) != 1 or None in sources:
        return None
    last = max(p for p in producers if p is not None)
    if _pools(made, i):
        return None
    return home[last] if what(made, i) == what(made, last) or _sum_goes_on(made, i, last) else None


def _sum_goes_on(made: Partition, i: int, last: int) -> bool:
    """Whether operator `i` only takes on what the parts' contributions add up to."""
    return (what(made, last), what(made, i)) == ("meeting", "mean")


def _pools(made: Partition, i: int) -> bool:
    """Whether operator `i` alone reads a tensor, of which it leaves one value along some axes."""
    analysis = made.analysis
    op, shapes = analysis.ops[i], analysis.shapes.shape
    names = (op.reads[0], next(name for name in op.outputs if name))
    if any(name not in shapes for name in names) or len(analysis.consumers.get(names[0], ())) > 1:
        return False
    before, after = (sum(size > 1 for size in shapes[name]) for name in names)
    return after < before and prod(shapes[names[1]]) < prod(shapes[names[0]])
