"""One trained part -> the whole: Net2WiderNet (Chen et al., arXiv:1511.05641) as in section 3.2 of the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import varying
from onnxpart.emission.part import draft_part
from onnxpart.errors import MergeError, UsageError, check_seed
from onnxpart.ir.trainable import FLOATS
from onnxpart.merging.merge import Into, merge_streams, scale, wide
from onnxpart.planning.assign import ANYWHERE
from onnxpart.planning.division import WEIGHTED, Division
from onnxpart.planning.partition import Partition, partition_of
from onnxpart.planning.plan import InitializerPlan, Plan, Ranges, copy_name, from_ranges
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import CHUNK, Array, Rows, Stream, rows_shape, windows

NOISE = 0.02
"""Amplitude of the noise, as a share of the largest magnitude of each parameter (footnote 2 of the paper)."""


def widen(
    analysis: Analysis,
    plan: Plan,
    part: Mapping[str, Array],
    *,
    into: Into = "duplicated",
    noise: float = NOISE,
    seed: int = 0,
) -> dict[str, Array]:
    """Fill the whole with K copies of one trained part, every layer duplicated.

    Each copy of a unit gets 1/K of the unit's outgoing weights. Without noise the duplicated whole computes exactly
    what the part does, and so does the original graph if nothing is duplicated. In the original graph a mix sees the
    copies side by side: LayerNormalization isn't affected, LRN is. Momenta start at zero.

    :param analysis: the analysis of the original network.
    :param plan: the plan that the part was made by.
    :param part: initializer name -> array, all of the part's; it doesn't matter which of the K parts it is.
    :param into: the whole to fill: the duplicated one, or the original graph.
    :param noise: half the width of the uniform noise on what is duplicated, as a share of each parameter's largest
        magnitude; the statistics of batch normalisation get none.
    :param seed: of the noise.
    :returns: initializer name -> array in the whole's shape, as from `merge`.
    :raises UsageError: when the noise or the seed is negative.
    :raises MergeError: when an array is missing or of another shape, or when the parts aren't alike: copies of one part
        fill the places of the others only if every layer divides evenly.
    """
    streams = widen_streams(analysis, plan, part, into=into, noise=noise, seed=seed)
    return {name: widened.array() for name, widened in streams.items()}


def widen_streams(
    analysis: Analysis,
    plan: Plan,
    part: Mapping[str, Rows],
    *,
    into: Into = "duplicated",
    noise: float = NOISE,
    seed: int = 0,
) -> dict[str, Stream]:
    """Fill the whole a few rows at a time (see `widen`).

    :raises UsageError: when the noise or the seed is negative.
    :raises MergeError: when an array is missing or of another shape, or when the parts aren't alike.
    """
    check_seed(seed)
    if not noise >= 0:
        raise UsageError(f"the noise {noise} isn't possible; give 0 or more.")
    parameters = [initializer for initializer in plan.initializers if not initializer.constant]
    missing = next((i.name for i in parameters if i.name not in part), None)
    if missing is not None:
        raise MergeError(f"the part has no initializer {missing!r}; give all of its arrays.")
    partition, statistics = partition_of(analysis, plan), _statistics(analysis)
    check_alike(partition)
    result = merge_streams(plan, [{i.name: part[i.name] for i in parameters}] * plan.k, into=into)
    for number, initializer in enumerate(parameters):
        name = initializer.name
        if _is_grid(initializer) and _shared_out(partition, name):
            result[name] = _tiled(initializer, part[name], into)
        if noise and _copied(initializer) and name not in statistics:
            for p, held in enumerate((name, *(copy_name(name, p) for p in range(plan.k)))):
                if held in result:
                    result[held] = _noisy(result[held], noise, (seed, number, p))
    return result


def _copied(initializer: InitializerPlan) -> bool:
    """Whether the whole holds several copies of an initializer of the part, or of pieces of it."""
    return initializer.stored == "apart" or any(
        ranges is not None for parts in initializer.blocks for block in parts for ranges in block
    )


def _is_grid(initializer: InitializerPlan) -> bool:
    """Whether each part's elements are given by indices along each axis."""
    return bool(initializer.shape) and all(len(blocks) == 1 for blocks in initializer.blocks)


def check_alike(partition: Partition) -> None:
    """Check that the parts differ only in the values of parameters, so that copies of one can fill the whole.

    :raises MergeError: when they do.
    """
    plan = partition.plan
    advice = "all parts must be alike to be copies of one; choose another order, or a K that divides every layer."
    for p in range(1, plan.k):
        for initializer in plan.initializers:
            here, first = initializer.part_shape(p), initializer.part_shape(0)
            if here != first:
                raise MergeError(f"{initializer.name!r} has shape {first} in part 0 and {here} in part {p}; {advice}")
    outlines = (_outline(draft_part(partition, p)) for p in range(plan.k))
    first_part = next(outlines)
    for p, outline in enumerate(outlines, start=1):
        if outline != first_part:
            other = next((name for name in first_part if outline.get(name) != first_part[name]), "a node of its own")
            raise MergeError(f"{other} is not the same in part 0 and part {p}; {advice}")


def _outline(part: Draft) -> dict[str, bytes]:
    """What a part computes, without float initializers: for each value, how it is made."""
    graph = part.proto.graph
    found = {f"initializer {t.name!r}": t.SerializeToString() for t in graph.initializer if t.data_type not in FLOATS}
    for node in graph.node:
        found[f"{node.op_type} {node.name or node.output[0]!r}"] = node.SerializeToString(deterministic=True)
    return found


def _statistics(analysis: Analysis) -> frozenset[str]:
    """Running means and variances: nothing is trained there, and noise might make a variance negative."""
    read = [n for op in analysis.ops if op.op_type == "BatchNormalization" for n in op.inputs[3:5]]
    return frozenset().union(*map(analysis.state.sources, read))


def _shared_out(partition: Partition, name: str) -> bool:
    """Whether every use of a weight between divided units sums over all copies of the units that it reads.

    :param name: an initializer, or a tensor made of parameters alone.
    """
    users = partition.analysis.consumers[name]
    return _between(partition.division, name) and all(_sums(partition, name, user) for user in users)


def _between(division: Division, name: str) -> bool:
    """Whether elements of a tensor lie between units of two parts."""
    fields = [(varying(f), division.parts.take(f)) for f in division.analysis.fields(name)]
    divided = [(axes, here) for axes, here in fields if here.max(initial=ANYWHERE) > here.min(initial=division.k)]
    return any(
        axes.isdisjoint(others) or bool(((here != there) & (here != ANYWHERE) & (there != ANYWHERE)).any())
        for (axes, here), (others, there) in combinations(divided, 2)
    )


def _sums(partition: Partition, name: str, user: int) -> bool:
    """The same for one operator that reads the weight (see `_shared_out`)."""
    analysis, division = partition.analysis, partition.division
    state, op, rule = analysis.state, analysis.ops[user], analysis.rules[user]
    if rule is None or rule.kind == "source":
        return rule is not None
    if partition.placement.modes[user] != "joint" or op.reads.count(name) > 1:
        return False
    outputs = [n for n in op.outputs if n in analysis.consumers]
    others = [n for n in op.reads if n != name and _between(division, n)]
    if state.weights_only.issuperset(outputs):
        mean = division.passes_mean(user)
        linear = mean == "sum" or (not others and (mean == "scale" or op.inputs[0] == name))
        passes = rule.kind in ("movement", "elementwise") and mean != "no" and linear
        return passes and all(_shared_out(partition, n) for n in outputs)
    if rule.kind == "recurrent":
        others = [n for n in others if n not in state.weights_only]
    return rule.kind in WEIGHTED and not others and not any(_between(division, n) for n in outputs)


def _tiled(initializer: InitializerPlan, array: Rows, into: Into) -> Stream:
    """A weight between units in all its copies, also between parts.

    If d axes of a weight are of units, an element is read once for each copy of all these units but one. So it is
    divided by K to the power d - 1, and by the divisor of merging.
    """
    k, shape = len(initializer.blocks), initializer.shape
    merged = scale(initializer, into, "weights", k) or 1
    places = [_place([blocks[0][axis] for blocks in initializer.blocks], size) for axis, size in enumerate(shape)]

    def chunks(size: int) -> Iterator[Array]:
        """Rows of the whole, each filled from the part's and divided."""
        for start, stop in windows(shape, array.dtype, size):
            whole = np.zeros(rows_shape(shape, start, stop), array.dtype)
            for p in range(k):
                for index, mine in initializer.pieces(p, start, stop):
                    piece = array[mine]
                    for axis, (place, _) in enumerate(places[1:], start=1):
                        piece = np.take(piece, place, axis)
                    rows = index[0]
                    whole[rows if isinstance(rows, slice) else rows.ravel()] = piece
            units = [along[start:stop] if axis == 0 else along for axis, (_, along) in enumerate(places)]
            yield np.multiply(whole, _share(k, units) / merged, dtype=wide(array.dtype)).astype(array.dtype)

    return Stream(shape, array.dtype, chunks)


def _share(k: int, units: Sequence[NDArray[np.int64]]) -> Array:
    """The factor of each element; `units`: for each axis and index, whether it is a unit of one part (1) or not (0)."""
    axes = np.zeros((1,) * len(units), np.int64)
    for axis, along in enumerate(units):
        axes = axes + along.reshape(-1, *(1,) * (len(units) - 1 - axis))
    return np.asarray(float(k) ** (1 - np.maximum(axes, 1)))


def _place(kept: Sequence[Ranges | None], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each index along an axis: where the part holds its element, and 1 if only one part has it, else 0."""
    place, count = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for ranges in kept:
        held = np.arange(size) if ranges is None else from_ranges(ranges)
        place[held] = np.arange(len(held))
        count[held] += 1
    return place, (count < len(kept)).astype(np.int64)


def _noisy(source: Stream, noise: float, seed: tuple[int, ...]) -> Stream:
    """An array with uniform noise of up to a share of its largest magnitude."""

    def chunks(size: int) -> Iterator[Array]:
        bound = noise * max((float(np.abs(piece).max(initial=0)) for piece in source.chunks(CHUNK)), default=0.0)
        rng = np.random.default_rng(seed)
        for piece in source.chunks(size):
            yield (piece.astype(np.float64) + rng.uniform(-bound, bound, piece.shape)).astype(piece.dtype)

    return Stream(source.shape, source.dtype, chunks)
