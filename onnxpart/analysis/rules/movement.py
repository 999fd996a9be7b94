"""Data movement: executed on the label fields themselves, so that labels come out where the data comes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np
from onnx import helper

from onnxpart.analysis.labels import MAX_FIELD, Field, Fields, align, alike, bounded, drop_axes, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Indices, Rewrite, dims, repeats_after, sizes
from onnxpart.analysis.rules.table import operator
from onnxpart.errors import PartitionError
from onnxpart.ir.shapes import Shape


def groups(a: Shape, b: Shape) -> list[tuple[slice, slice]]:
    """Pairs of axis ranges of two shapes of the same size such that the data of a range stay within its pair."""
    result, i, j = [], 0, 0
    while i < len(a) or j < len(b):
        i0, j0, p, q = i, j, 1, 1
        if i < len(a):
            p, i = p * a[i], i + 1
        if j < len(b):
            q, j = q * b[j], j + 1
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        result.append((slice(i0, i), slice(j0, j)))
    return result


def reshape_field(op: Op, f: Field, a: Shape, b: Shape) -> Field:
    """A field of a tensor of shape `a` after a reshape to `b`."""
    pairs = groups(a, b)
    f = _fit(op, f, a, pairs)
    wide: list[int] = []
    out: list[int] = []
    for i, j in pairs:
        if any(size > 1 for size in f.shape[i]):
            wide += a[i]
            out += b[j]
        else:
            wide += [1] * (i.stop - i.start)
            out += [1] * (j.stop - j.start)
    return (f if f.shape == tuple(wide) else np.broadcast_to(f, wide)).reshape(bounded(out))


def _fit(op: Op, f: Field, a: Shape, pairs: list[tuple[slice, slice]]) -> Field:
    """Ties labels along small axes until the reshaped field is of a reasonable size."""
    while True:
        axes = [i for i, _ in pairs if any(size > 1 for size in f.shape[i])]
        size = prod(n for i in axes for n in a[i])
        if size <= MAX_FIELD or len(varying(f)) <= 1:
            return f
        smallest = min(varying(f), key=lambda axis: f.shape[axis])
        f = op.labels.tie_along(f, varying(f) - {smallest})


def rewrite_reshape(r: Rewrite) -> None:
    """Reshape: the divided positions of its target."""
    dims(r, 1)


@operator(
    "Reshape",
    versions=(5, 13, 14, 19, 21, 23, 24, 25),
    kind="movement",
    rewrite=rewrite_reshape,
    mean="data",
    zero="data",
)
@operator("Flatten", versions=(1, 9, 11, 13, 21, 23, 24, 25), kind="movement", mean="data", zero="data")
@operator("Squeeze", "Unsqueeze", versions=(1, 11, 13, 21, 23, 24, 25), kind="movement", mean="data", zero="data")
def reshape(op: Op) -> list[Fields]:
    """Reshape, Flatten, Squeeze and Unsqueeze: the same data in another shape."""
    a, b = op.shape(0), op.out_shape()
    if 0 in a:
        raise Barrier("it has no elements")
    if a == b:
        return [op.fields(0)]
    return [tuple(reshape_field(op, f, a, b) for f in op.fields(0))]


@operator("Transpose", versions=(1, 13, 21, 23, 24, 25), kind="movement", mean="data", zero="data")
def transpose(op: Op) -> list[Fields]:
    """Transpose: labels move with their axes."""
    perm = op.attributes.get("perm") or list(range(len(op.shape(0))))[::-1]
    return [tuple(f.transpose(perm) for f in op.fields(0))]


def rewrite_concat(r: Rewrite) -> None:
    """Concat: operands that are shared along another, divided axis are cut."""
    want = list(r.kept_out())
    want[r.op.axis(1, len(want))] = None
    for i in range(len(r.op.inputs)):
        r.narrow_broadcast(i, tuple(want))


@operator("Concat", versions=(4, 11, 13), kind="movement", rewrite=rewrite_concat, mean="sum")
def concat(op: Op) -> list[Fields]:
    """Concat: the labels of the inputs stand side by side along `axis`."""
    rank = len(op.out_shape())
    axis = op.axis(1, rank)
    count = len(op.inputs)
    kept = [i for i in range(count) if op.shape(i)[axis] > 0]
    rest: dict[frozenset[int], list[dict[int, Field]]] = {}
    activations = any(not op.weights_only(i) for i in kept)
    for i in sorted(kept, key=op.weights_only):
        for f in op.fields(i):
            others = varying(f) - {axis}
            if activations and op.weights_only(i) and others not in rest:
                op.share([f])
                continue
            columns = rest.setdefault(others, [])
            same = next((c[i] for c in columns if i in c and alike(c[i], f)), None)
            if same is not None:
                op.labels.tie(same, f)
                continue
            column = next((c for c in columns if i not in c), None)
            if column is None:
                column = {}
                columns.append(column)
            column[i] = f
    for columns in rest.values():
        for column in columns[1:]:  # an input of one kind of units stands beside each kind of another
            column.update({i: f for i, f in columns[0].items() if i not in column})
    return [tuple(_side_by_side(op, column, kept, axis) for columns in rest.values() for column in columns)]


def _side_by_side(op: Op, column: dict[int, Field], kept: list[int], axis: int) -> Field:
    """One field of a concatenation; inputs without a field in `column` are in every part.

    :param column: a field by input. :param kept: the inputs that aren't empty. :param axis: along which they stand.
    """
    fields = list(column.values())
    along = any(axis in varying(f) for f in fields)
    if not along and len(column) == len(kept):
        if all(f is fields[0] for f in fields):
            return fields[0]
        if any(op.weights_only(i) for i in column) and varying(fields[0]):
            for f in fields[1:]:
                op.labels.tie(fields[0], f)
            return fields[0]
    shape = np.broadcast_shapes(*{(*f.shape[:axis], 1, *f.shape[axis + 1 :]) for f in fields})
    bounded((*shape[:axis], sum(op.shape(i)[axis] for i in kept), *shape[axis + 1 :]))
    pieces, shared = [], np.zeros((1,) * len(shape), np.int32)
    for i in kept:
        f, wide = column.get(i, shared), (*shape[:axis], op.shape(i)[axis], *shape[axis + 1 :])
        pieces.append(f if f.shape == wide else np.broadcast_to(f, wide))
    return np.concatenate(pieces, axis=axis)


def rewrite_split(r: Rewrite) -> None:
    """Split: the sizes of what is kept of each piece."""
    op = r.op
    axis = op.axis(0)
    if r.kept_in(0)[axis] is None:
        return
    lengths = [sizes(r.kept_out(j), op.out_shape(j))[axis] for j in range(len(op.outputs))]
    for a in list(r.node.attribute):
        if a.name == "num_outputs":
            r.node.attribute.remove(a)
    r.set_ints(1, "split", lengths, since=13)


@operator("Split", versions=(2, 11, 13, 18), kind="movement", rewrite=rewrite_split, mean="data")
def split(op: Op) -> list[Fields]:
    """Split: each output has its piece of the labels along `axis`."""
    axis = op.axis(0)
    if op.dynamic(0)[axis] and any(f.shape[axis] > 1 for f in op.fields(0)):
        raise Barrier("it splits a divided axis whose length isn't fixed")
    ends = np.cumsum([0, *(op.out_shape(j)[axis] for j in range(len(op.outputs)))])
    return [
        tuple(f[(slice(None),) * axis + (slice(i, j),)] if f.shape[axis] > 1 else f for f in op.fields(0))
        for i, j in pairwise(ends)
    ]


def slice_ranges(op: Op) -> dict[int, range | None] | None:
    """Axis -> kept positions of a Slice, None where they vary with the sizes; None where its bounds aren't known.

    Along an axis whose own length varies they are known where all of it is kept.
    """
    known = [bounds(op, 1, "starts"), bounds(op, 2, "ends")]
    count = 0 if known[0] is None else len(known[0])
    axes = op.ints(3, "axes") if op.has(3) or "axes" in op.attributes else list(range(count))
    known.append(bounds(op, 4, "steps") if op.has(4) else [1] * count)
    if axes is None or any(k is None for k in known):
        return None
    result: dict[int, range | None] = {}
    for axis, start, end, step in zip(axes, *(k or () for k in known), strict=True):
        axis, size, kept = axis % len(op.shape(0)), op.shape(0)[axis], None
        if start is not None and end is not None and step is not None:
            kept = range(*slice(start, end, step).indices(size))
        result[axis] = None if op.dynamic(0)[axis] and kept != range(size) else kept
    return result


def bounds(op: Op, i: int, attribute: str) -> list[int | None] | None:
    """Integers of an attribute or input: None for those that vary with symbolic sizes; None where none is known."""
    if attribute in op.attributes:
        return list(op.attributes[attribute])
    found = op.trial(i)
    if found is None:
        return None
    return [None if varies else int(v) for v, varies in zip(found.value.ravel(), found.varies.ravel(), strict=True)]


def rewrite_slice(r: Rewrite) -> None:
    """Slice: the positions, among those kept, of what it selects; bounds along other axes stay what they are."""
    op = r.op
    ranges = slice_ranges(op)
    if ranges is None or not any(r.kept_in(0)[axis] is not None for axis in ranges):
        return
    for axis, positions in ranges.items():
        kept = r.kept_in(0)[axis]
        if kept is not None and positions != range(op.shape(0)[axis]):
            assert positions is not None
            wanted = np.asarray(positions, np.int64)
            out = r.kept_out()[axis]
            place = np.searchsorted(kept, wanted if out is None else wanted[out])
            r.node.input[0] = r.gather(r.node.input[0], axis, place)
    rest = [i for i, axis in enumerate(ranges) if r.kept_in(0)[axis] is None]
    if not rest:
        _identity(r)
        return
    axes = [list(ranges)[i] for i in rest]
    if op.opset < 10:
        for name in ("starts", "ends"):
            r.set(name, [op.attributes[name][i] for i in rest])
        r.set("axes", axes)
        return
    bounds = [_some(r, i, rest, hint) for i, hint in ((1, "starts"), (2, "ends"), (4, "steps")) if op.has(i)]
    known = op.trial(1)
    assert known is not None
    bounds.insert(2, r.constant(axes, "axes", known.value.dtype))
    del r.node.input[1:]
    r.node.input.extend(bounds)


@operator("Slice", versions=(1, 10, 11, 13), kind="movement", rewrite=rewrite_slice, mean="data", zero="data")
def slice_(op: Op) -> list[Fields]:
    """Slice: a selection of the labels; those along axes whose bounds aren't known are in every part."""
    fields = op.fields(0)
    if not fields:
        return [()]
    ranges = slice_ranges(op)
    if ranges is None:
        ranges = dict.fromkeys(op.ints(3, "axes") or range(len(op.shape(0))))
    unknown = {axis for axis, kept in ranges.items() if kept is None}
    reason = "its bounds are computed at run time along a divided axis"
    cut = [f for f in fields if varying(f) & unknown]
    if len(cut) == len(fields) and not op.weights_only(0):
        raise Barrier(reason)
    op.share(cut, "" if op.weights_only(0) else reason)
    result = []
    for f in (f for f in fields if not varying(f) & unknown):
        for axis in varying(f) & ranges.keys():
            f = np.take(f, np.asarray(ranges[axis], np.int64), axis=axis)
        result.append(f)
    return [tuple(result)]


def _some(r: Rewrite, i: int, places: Sequence[int], hint: str) -> str:
    """Some of the integers of input `i`."""
    known = r.op.value(i)
    if known is None or r.op.inputs[i] not in r.op.state.model.initializers:
        return r.add("Gather", [r.node.input[i], r.constant(places, "places")], hint, axis=0)
    return r.constant(np.ravel(known)[list(places)], hint, known.dtype)


def _identity(r: Rewrite) -> None:
    data, out, name = r.node.input[0], list(r.node.output), r.node.name
    r.node.Clear()
    r.node.CopyFrom(helper.make_node("Identity", [data], out, name=name))


def rewrite_gather(r: Rewrite) -> None:
    """Gather with known indices: their positions among those kept."""
    op = r.op
    axis = op.axis(0)
    kept = r.kept_in(0)[axis]
    if kept is not None and op.dynamic(0)[axis]:
        _rewrite_folded(r, axis, kept)
        return
    index = op.value(1)
    if kept is None or index is None:  # (shared labels aren't selected from)
        return
    index = np.where(index < 0, index + op.shape(0)[axis], index)
    rank = index.ndim
    chosen = r.kept_out()[axis : axis + rank]
    block = index[np.ix_(*[np.arange(n) if c is None else c for c, n in zip(chosen, index.shape, strict=True)])]
    place = np.searchsorted(kept, block)
    if op.outputs[0] in op.state.shaped:
        place = place.clip(max=len(kept) - 1)
    r.node.input[1] = r.constant(place, "index")


def _rewrite_folded(r: Rewrite, axis: int, kept: Indices) -> None:
    """Compute where the indices of a part's share lie among what it keeps of an axis along which units repeat."""
    op, known = r.op, r.op.trial(1)
    assert known is not None
    mask = np.isin(np.arange(op.shape(0)[axis]), kept)
    period = repeats_after(mask)
    place = np.cumsum(mask[:period]) - 1
    index, dtype = r.node.input[1], known.value.dtype
    for a, chosen in enumerate(r.kept_out()[axis : axis + known.value.ndim]):
        if chosen is not None:
            index = r.gather(index, a, chosen)
    turn = r.add("Div", [index, r.constant(period, "all", dtype)], "turn")
    rest = r.add("Sub", [index, r.add("Mul", [turn, r.constant(period, "all", dtype)], "start")], "rest")
    start = r.add("Mul", [turn, r.constant(place[-1] + 1, "kept", dtype)], "start")
    r.node.input[1] = r.add(
        "Add", [start, r.add("Gather", [r.constant(place, "place", dtype), rest], "place")], "index"
    )


def _folded_index(op: Op, f: Field, axis: int) -> Indices | None:
    """Which units a Gather takes from an axis along which they repeat, as often as sizes say.

    :returns: positions within one repetition, of size 1 along axes where they are the same, int64; None where they vary
        with the sizes, or aren't known.
    """
    known, other = op.trial(1), op.state.shapes.other
    at_other = None if other is None else other.value(op.inputs[1])
    if known is None or other is None or at_other is None or varying(f) != {axis}:
        return None
    period = repeats_after(f.ravel())
    if period == f.shape[axis] or other.shape[op.inputs[0]][axis] % period:
        return None
    if min(known.value.min(initial=0), at_other.min(initial=0)) < 0 or 0 in known.value.shape:
        return None
    found, again = ((value % period).astype(np.int64) for value in (known.value, at_other))
    for a in range(found.ndim):
        first = found.take([0], axis=a)
        if (found == first).all() and (again == again.take([0], axis=a)).all():
            found, again = first, again.take([0], axis=a)
    return found if np.array_equal(found, again) else None


@operator("Gather", versions=(1, 11, 13), kind="movement", rewrite=rewrite_gather, mean="data")
def gather(op: Op) -> list[Fields]:
    """Gather along `axis`: a selection of units, or a look-up in a table (an embedding makes units)."""
    axis = op.axis(0)
    index = None if op.dynamic(0)[axis] else op.value(1)
    rank = len(op.shape(1))
    result = []
    for f in op.fields(0):
        if f.shape[axis] > 1 and index is not None:
            if not rank and op.outputs[0] in op.state.shaped:
                continue  # whichever is selected has the same shape
            result.append(np.take(f, np.asarray(index, np.int64), axis=axis))
            continue
        folded = _folded_index(op, f, axis) if f.shape[axis] > 1 and op.dynamic(0)[axis] else None
        if folded is not None:
            result.append(np.take(f, folded, axis=axis))
            continue
        if f.shape[axis] > 1:
            op.share([f], "" if op.weights_only(0) else "it selects units at run time")
            continue
        g = f.reshape(f.shape[:axis] + (1,) * rank + f.shape[axis + 1 :])
        if op.trial(1) is None and op.weights_only(0) and varying(g):
            op.labels.root(g, op.index)
        result.append(g)
    return [tuple(result)]


def rewrite_expand(r: Rewrite) -> None:
    """Expand: the divided positions of its target."""
    rank = len(r.op.out_shape())
    if r.op.state.shapes.shape[r.op.inputs[1]] == (rank,):
        dims(r, 1)


@operator("Expand", versions=(8, 13), kind="movement", rewrite=rewrite_expand, mean="data", zero="data")
def expand(op: Op) -> list[Fields]:
    """Expand: numpy broadcasting to a shape."""
    rank = len(op.out_shape())
    return [tuple(align(f, rank) for f in op.fields(0))]


def rewrite_tile(r: Rewrite) -> None:
    """Tile: copies of what the part keeps; nothing to adapt unless the order within copies were lost."""
    a, b = r.op.shape(0), r.op.out_shape()
    for axis, (kept_in, kept_out) in enumerate(zip(r.kept_in(0), r.kept_out(), strict=True)):
        if kept_in is None:
            continue
        copies = np.concatenate([kept_in + n * a[axis] for n in range(b[axis] // a[axis])])
        if kept_out is None or not np.array_equal(copies, kept_out):
            raise PartitionError(f"{r.op.title}: the copies of a unit are in different parts.")


@operator("Tile", versions=(6, 13), kind="movement", rewrite=rewrite_tile, mean="data")
def tile(op: Op) -> list[Fields]:
    """Tile: copies side by side."""
    a, b = op.shape(0), op.out_shape()
    result = []
    for f in op.fields(0):
        copies = [n // m if size > 1 else 1 for m, n, size in zip(a, b, f.shape, strict=True)]
        bounded(n * size for n, size in zip(copies, f.shape, strict=True))
        result.append(np.tile(f, copies))
    return [tuple(result)]


Amounts = tuple[int, int] | None
"""How much a Pad adds in front and behind; None where that varies with the sizes of symbolic dimensions."""


def pad_amounts(op: Op) -> list[Amounts] | None:
    """What is added along each axis; None where nothing is known of it."""
    rank = len(op.shape(0))
    named = next((name for name in ("pads", "paddings") if name in op.attributes), "pads")
    pads = bounds(op, 1, named)
    axes = op.ints(3, "axes") if op.has(3) else list(range(rank))
    if pads is None or axes is None:
        return None
    result: list[Amounts] = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        front, behind = pads[i], pads[i + len(axes)]
        result[axis % rank] = None if front is None or behind is None else (front, behind)
    return result


def rewrite_pad(r: Rewrite) -> None:
    """Pad: how much of the padding along a divided axis is the part's."""
    op = r.op
    amounts, kept_out = pad_amounts(op), r.kept_out()
    if amounts is None or all(k is None or a == (0, 0) for k, a in zip(kept_out, amounts, strict=True)):
        return
    front, behind = [], []
    for axis, amount in enumerate(amounts):
        assert amount is not None
        kept, size = kept_out[axis], op.shape(0)[axis]
        front.append(amount[0] if kept is None else int((kept < amount[0]).sum()))
        behind.append(amount[1] if kept is None else int((kept >= amount[0] + size).sum()))
    if len(r.node.input) > 3:
        r.node.input[3] = ""
    r.set_ints(1, "pads", [*front, *behind], since=11)


@operator("Pad", versions=(2, 11, 13, 18, 19, 21, 23, 24, 25), kind="movement", rewrite=rewrite_pad, mean="data")
def pad(op: Op) -> list[Fields]:
    """Pad: constant padding along a divided axis makes places that any unit may take."""
    fields = op.fields(0)
    if not fields:
        return [()]
    amounts = pad_amounts(op)
    divided = {axis for f in fields for axis in varying(f)}
    if amounts is None or any(amounts[axis] is None for axis in divided):
        raise Barrier("its amounts are computed at run time")
    if None in amounts and any(amounts[axis] != (0, 0) for axis in divided):
        raise Barrier("it pads a divided axis, and others by amounts that are computed at run time")
    mode = op.attributes.get("mode", b"constant").decode()
    return [tuple(_padded(op, f, amounts, mode) for f in fields)]


def _padded(op: Op, f: Field, amounts: Sequence[Amounts], mode: str) -> Field:
    for axis, amount in enumerate(amounts):
        if f.shape[axis] == 1 or amount is None or amount == (0, 0):
            continue
        if min(amount) < 0 or mode != "constant":
            raise Barrier(f"it pads a divided axis in a way without a rule (mode {mode!r})")
        front, behind = (op.labels.fresh((*f.shape[:axis], n, *f.shape[axis + 1 :])) for n in amount)
        f = np.concatenate([front, f, behind], axis=axis)
    return f


@operator("DepthToSpace", versions=(1, 11, 13, 28), kind="movement", mean="data")
def depth_to_space(op: Op) -> list[Fields]:
    """DepthToSpace: the channels that make up one block are one unit."""
    block = int(op.attributes["blocksize"])
    channels = op.shape(0)[1]
    crd = op.attributes.get("mode", b"DCR") == b"CRD"
    result = []
    for f in op.fields(0):
        f = op.labels.tie_along(f, (0, 1))
        if f.shape[1] > 1:
            shape = (channels // block**2, block**2) if crd else (block**2, channels // block**2)
            g = f.reshape((f.shape[0], *shape, 1, 1))
            f = op.labels.tie_along(g, (0, 1) if crd else (0, 2))
            f = drop_axes(f, (2,) if crd else (1,))
        result.append(f)
    return [tuple(result)]


@operator("Col2Im", versions=(18,), kind="movement", mean="data")
def col2im(op: Op) -> list[Fields]:
    """Col2Im: the places of a window, which stand as channels, are one unit."""
    rank, channels = len(op.out_shape()), op.out_shape()[1]
    result = []
    for f in op.fields(0):
        f = op.labels.tie_along(f, (0, 1))
        if f.shape[1] > 1:
            f = drop_axes(op.labels.tie_along(f.reshape(f.shape[0], channels, -1, 1), (0, 1)), (2, 3))
        result.append(f.reshape((*f.shape[:2], *[1] * (rank - 2))))
    return [tuple(f for f in result if varying(f))]


def rewrite_center_crop_pad(r: Rewrite) -> None:
    """CenterCropPad: the divided positions of its target."""
    if "axes" not in r.op.attributes:
        dims(r, 1)


@operator("CenterCropPad", versions=(18,), kind="movement", rewrite=rewrite_center_crop_pad, mean="data")
def center_crop_pad(op: Op) -> list[Fields]:
    """CenterCropPad: along divided axes the size must stay."""
    for f in op.fields(0):
        if any(op.shape(0)[axis] != op.out_shape()[axis] for axis in varying(f)):
            raise Barrier("it crops or pads a divided axis")
    return [op.fields(0)]


@operator("SpaceToDepth", versions=(1, 13, 28), kind="movement", mean="data")
def space_to_depth(op: Op) -> list[Fields]:
    """SpaceToDepth: a unit's places become channels of the same unit."""
    block = int(op.attributes["blocksize"])
    fields = [op.labels.tie_along(f, (0, 1)) for f in op.fields(0)]
    return [tuple(np.tile(f, (1, block**2 if f.shape[1] > 1 else 1, 1, 1)) for f in fields)]
