"""Analysis + K -> Plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxpart.analyse import Analysis
from onnxpart.assign import ANYWHERE, Infeasible, Order, Parts, assign
from onnxpart.decide import Decision, decide, whole_groups
from onnxpart.errors import PartitionError, UsageError
from onnxpart.labels import Field, flatten, solve, varying
from onnxpart.layout import Layout
from onnxpart.plan import ORDERS, Block, InitializerPlan, Layer, Plan, to_ranges

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
    :raises UsageError: for arguments that make no sense. :raises PartitionError: when nothing can be divided.
    """
    wanted = _check(k, order, shares)
    while True:
        decision = decide(analysis, k)
        try:
            parts = assign(analysis, decision, wanted, Order(order, seed))
        except Infeasible as problem:
            _use_whole_groups(analysis, problem)
            continue
        empty = _empty(analysis, parts, k)
        if empty is None:
            break
        analysis.labels.share(empty, -1, "it would leave a part without units")
    if k > 1 and not (parts >= 0).any():
        raise PartitionError(_nothing(analysis, decision, k))
    mixes = sorted({c.node for c in decision.failed if c.mix})
    layout = Layout(analysis, parts, k, frozenset(mixes))
    return _plan(analysis, decision, layout, (k, order, seed, wanted))


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
    seen: set[int] = set()
    for fields in analysis.state.fields.values():
        for f in fields:
            if id(f) in seen:
                continue
            seen.add(id(f))
            here = parts[f]
            if (here == ANYWHERE).any():
                continue
            if len(np.unique(here)) < k:
                return f
    return None


def _nothing(analysis: Analysis, decision: Decision, k: int) -> str:
    reasons = list(dict.fromkeys(layer.reason for layer in _layers(analysis, decision, None, k)))
    why = "; ".join(reasons[:3]) or "no contraction makes hidden units"
    return f"{analysis.model.name}: no layer can be divided into {k} parts ({why}); try a smaller K or another model."


def _plan(analysis: Analysis, decision: Decision, layout: Layout, asked: tuple[int, str, int, tuple[int, ...]]) -> Plan:
    k, order, seed, shares = asked
    uses = _uses(analysis, layout)
    initializers = [
        _divide(analysis, layout, name, uses.get(name, set()))
        for name in analysis.model.initializers
        if name in analysis.consumers and analysis.model.is_float(name)
    ]
    replicated = [i.name for i in initializers if i.stored == "apart"]
    ends = [n for n in layout.mean if _is_frontier(analysis, layout, n)]
    return Plan(
        k=k,
        order=order,
        seed=seed,
        shares=shares,
        source=analysis.model.name.rsplit("/", 1)[-1],
        digest=analysis.model.digest,
        initializers=tuple(initializers),
        units=_runs(layout.parts),
        duplicated_nodes=tuple(sorted(layout.duplicated)),
        layers=tuple(_layers(analysis, decision, layout.parts, k)),
        duplicated=tuple(analysis.ops[i].title for i in sorted(layout.duplicated)),
        replicated=tuple(replicated),
        blocked=tuple(f"{title}: {reason}" for title, reason in analysis.barriers.items()),
        mean=tuple(sorted(ends, key=lambda n: analysis.producer[n])),
    )


def _runs(parts: Parts) -> tuple[tuple[int, int], ...]:
    ends = np.flatnonzero(np.diff(parts)) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [len(parts)]]))
    return tuple((int(parts[s]), int(n)) for s, n in zip(starts, lengths, strict=True))


def _is_frontier(analysis: Analysis, layout: Layout, name: str) -> bool:
    """Whether a mean is used by something that isn't one: an output function, or the output itself."""
    producer = analysis.producer[name]
    users = analysis.consumers.get(name, [])
    if layout.modes[producer] == "lanes":
        return name in analysis.model.outputs or any(layout.modes[u] == "tail" for u in users)
    if name in analysis.model.outputs or not users:
        return True
    return any(not all(n in layout.mean for n in analysis.ops[u].node.output if n) for u in users)


def _uses(analysis: Analysis, layout: Layout) -> dict[str, set[str]]:
    """How each initializer is used.

    By the mode of the node that it reaches; `reduce` where the parts' contributions meet, `lane-reduce` where units
    meet in a node that exists once per part, `bias` where it is added behind the meeting point.
    """
    uses: dict[str, set[str]] = {}
    through: dict[str, set[str]] = {}
    for index in reversed(range(len(analysis.ops))):
        op = analysis.ops[index]
        pure = all(n in analysis.state.pure for n in op.node.output if n)
        found: set[str]
        if pure and index not in layout.duplicated:
            found = set().union(*(through.get(n, set()) for n in op.node.output if n))
        else:
            found = {layout.modes[index]}
            rule = analysis.rules[index]
            if index in layout.reductions:
                found = {"reduce"}
            elif layout.modes[index] == "tail" and rule is not None and rule.linear == "sum":
                found = {"bias"}
            elif layout.modes[index] == "lanes" and layout.is_reduction(index):
                found = {"lanes", "lane-reduce"}
        for name in analysis.inputs(index):
            through.setdefault(name, set()).update(found)
            if name in analysis.model.initializers:
                uses.setdefault(name, set()).update(found)
    return uses


def _divide(analysis: Analysis, layout: Layout, name: str, uses: set[str]) -> InitializerPlan:
    shape = tuple(analysis.model.initializers[name].dims)
    fields = analysis.fields(name)
    blocks = tuple(_blocks(fields, layout.parts, p, shape) for p in range(layout.k))
    divided = layout.divided(name)
    reduces = divided and ("reduce" in uses or "lane-reduce" in uses)
    if "lanes" in uses and (layout.replicated(name) or len(blocks[0]) > 1):
        stored: Literal["once", "sum", "apart"] = "apart"
    elif reduces and "reduce" not in uses:
        stored = "sum"
    else:
        stored = "once"
    tail = bool(uses & {"bias", "reduce"}) and not divided
    return InitializerPlan(name, shape, blocks, reduces, tail, stored, not analysis.model.trainable(name))


def _blocks(fields: Iterable[Field], parts: Parts, part: int, shape: tuple[int, ...]) -> tuple[Block, ...]:
    """Blocks of an initializer that a part keeps: one, or one per run of rows with the same columns."""
    kept: list[NDArray[np.bool_]] = [np.ones(n, bool) for n in shape]
    grouped: Field | None = None
    for f in fields:
        here = parts[f]
        mask = (here == part) | (here == ANYWHERE)
        axes = sorted(varying(f))
        if len(axes) == 2:
            grouped = f
            continue
        if axes:
            kept[axes[0]] &= mask.reshape(-1)
    if grouped is None:
        return (tuple(None if m.all() else to_ranges(np.flatnonzero(m)) for m in kept),)
    here = parts[grouped]
    columns = ((here == part) | (here == ANYWHERE)).reshape(shape[:2])
    rows = np.flatnonzero(kept[0])
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
    result = []
    seen: set[int] = set()
    free: NDArray[np.int32] | None = None
    for i, (f, node) in enumerate(analysis.labels.roots):
        title = analysis.ops[node].title
        labels = f.ravel()
        classes = decision.classes[labels]
        mine = labels[(classes > 0) & (decision.home[classes] == i)]
        if len(mine) and parts is not None:
            counts = tuple(int((parts[mine] == p).sum()) for p in range(k))
            result.append(Layer(title, len(mine), len(np.unique(decision.classes[mine])), counts))
        if (classes == 0).any():
            if free is None:
                free = _free(analysis)
            kinds = frozenset(free[labels[classes == 0]].tolist())
            if kinds <= seen:
                continue
            seen |= kinds
            units = int((classes == 0).sum())
            result.append(Layer(title, units, len(kinds), (), _reason(analysis, decision, free, kinds, i, k)))
    return result


def _free(analysis: Analysis) -> NDArray[np.int32]:
    """Classes as they would be if nothing were shared by decree: to tell reasons apart."""
    left, right = flatten(analysis.labels.ties)
    return solve(analysis.labels.count, left, right)


def _reason(
    analysis: Analysis, decision: Decision, free: NDArray[np.int32], kinds: frozenset[int], layer: int, k: int
) -> str:
    if layer in decision.narrow:
        return f"its {len(kinds)} unit{'s' if len(kinds) > 1 else ''} can't be divided into {k} parts"
    wanted = np.asarray(sorted(kinds))
    for f, _, reason in analysis.labels.pins:
        if reason and np.isin(free[f.ravel()], wanted).any():
            return reason
    for choice in decision.failed:
        for pairs in choice.alternatives:
            if choice.drop is None and any(np.isin(free[a.ravel()], wanted).any() for a, _ in pairs):
                return f"{choice.reason} ({analysis.ops[choice.node].title})"
    return "it is tied to what every part needs"
