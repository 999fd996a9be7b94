"""Analysis + K -> Plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxpart.analyse import Analysis
from onnxpart.assign import ANYWHERE, Infeasible, Order, Parts, assign
from onnxpart.decide import Decision, decide, whole_groups
from onnxpart.errors import PartitionError, UsageError
from onnxpart.labels import Choice, Field, Fields, extent, listed, varying
from onnxpart.layout import Layout
from onnxpart.plan import ORDERS, Block, InitializerPlan, Layer, Plan, Ranges, to_ranges
from onnxpart.wishes import Classes

Memo = dict[tuple[bytes, ...], tuple[Ranges | None, ...]]
"""What each part keeps along an axis, by the parts of what lies along it."""

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
    wanted = _check(k, order, shares)
    trial, decision, parts = settle(analysis, wanted, Order(order, seed))
    if k > 1 and not (parts >= 0).any():
        raise PartitionError(_nothing(trial, decision, k))
    layout = Layout(analysis, parts, k, frozenset(c.node for c in duplicated(decision, parts)))
    _refuse_meanless(layout)
    return plan_of(analysis, layout, _layers(trial, decision, parts, k), Order(order, seed), wanted)


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


def _refuse_meanless(layout: Layout) -> None:
    """Refuse outputs that every part has its own of and that have no mean.

    :raises PartitionError: it names the last values in front of one that have a mean.
    """
    analysis = layout.analysis
    made = ((n, analysis.producer[n]) for n in analysis.model.outputs if n in analysis.producer)
    name = next((n for n, i in made if layout.modes[i] == "lanes" and layout.no_mean(n)), None)
    if name is None:
        return
    found, seen, waiting = list[str](), {name}, deque([name])
    while waiting:
        for read in analysis.ops[analysis.producer[waiting.popleft()]].reads:
            producer = analysis.producer.get(read)
            if producer is None or read in seen or read not in analysis.state.trained:
                continue
            seen.add(read)
            inside = analysis.model.flat.inside(producer)
            if inside or read in analysis.state.pure or read not in analysis.shapes.shape or layout.no_mean(read):
                waiting.append(read)
            else:
                found.append(read)
    raise PartitionError(
        f"{analysis.model.name}: each part has its own {name!r}, and these have no mean, as they "
        f"{layout.no_mean(name)}; train on what comes before: --outputs {','.join(found)}."
    )


def _copy(analysis: Analysis) -> Analysis:
    """An analysis to which one plan may add what its K needs shared, without the next plan seeing it."""
    labels = analysis.labels
    own = replace(labels, pins=[*labels.pins], choices=[*labels.choices], groups=[*labels.groups])
    return replace(analysis, state=replace(analysis.state, labels=own))


def _check(k: int, order: str, shares: Sequence[int] | None) -> tuple[int, ...]:
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
    """Replace the wish for equal shares of each group by whole groups; next time around, share the groups' units."""
    for g in {id(g): g for g in problem.groups}.values():
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
    for f, least, most in zip(fields, *extent(parts, fields), strict=True):
        if least == ANYWHERE:
            continue
        if (least, most) != (0, k - 1) or (k > 2 and not np.bincount(parts[f].ravel(), minlength=k).all()):
            return f
    return None


def _nothing(analysis: Analysis, decision: Decision, k: int) -> str:
    reasons = list(dict.fromkeys(layer.reason for layer in _layers(analysis, decision, None, k)))
    if not reasons:
        reasons = [f"{title}: {reason}" for title, reason in analysis.barriers.items()]
    why = "; ".join(reasons[:3]) or "no contraction makes hidden units"
    return f"{analysis.model.name}: no layer can be divided into {k} parts ({why}); try a smaller K or another model."


def plan_of(analysis: Analysis, layout: Layout, layers: Iterable[Layer], order: Order, shares: Sequence[int]) -> Plan:
    """The plan that a layout amounts to; the analysis keeps both."""
    k = layout.k
    uses, memo = _uses(analysis, layout), Memo()
    initializers = [
        _divide(analysis, layout, name, uses.get(name, set()), memo)
        for name in analysis.model.initializers
        if name in analysis.consumers and analysis.model.is_float(name)
    ]
    replicated = [i.name for i in initializers if i.stored == "apart"]
    if k == 1:
        ends = [n for n in analysis.model.outputs if n in analysis.producer and n in analysis.state.trained]
    else:
        ends = [n for n in layout.mean if _is_frontier(analysis, layout, n)]
    made = Plan(
        k=k,
        order=order.kind,
        seed=order.seed,
        shares=tuple(shares),
        source=analysis.model.name.rsplit("/", 1)[-1],
        digest=analysis.model.digest,
        initializers=tuple(initializers),
        units=_runs(layout.parts),
        duplicated_nodes=tuple(sorted(layout.duplicated)),
        layers=tuple(layers),
        duplicated=tuple(analysis.ops[i].title for i in sorted(layout.duplicated)),
        replicated=tuple(replicated),
        blocked=tuple(f"{title}: {reason}" for title, reason in analysis.barriers.items()),
        mean=tuple(sorted(ends, key=lambda n: analysis.producer[n])),
        same_graph="lanes" not in layout.modes,
    )
    analysis.layout = made, layout
    return made


def _runs(parts: Parts) -> tuple[tuple[int, int], ...]:
    ends = np.flatnonzero(parts[1:] != parts[:-1]) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [len(parts)]]))
    return tuple(zip(parts[starts].tolist(), lengths.tolist(), strict=True))


def _is_frontier(analysis: Analysis, layout: Layout, name: str) -> bool:
    """Whether a mean is used by something that isn't one: an output function, or the output itself.

    What is inside an If, Loop or Scan can't be seen from outside.
    """
    producer = analysis.producer[name]
    users = analysis.consumers.get(name, [])
    if analysis.model.flat.inside(producer):
        return False
    if layout.modes[producer] == "lanes":
        read = [u for u in users if analysis.ops[u].op_type not in ("Shape", "Size")]
        return name in analysis.model.outputs or any(layout.modes[u] == "tail" for u in read)
    if name in analysis.model.outputs or not users:
        return True
    paths = analysis.model.flat.paths
    return any(paths[u] or not all(n in layout.mean for n in analysis.ops[u].outputs if n) for u in users)


def _uses(analysis: Analysis, layout: Layout) -> dict[str, set[str]]:
    """How each tensor, initializers among them, is used.

    By the mode of the node that it reaches; `reduce` where the parts' contributions meet, `bias` where it is added
    behind the meeting point.
    """
    uses: dict[str, set[str]] = {}
    for index in reversed(range(len(analysis.ops))):
        op = analysis.ops[index]
        outputs = [n for n in op.outputs if n]
        found: set[str]
        if layout.modes[index] != "lanes" and analysis.state.pure.issuperset(outputs):
            found = set().union(*(uses.get(n, set()) for n in outputs))
        else:
            found = {layout.modes[index]}
            rule = analysis.rules[index]
            if index in layout.reductions:
                found = {"reduce"}
            elif layout.modes[index] == "tail" and rule is not None and rule.linear == "sum":
                found = {"bias"}
        for name in op.reads:
            uses.setdefault(name, set()).update(found)
    return uses


def _divide(analysis: Analysis, layout: Layout, name: str, uses: set[str], memo: Memo) -> InitializerPlan:
    shape = analysis.shapes.shape[name]
    fields = analysis.fields(name)
    blocks = _blocks(fields, layout.parts, layout.k, shape, memo)
    if not all(blocks):
        where = f"{analysis.model.name}: part {blocks.index(())}"
        raise PartitionError(f"{where} would have nothing of {name!r}; try another order or K.")
    divided = layout.divided(name)
    reduces = divided and name in layout.scaled
    if "lanes" in uses and (layout.replicated(name) or len(blocks[0]) > 1):
        stored: Literal["once", "sum", "apart"] = "apart"
    elif reduces and "reduce" not in uses and name not in layout.divided_ahead(layout.reductions):
        stored = "sum"
    else:
        stored = "once"
    tail = bool(uses & {"bias", "reduce"}) and not divided
    return InitializerPlan(name, shape, blocks, reduces, tail, stored, not analysis.model.trainable(name))


def _blocks(fields: Fields, parts: Parts, k: int, shape: tuple[int, ...], memo: Memo) -> tuple[tuple[Block, ...], ...]:
    """For each part the blocks of an initializer that it keeps: one, or one per run of rows with the same columns."""
    along: dict[int, list[Field]] = {}
    grouped: Field | None = None
    for f in fields:
        axes = varying(f)
        if len(axes) == 2:
            grouped = f
        else:
            for axis in axes:
                along.setdefault(axis, []).append(f)
    if grouped is not None:
        return tuple(_grouped_blocks(grouped, along.get(0, []), parts, p, shape) for p in range(k))
    kept = [_ranges(along[axis], parts, k, memo) if axis in along else (None,) * k for axis in range(len(shape))]
    return tuple((block,) for block in zip(*kept, strict=True)) if kept else (((),),) * k


def _keeps(here: Sequence[Parts], part: int) -> NDArray[np.bool_]:
    """Which indices along one axis a part keeps, `here` being the parts of each field that varies along it."""
    result: NDArray[np.bool_] = (here[0] == part) | (here[0] == ANYWHERE)
    for more in here[1:]:
        result &= (more == part) | (more == ANYWHERE)
    return result


def _ranges(fields: list[Field], parts: Parts, k: int, memo: Memo) -> tuple[Ranges | None, ...]:
    """For each part what it keeps along the one axis that `fields` vary along; many axes are divided alike."""
    here = [parts.take(f.ravel()) for f in fields]
    key = tuple(h.tobytes() for h in here)
    if key not in memo:
        kept = [np.flatnonzero(_keeps(here, p)) for p in range(k)]
        memo[key] = tuple(None if len(i) == len(here[0]) else to_ranges(i) for i in kept)
    return memo[key]


def _grouped_blocks(
    grouped: Field, others: list[Field], parts: Parts, part: int, shape: tuple[int, ...]
) -> tuple[Block, ...]:
    """Blocks of a grouped operator's weight: the columns that belong to a part depend on the row."""
    here = parts[grouped]
    columns = ((here == part) | (here == ANYWHERE)).reshape(shape[:2])
    rows = np.flatnonzero(_keeps([parts.take(f.ravel()) for f in others], part)) if others else np.arange(shape[0])
    changes = np.flatnonzero((columns[rows][1:] != columns[rows][:-1]).any(axis=1)) + 1
    blocks = []
    rest: tuple[None, ...] = (None,) * (len(shape) - 2)
    for run in np.split(rows, changes):
        column = columns[run[0]]
        if not column.any():
            continue
        row = None if len(run) == shape[0] else to_ranges(run)
        blocks.append((row, None if column.all() else to_ranges(np.flatnonzero(column)), *rest))
    return tuple(blocks)


def _layers(analysis: Analysis, decision: Decision, parts: Parts | None, k: int) -> list[Layer]:
    """All layers in graph order, with what became of them."""
    labels, root = analysis.labels.rooted()
    classes, count = decision.classes.take(labels), len(analysis.labels.roots)
    mine, shared = np.flatnonzero(decision.home.take(classes) == root), np.flatnonzero(classes == 0)
    held = np.zeros(len(decision.home), bool)
    held[classes[mine]] = True
    moving = np.bincount(decision.home[held], minlength=count)
    dealt = None if parts is None else _by_number(parts[labels[mine]], root[mine], count)
    free = _by_number(decision.free[labels[shared]], root[shared], count)
    reasons, first = _reasons(analysis, decision)
    result = []
    seen: set[int] = set()
    for i, (_, node) in enumerate(analysis.labels.roots):
        title = analysis.ops[node].title
        if dealt is not None and len(dealt[i]):
            counts = tuple(np.bincount(dealt[i], minlength=k).tolist())
            result.append(Layer(title, len(dealt[i]), int(moving[i]), counts))
        if len(free[i]):
            kinds = frozenset(free[i].tolist())
            if kinds <= seen:
                continue
            seen |= kinds
            reason = reasons[first[list(kinds)].min()]
            if i in decision.narrow:
                reason = f"its {len(kinds)} unit{'s' if len(kinds) > 1 else ''} can't be divided into {k} parts"
            result.append(Layer(title, len(free[i]), len(kinds), (), reason))
    return result


def _by_number(values: Parts | Classes, number: Classes, count: int) -> list[NDArray[Any]]:
    """Values by the number of each, which ascends and is below `count`."""
    return np.split(values, np.searchsorted(number, np.arange(1, count)))


def _reasons(analysis: Analysis, decision: Decision) -> tuple[list[str], NDArray[np.int32]]:
    """Why units are undivided: the reasons, and for each free class the index of the first that holds for it."""
    found = [(reason, f) for f, _, reason in analysis.labels.pins if reason]
    for choice in decision.failed:
        if choice.drop is None:
            reason = f"{choice.reason} ({analysis.ops[choice.node].title})"
            found += [(reason, f) for pairs in choice.alternatives for f, _ in pairs]
    first = np.full(decision.free.max() + 1, len(found), np.int32)
    labels, number = listed([f for _, f in found])
    np.minimum.at(first, decision.free.take(labels), number)
    return [*(reason for reason, _ in found), "it is tied to what every part needs"], first
