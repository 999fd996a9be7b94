"""Division + placement -> how each initializer is divided and merged, and the plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Field, Fields, cut, varying
from onnxpart.errors import PartitionError
from onnxpart.planning.assign import ANYWHERE, Order, Parts
from onnxpart.planning.division import Division
from onnxpart.planning.partition import Partition
from onnxpart.planning.placement import Placement
from onnxpart.planning.plan import Block, InitializerPlan, Layer, Plan, Ranges, to_ranges

Memo = dict[tuple[bytes, ...], tuple[Ranges | None, ...]]
"""What each part keeps along an axis, by the parts of what lies along it."""


def partition_by(
    division: Division, placement: Placement, layers: Iterable[Layer], order: Order, shares: Sequence[int]
) -> Partition:
    """The partition that a division and its placement amount to, with its plan.

    :param layers: what became of the model's layers. :param order: by which the units were dealt out.
    :param shares: relative size of each part.
    :raises PartitionError: when a part would have nothing of an initializer.
    """
    analysis = division.analysis
    uses, memo = _uses(analysis, placement), Memo()
    initializers = [
        _divide(division, placement, name, uses.get(name, set()), memo)
        for name in analysis.model.initializers
        if name in analysis.consumers and analysis.model.is_float(name)
    ]
    plan = Plan(
        k=division.k,
        order=order.kind,
        seed=order.seed,
        shares=tuple(shares),
        source=analysis.model.name.rsplit("/", 1)[-1],
        digest=analysis.model.digest,
        initializers=tuple(initializers),
        units=_runs(division.parts),
        duplicated_nodes=tuple(sorted(division.duplicated)),
        layers=tuple(layers),
        duplicated=tuple(analysis.ops[i].title for i in sorted(division.duplicated)),
        replicated=tuple(i.name for i in initializers if i.stored == "apart" and not i.constant),
        blocked=tuple(f"{title}: {reason}" for title, reason in analysis.barriers.items()),
        mean=tuple(sorted(_frontier(division, placement), key=lambda n: analysis.producer[n])),
        same_graph="per_part" not in placement.modes,
    )
    return Partition(analysis, plan, division, placement)


def _runs(parts: Parts) -> tuple[tuple[int, int], ...]:
    """Runs of labels of one part, as (part, length)."""
    ends = np.flatnonzero(parts[1:] != parts[:-1]) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [len(parts)]]))
    return tuple(zip(parts[starts].tolist(), lengths.tolist(), strict=True))


def _frontier(division: Division, placement: Placement) -> list[str]:
    """The tensors where the parts' outputs meet linearly, in front of the output functions."""
    analysis = division.analysis
    if division.k > 1:
        return [n for n in placement.mean if _is_frontier(analysis, placement, n)]
    depends = analysis.state.depends_on_parameters
    return [n for n in analysis.model.outputs if n in analysis.producer and n in depends]


def _is_frontier(analysis: Analysis, placement: Placement, name: str) -> bool:
    """Whether a mean is used by something that isn't one: an output function, or the output itself.

    What is inside an If, Loop or Scan can't be seen from outside.
    """
    producer = analysis.producer[name]
    users = analysis.consumers.get(name, [])
    if analysis.model.flat.inside(producer):
        return False
    if placement.modes[producer] == "per_part":
        read = [u for u in users if analysis.ops[u].op_type not in ("Shape", "Size")]
        return name in analysis.model.outputs or any(placement.modes[u] == "after_reduction" for u in read)
    if name in analysis.model.outputs or not users:
        return True
    paths = analysis.model.flat.paths
    return any(paths[u] or not all(n in placement.mean for n in analysis.ops[u].outputs if n) for u in users)


def _uses(analysis: Analysis, placement: Placement) -> dict[str, set[str]]:
    """How each tensor, initializers among them, is used.

    By the mode of the node that it reaches; `reduce` where the parts' contributions meet, `bias` where it is added
    behind the meeting point.
    """
    uses: dict[str, set[str]] = {}
    for index in reversed(range(len(analysis.ops))):
        op = analysis.ops[index]
        outputs = [n for n in op.outputs if n]
        found: set[str]
        if placement.modes[index] != "per_part" and analysis.state.weights_only.issuperset(outputs):
            found = set().union(*(uses.get(n, set()) for n in outputs))
        else:
            found = {placement.modes[index]}
            rule = analysis.rules[index]
            if index in placement.reductions:
                found = {"reduce"}
            elif placement.modes[index] == "after_reduction" and rule is not None and rule.mean == "sum":
                found = {"bias"}
        for name in op.reads:
            uses.setdefault(name, set()).update(found)
    return uses


def _divide(division: Division, placement: Placement, name: str, uses: set[str], memo: Memo) -> InitializerPlan:
    """How an initializer is divided, merged, and held by the duplicated whole; `uses` says how it is used."""
    analysis, scaling = division.analysis, placement.scaling
    shape = analysis.shapes.shape[name]
    fields = analysis.fields(name)
    blocks = _blocks(fields, division.parts, division.k, shape, memo)
    if not all(blocks):
        where = f"{analysis.model.name}: part {blocks.index(())}"
        raise PartitionError(f"{where} would have nothing of {name!r}; try another order or K.")
    divided = division.divided(name)
    reduces = divided and name in scaling.scaled
    if "per_part" in uses and (division.replicated(name) or len(blocks[0]) > 1):
        stored: Literal["once", "sum", "apart"] = "apart"
    elif reduces and "reduce" not in uses and name not in scaling.scaled_upstream(placement.reductions):
        stored = "sum"
    else:
        stored = "once"
    behind = bool(uses & {"bias", "reduce"}) and not divided
    return InitializerPlan(name, shape, blocks, reduces, behind, stored, not analysis.model.trainable(name))


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
    return tuple([(block,) for block in zip(*kept, strict=True)]) if kept else (((),),) * k


def _keeps(here: Sequence[Parts], part: int) -> NDArray[np.bool_]:
    """Which indices along one axis a part keeps, `here` being the parts of each field that varies along it."""
    result: NDArray[np.bool_] = (here[0] == part) | (here[0] == ANYWHERE)
    for more in here[1:]:
        result &= (more == part) | (more == ANYWHERE)
    return result


def _ranges(fields: list[Field], parts: Parts, k: int, memo: Memo) -> tuple[Ranges | None, ...]:
    """For each part what it keeps along the one axis that `fields` vary along; many axes are divided alike."""
    here = [parts.take(f) for f in fields]
    key = tuple([h.tobytes() for h in here])
    if key not in memo:
        kept = [np.flatnonzero(_keeps([h.ravel() for h in here], p)) for p in range(k)]
        memo[key] = tuple(None if len(i) == here[0].size else to_ranges(i) for i in kept)
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
    for run in cut(rows, changes):
        column = columns[run[0]]
        if not column.any():
            continue
        row = None if len(run) == shape[0] else to_ranges(run)
        blocks.append((row, None if column.all() else to_ranges(np.flatnonzero(column)), *rest))
    return tuple(blocks)
