"""K parts -> fewer and larger ones: the hierarchical training of section 4, one step at a time.

Neighbouring parts merge into a larger one, so any K that isn't prime is a hierarchy: 8 parts merge to 4, these to 2,
and these to the whole, with training in between. Only the first K is chosen when the network is split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.walk import analyse
from onnxpart.emission.part import draft_part
from onnxpart.emission.split import Split
from onnxpart.emission.whole import draft_whole
from onnxpart.errors import UsageError
from onnxpart.frontend.load import load
from onnxpart.ir.arrays import rows_of
from onnxpart.ir.protos import metadata_of
from onnxpart.ir.trainable import FROZEN, PADDING
from onnxpart.merging.cross_weights import ZERO, Edges, fill_edges
from onnxpart.merging.merge import copies, held, merge_streams
from onnxpart.merging.optimizer_state import OptimizerState, merge_states, merge_states_by
from onnxpart.planning.assign import ANYWHERE, Order, Parts
from onnxpart.planning.division import Division, NotAGrid
from onnxpart.planning.initializers import partition_by
from onnxpart.planning.partition import Partition, partition_of
from onnxpart.planning.placement import place
from onnxpart.planning.plan import (
    METADATA,
    Block,
    InitializerPlan,
    Plan,
    Ranges,
    from_ranges,
    slice_stream,
    to_ranges,
)
from onnxpart.storage.draft import Draft, fill
from onnxpart.storage.rows import Array, Rows, Stream

_FINEST = "onnxpart.finest"
"""Key under which the whole of larger parts carries the plan of the first split; its own is that of the larger ones."""


def merge_to(split: Split, parts: Sequence[Mapping[str, Rows]], k: int, edges: Edges | None = None) -> Split:
    """Merge parts into `k` larger ones, which train and merge on like the parts of a split.

    At its linear outputs a larger part computes the mean of the parts that it is made of. Operators that mix units or
    can't be divided exist in it once for each part of the first split. If nothing is trained in between, merging step
    by step gives the same whole as merging at once. Parameters that the network says are frozen keep the weights
    between parts.

    :param split: where the parts come from: a split, or a result of this function.
    :param parts: for each part, in order, initializer name -> array in the part's shape, for all initializers of the
        plan.
    :param k: more than 1, and a divisor of the number of parts.
    :param edges: which weights between the parts in a larger one are kept; None: those of parameters that the network
        says are frozen. The others are zero.
    :returns: a split into `k` parts with the merged weights, and the whole that they merge into. For momenta see
        `merge_states_to`.
    :raises UsageError: when `k` isn't such a number.
    :raises MergeError: when the parts don't fit the plan.
    """
    plan = split.plan
    coarse = coarsen(split.partition, k)
    held(plan, parts)
    first = finest(split)
    size, drafts, model = plan.k // k, [], split.analysis.model
    kept = ZERO.keeping(model.frozen) if edges is None else edges
    for p in range(k):
        inner = within(plan, coarse.plan, p)
        merged = merge_streams(inner, parts[p * size : (p + 1) * size])
        slices = {
            name: slice_stream(coarse.plan.by_name[name], p, rows_of(model, name)).array() for name in kept.kept(plan)
        }
        merged = fill_edges(inner, merged, slices, kept)
        weights = {n: values for n, values in merged.items() if n in plan.by_name and not plan.by_name[n].constant}
        draft = draft_part(coarse, p, weights)
        drafts.append(draft if first.same_graph else _duplicated(first, coarse, p, draft, merged))
    whole = draft_whole(split.partition if first is plan else partition_of(split.analysis, first))
    props = metadata_of(whole.proto)
    own = {METADATA: coarse.plan.to_json(), _FINEST: first.to_json()}
    onnx.helper.set_model_props(whole.proto, props | own)
    return Split(coarse, tuple(drafts), whole)


def merge_states_to(plan: Plan, coarse: Plan, states: Sequence[OptimizerState]) -> list[OptimizerState]:
    """Merge the states of the optimizers of all parts into those of the larger parts.

    :param plan: the plan of the parts.
    :param coarse: the plan of the larger parts (see `coarsen`).
    :param states: of the parts, in order.
    :returns: a state for each larger part, in order.
    :raises MergeError: when the states are of different optimizers, or don't fit the plan.
    """
    size = plan.k // coarse.k
    return [merge_states(within(plan, coarse, p), states[p * size : (p + 1) * size]) for p in range(coarse.k)]


def merge_to_original(split: Split, parts: Sequence[Mapping[str, Rows]]) -> dict[str, Stream]:
    """Merge the parts of a split, or larger ones, into the original graph, a few rows at a time (see `merge.merge`).

    What larger parts hold for each of the smallest parts in them merges as it does from those.

    :raises MergeError: when the parts don't fit the plan.
    """
    plan, first = split.plan, finest(split)
    if first is plan:
        return merge_streams(plan, parts, into="original")
    once, each = [[i.name for i in first.initializers if (i.stored == "once") is held] for held in (True, False)]
    smallest: list[dict[str, Rows]] = []
    for p, part in enumerate(parts):
        inner = within(first, plan, p)
        own = {name: _of_smallest(inner.by_name[name], part) for name in each if copies(part, name)}
        smallest += [{name: rows[n] for name, rows in own.items()} for n in range(inner.k)]
    shared = replace(plan, initializers=tuple(plan.by_name[name] for name in once))
    return merge_streams(shared, parts, into="original") | merge_streams(first, smallest, into="original")


def _of_smallest(initializer: InitializerPlan, part: Mapping[str, Rows]) -> list[Rows]:
    """What the smallest parts in a larger one have of an initializer: copies of it, or slices."""
    own = copies(part, initializer.name)
    return own if len(own) > 1 else [slice_stream(initializer, n, own[0]) for n in range(len(initializer.blocks))]


def merge_states_to_original(
    split: Split, states: Sequence[OptimizerState], *, squared: Collection[str] = ()
) -> OptimizerState:
    """Merge the states of their optimizers likewise (see `optimizer_state.merge_states`).

    :raises MergeError: when the states are of different optimizers, or don't fit the plan.
    """

    def merged(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {name: rows.array() for name, rows in merge_to_original(split, parts).items()}

    return merge_states_by(merged, states, squared)


def finest(split: Split) -> Plan:
    """The plan of the first split; it says how often each thing exists in the whole and in larger parts."""
    props = metadata_of(split.whole_draft.proto)
    return Plan.from_json(props[_FINEST]) if _FINEST in props else split.plan


def _duplicated(finest: Plan, coarse: Partition, part: int, larger: Draft, merged: Mapping[str, Stream]) -> Draft:
    """A larger part; operators that mix units or can't be divided exist once for each of the smallest parts in it."""
    network = analyse(replace(load(larger.model()), parameters=coarse.analysis.model.parameters))
    draft = draft_whole(_inner(network, finest, coarse, part))
    told = {key: value for key, value in metadata_of(draft.proto).items() if key in (FROZEN, PADDING)}
    onnx.helper.set_model_props(draft.proto, metadata_of(larger.proto) | told)
    for tensor in draft.proto.graph.initializer:
        if tensor.name in merged and tensor.name not in finest.by_name:
            fill(tensor, merged[tensor.name].array())
    return draft


def _inner(network: Analysis, finest: Plan, coarse: Partition, part: int) -> Partition:
    """The division of a larger part into the smallest ones in it; `network` is the analysis of the larger part."""
    size = finest.k // coarse.plan.k
    mixes = {name for node in finest.duplicated_nodes for name in coarse.analysis.ops[node].outputs}
    nodes = frozenset(i for i, op in enumerate(network.ops) if not mixes.isdisjoint(op.outputs))
    division = Division(network, _members(network, coarse.division, finest, part), size, nodes)
    shares = finest.shares[part * size : (part + 1) * size]
    return partition_by(division, place(division), (), Order(finest.order, finest.seed), shares)


def _members(network: Analysis, division: Division, finest: Plan, part: int) -> Parts:
    """For each label of a larger part's network: which of the smallest parts in it has the unit."""
    first, source = part * (finest.k // division.k), finest.parts_of_labels()
    parts = np.full(network.labels.count, ANYWHERE, np.int16)
    for name, fields in network.state.fields.items():
        around = division.analysis.fields(name)
        if len(around) != len(fields):
            continue
        try:
            kept = division.kept(name, part)
        except NotAGrid:
            continue
        for mine, theirs in zip(fields, around, strict=True):
            grid = np.ix_(
                *[np.arange(n) if k is None or n == 1 else k for k, n in zip(kept, theirs.shape, strict=True)]
            )
            if theirs[grid].shape == mine.shape:
                here = source[theirs[grid]]
                parts[mine] = np.where(here == ANYWHERE, ANYWHERE, here - first)
    return parts


def coarsen(partition: Partition, k: int) -> Partition:
    """The partition into `k` parts, each of which consists of neighbouring parts of another partition.

    :param k: more than 1, and a divisor of the number of parts, but not that number.
    :returns: a partition that keeps every decision of the first one.
    :raises UsageError: when `k` isn't such a number.
    """
    plan = partition.plan
    if not 1 < k < plan.k or plan.k % k:
        fits = [str(n) for n in range(2, plan.k) if plan.k % n == 0]
        instead = f"choose {' or '.join(fits)}" if fits else "merge them to the whole"
        raise UsageError(f"{plan.k} parts can't be merged into {k}; {instead}.")
    size = plan.k // k
    fine = partition.division
    division = Division(fine.analysis, fine.parts // np.int16(size), k, fine.duplicated)
    layers = [replace(layer, parts=_sums(layer.parts, size)) for layer in plan.layers]
    shares = _sums(plan.shares, size)
    shares = tuple(share // gcd(*shares) for share in shares)
    return partition_by(division, place(division), layers, Order(plan.order, plan.seed), shares)


def _sums(counts: Sequence[int], size: int) -> tuple[int, ...]:
    return tuple(sum(counts[i : i + size]) for i in range(0, len(counts), size))


def within(plan: Plan, coarse: Plan, part: int) -> Plan:
    """The plan by which parts of `plan` merge to part `part` of the plan that it was coarsened to.

    Use it for `merge` only: weights, momenta and second moments merge by it as by any plan.

    :param plan: the plan of the smaller parts.
    :param coarse: the plan of the larger parts (see `coarsen`).
    :param part: the larger part.
    :returns: a plan of ``n = plan.k // coarse.k`` parts: those from ``part * n`` on.
    """
    size = plan.k // coarse.k
    members = slice(part * size, (part + 1) * size)
    initializers = [_inside(plan.by_name[whole.name], whole, part, members) for whole in coarse.initializers]
    return replace(plan, k=size, shares=plan.shares[members], initializers=tuple(initializers), units=(), layers=())


def _inside(fine: InitializerPlan, coarse: InitializerPlan, part: int, members: slice) -> InitializerPlan:
    """An initializer of a larger part, and what the smaller ones in it hold."""
    outer = coarse.blocks[part]
    blocks = tuple(tuple(b for block in own for b in _placed(block, outer, fine.shape)) for own in fine.blocks[members])
    return replace(fine, shape=coarse.part_shape(part), blocks=blocks)


def _placed(block: Block, outer: Sequence[Block], shape: tuple[int, ...]) -> Iterator[Block]:
    """Where a block of the whole is in an array that consists of other blocks, one under the other."""
    if not shape:
        yield block
        return
    rows, before = _indices(block[0], shape[0]), 0
    for around in outer:
        around_rows = _indices(around[0], shape[0])
        found = np.flatnonzero(np.isin(around_rows, rows))
        if len(found):
            axes = zip(block[1:], around[1:], shape[1:], strict=True)
            yield (to_ranges(before + found), *(_positions(mine, theirs, size) for mine, theirs, size in axes))
        before += len(around_rows)


def _positions(mine: Ranges | None, theirs: Ranges | None, size: int) -> Ranges | None:
    """Positions of indices among others, which contain all of them; None: everywhere."""
    kept = np.searchsorted(_indices(theirs, size), _indices(mine, size))
    return None if mine == theirs else to_ranges(kept)


def _indices(ranges: Ranges | None, size: int) -> NDArray[np.int64]:
    return np.arange(size) if ranges is None else from_ranges(ranges)
