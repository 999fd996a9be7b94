"""Analysis + K -> Plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Choice, Field, each_once, extent
from onnxpart.errors import PartitionError, UsageError, check_seed
from onnxpart.planning.assign import ANYWHERE, Infeasible, Order, Parts, assign
from onnxpart.planning.division import Division
from onnxpart.planning.initializers import partition_by
from onnxpart.planning.layers import layers_of, nothing_divided
from onnxpart.planning.partition import Partition
from onnxpart.planning.placement import Placement, place
from onnxpart.planning.plan import ORDERS, Plan
from onnxpart.planning.unit_classes import Decision, decide, whole_groups

MAX_PARTS = np.iinfo(np.int16).max


def plan(
    analysis: Analysis,
    k: int,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
) -> Plan:
    """Decide which units go to which part.

    :param k: number of parts, at least 1. :param order: contiguous, interleaved or random (with `seed`).
    :param shares: relative sizes of the parts, K positive integers; equal when omitted.
    :returns: the plan; each layer's unit classes are divided in proportion to `shares`, within one class.
    :raises UsageError: for arguments that make no sense. :raises PartitionError: when nothing can be divided, or an
        output can't be averaged.
    """
    return partition(analysis, k, order=order, seed=seed, shares=shares).plan


def partition(
    analysis: Analysis,
    k: int,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
) -> Partition:
    """The plan (see `plan`) with all that follows from it."""
    check_seed(seed)
    wanted = _check(k, order, shares)
    trial, decision, parts = settle(analysis, wanted, Order(order, seed))
    if k > 1 and not (parts >= 0).any():
        raise PartitionError(nothing_divided(trial, decision, k))
    division = Division(analysis, parts, k, frozenset(c.node for c in duplicated(decision, parts)))
    placement = place(division)
    _refuse_meanless(division, placement)
    return partition_by(division, placement, layers_of(trial, decision, parts, k), Order(order, seed), wanted)


def duplicated(decision: Decision, parts: Parts) -> list[Choice]:
    """The mixes that exist once per part: those given up that mix anything divided."""
    mixes = [choice for choice in decision.failed if choice.mix]
    return [c for c in mixes if any((parts.take(f) > ANYWHERE).any() for pair in c.alternatives[0] for f in pair)]


def settle(analysis: Analysis, shares: Sequence[int], order: Order) -> tuple[Analysis, Decision, Parts]:
    """Decide which units every part has and deal out the others, even where nothing can be divided.

    :param shares: relative size of each part.
    :returns: the analysis with what had to be shared for these shares, the decision, and the part of each label.
    """
    k = len(shares)
    trial = _copy(analysis)
    while True:
        decision = decide(trial, k)
        try:
            parts = assign(trial, decision, shares, order)
        except Infeasible as problem:
            _use_whole_groups(trial, problem)
            continue
        empty = _empty(trial, parts, k)
        if empty is None:
            return trial, decision, parts
        trial.labels.share(empty, -1, "it would leave a part without units")


def _refuse_meanless(division: Division, placement: Placement) -> None:
    """Refuse outputs whose values differ from part to part and can't be averaged.

    :raises PartitionError: it names the last values in front of one that have a mean.
    """
    analysis, no_mean = division.analysis, division.no_mean
    made = ((n, analysis.producer[n]) for n in analysis.model.outputs if n in analysis.producer)
    name = next((n for n, i in made if placement.modes[i] == "per_part" and no_mean(n)), None)
    if name is None:
        return
    found, seen, waiting = list[str](), {name}, deque([name])
    while waiting:
        for read in analysis.ops[analysis.producer[waiting.popleft()]].reads:
            producer = analysis.producer.get(read)
            if producer is None or read in seen or read not in analysis.state.depends_on_parameters:
                continue
            seen.add(read)
            inside = analysis.model.flat.inside(producer)
            if inside or read in analysis.state.weights_only or read not in analysis.shapes.shape or no_mean(read):
                waiting.append(read)
            else:
                found.append(read)
    raise PartitionError(
        f"{analysis.model.name}: the parts' values of {name!r} can't be averaged, as they "
        f"{no_mean(name)}; train on what comes before: --outputs {','.join(found)}."
    )


def _copy(analysis: Analysis) -> Analysis:
    """An analysis to which one plan may add what its K needs shared, without the next plan seeing it."""
    labels = analysis.labels
    own = replace(labels, pins=[*labels.pins], choices=[*labels.choices], groups=[*labels.groups])
    return replace(analysis, state=replace(analysis.state, labels=own))


def _check(k: int, order: str, shares: Sequence[int] | None) -> tuple[int, ...]:
    """Check what is asked for.

    :returns: the relative size of each part.
    :raises UsageError: when an argument makes no sense.
    """
    if k < 1:
        raise UsageError(f"K is {k}; ask for at least 1 part.")
    if k > MAX_PARTS:
        raise UsageError(f"K is {k}; ask for at most {MAX_PARTS} parts.")
    if order not in ORDERS:
        raise UsageError(f"the order {order!r} is unknown; choose one of {', '.join(ORDERS)}.")
    if shares is None:
        return (1,) * k
    if len(shares) != k or any(s < 1 for s in shares):
        raise UsageError(f"{len(shares)} shares {list(shares)} for {k} parts; give {k} positive whole numbers.")
    return tuple(shares)


def _use_whole_groups(analysis: Analysis, problem: Infeasible) -> None:
    """Ask for whole groups in place of equal shares of each group; next time around, share the groups' units."""
    for g in each_once(problem.groups):
        if g not in analysis.labels.groups:
            continue
        analysis.labels.groups.remove(g)
        if g.inputs is None:
            analysis.labels.share(g.outputs, g.node, "its groups can't be divided alike")
        else:
            analysis.labels.choices.append(whole_groups(g.node, g.inputs, g.outputs))


def _empty(analysis: Analysis, parts: Parts, k: int) -> Field | None:
    """A field in which some part has no element, or None."""
    fields = analysis.all_fields()
    least, most = (ends.tolist() for ends in extent(parts, fields))
    for f, first, last in zip(fields, least, most, strict=True):
        if first == ANYWHERE:
            continue
        if (first, last) != (0, k - 1) or (k > 2 and not np.bincount(parts[f].ravel(), minlength=k).all()):
            return f
    return None
