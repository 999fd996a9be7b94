"""Operators that look up, write or mask positions along some axes, and work place by place along the others."""

from __future__ import annotations

from collections.abc import Iterable

from onnxpart.analysis.joins import meet
from onnxpart.analysis.labels import Field, Fields, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.analysis.rules.table import operator


def across(op: Op, inputs: Iterable[int], axes: Iterable[int]) -> Fields:
    """Fields of inputs that meet place by place; units that lie along `axes` are shared."""
    order = sorted(inputs, key=op.weights_only)
    activations = any(not op.weights_only(i) for i in order)
    result: list[Field] = []
    for i in order:
        for f in op.fields(i):
            if varying(f).isdisjoint(axes):
                meet(op, result, f, follows=activations and op.weights_only(i))
            else:
                op.share([f], "" if op.weights_only(i) else "it depends on positions along a divided axis")
    return tuple(result)


def rewrite_elements(r: Rewrite) -> None:
    """Inputs of the result's rank are cut to the part's share."""
    out = r.kept_out()
    for i in range(len(r.op.inputs)):
        if r.op.has(i) and len(r.op.shape(i)) == len(out):
            r.narrow_broadcast(i, out)


@operator("GatherElements", versions=(11, 13), kind="movement", rewrite=rewrite_elements, mean="data")
@operator("Scatter", versions=(9,), kind="movement", rewrite=rewrite_elements)
@operator("ScatterElements", versions=(11, 13, 16, 18), kind="movement", rewrite=rewrite_elements)
@operator("TensorScatter", versions=(24,), kind="movement", rewrite=rewrite_elements)
def elements(op: Op) -> list[Fields]:
    """GatherElements, ScatterElements, TensorScatter: positions along `axis`, place by place along the others."""
    rank = len(op.shape(0))
    axis = op.axis(-2 if op.op_type == "TensorScatter" else 0)
    inputs = [i for i in range(len(op.inputs)) if op.has(i) and len(op.shape(i)) == rank]
    fields = across(op, inputs, [0, axis] if op.op_type == "TensorScatter" and op.has(2) else [axis])
    along = {a for f in fields for a in varying(f)}
    if any(op.shape(i)[a] != op.shape(0)[a] for i in inputs for a in along):
        raise Barrier("it reaches some of the places along a divided axis only")
    return [fields]


@operator("Trilu", versions=(14,), kind="movement", mean="data")
def triangle(op: Op) -> list[Fields]:
    """Trilu: depends on positions along the last two axes."""
    rank = len(op.shape(0))
    return [across(op, [0], [rank - 2, rank - 1])]


@operator("ReverseSequence", versions=(10, 28), kind="movement", mean="data")
def reverse_sequence(op: Op) -> list[Fields]:
    """ReverseSequence: depends on positions along the time and batch axes."""
    time, batch = int(op.attributes.get("time_axis", 0)), int(op.attributes.get("batch_axis", 1))
    return [across(op, [0], [time, batch])]


@operator("DFT", versions=(17, 20), kind="mix", mean="data")
def fourier(op: Op) -> list[Fields]:
    """DFT: sums over positions along its axis, with fixed weights; the last axis holds real and imaginary part."""
    rank = len(op.shape(0))
    axis: list[int] | None = [op.axis(1)] if op.opset < 20 else [-2]
    if op.has(2):
        axis = op.ints(2, "axis")
    if axis is None:
        raise Barrier("its axis is computed at run time")
    return [across(op, [0], [axis[0] % rank, rank - 1])]


@operator("GatherND", versions=(11, 12, 13), kind="movement", mean="data")
def gather_nd(op: Op) -> list[Fields]:
    """GatherND: positions along the leading axes, whole blocks along the others (rows of a table make units)."""
    looked_up = int(op.attributes.get("batch_dims", 0)) + op.shape(1)[-1]
    op.share(op.fields(1), "it selects units at run time")
    front = (1,) * (len(op.out_shape()) - len(op.shape(0)) + looked_up)
    result = []
    for f in op.fields(0):
        if not varying(f).isdisjoint(range(looked_up)):
            op.share([f], "" if op.weights_only(0) else "it depends on positions along a divided axis")
            continue
        result.append(f.reshape(front + f.shape[looked_up:]))
        if op.weights_only(0) and not op.weights_only(1):
            op.labels.root(result[-1], op.index)
    return [tuple(result)]


def rewrite_scatter_nd(r: Rewrite) -> None:
    """ScatterND: blocks that are shared along a divided axis are cut."""
    written = r.op.shape(1)[-1]
    out = r.kept_out()
    r.narrow(0, out)
    front = len(r.op.shape(2)) - len(out) + written
    r.narrow(2, ((None,) * front + out[written:]))


@operator("ScatterND", versions=(11, 13, 16, 18), kind="movement", rewrite=rewrite_scatter_nd)
def scatter_nd(op: Op) -> list[Fields]:
    """ScatterND: positions along the leading axes, whole blocks along the others."""
    written = op.shape(1)[-1]
    op.share(op.fields(1), "it selects units at run time")
    result = list(across(op, [0], range(written)))
    front = len(op.shape(2)) - len(op.shape(0)) + written
    for f in across(op, [2], range(front)):
        meet(op, result, f.reshape((1,) * written + f.shape[front:]), follows=op.weights_only(2))
    return [tuple(result)]


@operator("OneHot", versions=(9, 11, 28), kind="movement")
def one_hot(op: Op) -> list[Fields]:
    """OneHot: a new axis, along which nothing is divided."""
    rank = len(op.out_shape())
    axis = op.axis(-1, rank)
    op.share(op.fields(2))
    return [tuple(f.reshape((*f.shape[:axis], 1, *f.shape[axis:])) for f in op.fields(0))]
