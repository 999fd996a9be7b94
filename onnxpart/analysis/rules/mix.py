"""Mixes: operators whose result at one unit depends on other units without a weight in between."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxpart.analysis.joins import follow, follow_channels, mix
from onnxpart.analysis.labels import Field, Fields, Groups, drop_axes, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.analysis.rules.table import operator
from onnxpart.errors import PartitionError


@operator("Softmax", "LogSoftmax", "Hardmax", versions=(1, 11, 13), kind="mix")
def softmax(op: Op) -> list[Fields]:
    """Softmax, LogSoftmax, Hardmax: mixes along `axis` (before opset 13: from `axis` on)."""
    rank = len(op.shape(0))
    axis = op.axis(-1 if op.opset >= 13 else 1)
    axes = [axis] if op.opset >= 13 else range(axis, rank)
    mix(op, op.fields(0), axes, "normalises over units")
    return [op.fields(0)]


@operator("LpNormalization", versions=(1, 22), kind="mix")
@operator("CumSum", versions=(11, 14), kind="mix")
@operator("CumProd", versions=(26,), kind="mix")
def along_axis(op: Op) -> list[Fields]:
    """LpNormalization, CumSum and their like: mix along one axis."""
    axis = op.ints(1, "axis") if op.has(1) or "axis" in op.attributes else [-1]
    if axis is None:
        raise Barrier("its axis is computed at run time")
    mix(op, op.fields(0), [axis[0] % len(op.shape(0))], "mixes units along its axis")
    return [op.fields(0)]


@operator("LRN", versions=(1, 13), kind="mix")
def channels(op: Op) -> list[Fields]:
    """LRN: mixes neighbouring channels."""
    mix(op, op.fields(0), [1], "normalises over neighbouring channels")
    return [op.fields(0)]


def rewrite_layer_norm(r: Rewrite) -> None:
    """LayerNormalization: parameters that are shared along a divided axis are cut."""
    for i in range(1, len(r.op.inputs)):
        if r.op.has(i):
            r.narrow_broadcast(i, r.kept_out())


@operator("LayerNormalization", versions=(17,), kind="mix", rewrite=rewrite_layer_norm, zero="parameters")
@operator("RMSNormalization", versions=(23,), kind="mix", rewrite=rewrite_layer_norm)
def layer_norm(op: Op) -> list[Fields]:
    """LayerNormalization and RMSNormalization: mix from `axis` on; scale and bias broadcast."""
    axis = op.axis(-1)
    fields = op.fields(0)
    statistics = mix(op, fields, range(axis, len(op.shape(0))), "normalises over units")
    for i in range(1, len(op.inputs)):
        if op.has(i):
            follow(op, fields, i)
    return [fields, *[statistics] * (len(op.outputs) - 1)]


def rewrite_channels(r: Rewrite) -> None:
    """BatchNormalization, InstanceNormalization: parameters that are shared along divided channels are cut."""
    for i in range(1, len(r.op.inputs)):
        r.narrow_channels(i)


@operator("InstanceNormalization", versions=(6, 22), kind="mix", rewrite=rewrite_channels, zero="parameters")
def instance_norm(op: Op) -> list[Fields]:
    """InstanceNormalization: mixes the places of a channel, which are several units after a reshape."""
    fields = op.fields(0)
    rank = len(op.shape(0))
    mixed = mix(op, fields, range(2, rank), "normalises over units")
    for i in (1, 2):
        follow_channels(op, mixed, i)
    return [fields]


@operator("GlobalAveragePool", versions=(1, 22), kind="mix", mean="data")
@operator("GlobalMaxPool", versions=(1, 22), kind="mix")
def places(op: Op) -> list[Fields]:
    """Global pooling: mixes the places of a channel, which are several units after a transpose."""
    return [mix(op, op.fields(0), range(2, len(op.shape(0))), "reduces over units")]


@operator("MeanVarianceNormalization", versions=(9, 13), kind="mix")
def mean_variance(op: Op) -> list[Fields]:
    """MeanVarianceNormalization: mixes along `axes`, by default all but the channels."""
    axes = op.ints(1, "axes") or [0, 2, 3]
    mix(op, op.fields(0), [a % len(op.shape(0)) for a in axes], "normalises over units")
    return [op.fields(0)]


def rewrite_group_norm(r: Rewrite) -> None:
    """GroupNormalization: as many groups as the part keeps some of."""
    op = r.op
    kept = r.kept_out()[1]
    if kept is None:
        return
    channels, groups = op.shape(0)[1], int(op.attributes["num_groups"])
    held, counts = np.unique(kept // (channels // groups), return_counts=True)
    if len(set(counts)) != 1:
        raise PartitionError(f"{op.title}: the part's groups differ in size; try another order or K.")
    r.set("num_groups", len(held))
    for i in (1, 2):
        r.narrow(i, (kept,))


@operator("GroupNormalization", versions=(21,), kind="mix", rewrite=rewrite_group_norm, zero="parameters")
def group_norm(op: Op) -> list[Fields]:
    """GroupNormalization: mixes the channels of a group; scale and bias apply by channel."""
    groups = int(op.attributes["num_groups"])
    width = op.shape(0)[1] // groups
    fields = tuple(op.labels.tie_along(f, (0, 1)) for f in op.fields(0))
    for f in fields:
        if f.shape[1] == 1:
            continue
        if f.shape[0] > 1:
            raise Barrier("its batch axis is divided")
        g = f.reshape((groups, width))
        if width > 1:
            op.choose_whole("normalises over the channels of a group", g, [1], result=False)
        if 1 < groups < f.shape[1]:
            op.labels.groups.append(Groups(op.index, None, g))
    for i in (1, 2):
        follow_channels(op, fields, i)
    return [fields]


@operator("ReduceMax", "ReduceMin", versions=(1, 11, 12, 13, 18, 20), kind="mix")
@operator("ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", versions=(1, 11, 13, 18), kind="mix")
@operator("ReduceLogSum", "ReduceLogSumExp", versions=(1, 11, 13, 18, 28), kind="mix")
@operator("ReduceMean", versions=(1, 11, 13, 18), kind="mix", mean="data")
@operator("ReduceSum", versions=(1, 11, 13), kind="mix", mean="data")
def reduce(op: Op) -> list[Fields]:
    """ReduceSum, ReduceMean and the other reductions: mix along the reduced axes."""
    rank = len(op.shape(0))
    axes: Iterable[int] | None = op.ints(1, "axes") if op.has(1) or "axes" in op.attributes else None
    if op.has(1) and axes is None:
        raise Barrier("its axes are computed at run time")
    if not axes:
        if op.attributes.get("noop_with_empty_axes"):
            return [op.fields(0)]
        axes = range(rank)
    keepdims = bool(op.attributes.get("keepdims", 1))
    fields = mix(op, op.fields(0), [a % rank for a in axes], "reduces over units")
    if not keepdims:
        fields = tuple(drop_axes(f, [a % rank for a in axes]) for f in fields)
    return [fields]


@operator("ArgMax", "ArgMin", versions=(1, 11, 12, 13), kind="mix")
def arg(op: Op) -> list[Fields]:
    """ArgMax, ArgMin: what lies along `axis` is shared; an index into divided units would mean nothing in a part."""
    axis = op.axis(0)
    rest = _undivided_along(op, axis)
    if not op.attributes.get("keepdims", 1):
        rest = tuple(drop_axes(f, [axis]) for f in rest)
    return [rest]


@operator("TopK", versions=(1, 10, 11, 24), kind="mix")
def top_k(op: Op) -> list[Fields]:
    """TopK: what lies along `axis` is shared; an index into divided units would mean nothing in a part."""
    return [_undivided_along(op, op.axis(-1))] * 2


def _undivided_along(op: Op, axis: int) -> Fields:
    rest: list[Field] = []
    for f in op.fields(0):
        if axis in varying(f):
            op.share([f], "it returns positions along a divided axis")
        else:
            rest.append(f)
    return tuple(rest)


def slides(op: Op) -> frozenset[int]:
    """Spatial axes with units along which a window gives as many places as it takes; what it mixes is duplicated."""
    axes = frozenset[int]().union(*map(varying, op.fields(0))) - {0, 1}
    if not axes:
        return axes
    a, b = op.shape(0), op.out_shape()
    strides = op.attributes.get("strides") or [1] * (len(a) - 2)
    axes = frozenset(i for i in axes if a[i] == b[i] and strides[i - 2] == 1)
    for f in op.fields(0):
        if varying(f) & axes:
            mix(op, (f,), axes, "its window covers several units")
    return axes
