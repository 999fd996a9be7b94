"""Steps that look up, write at places, resize, and compute an operator's further inputs from hidden units."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from onnx import TensorProto

from tests.networks.growing import Dim, Growing, Value
from tests.networks.net import Attribute

SCATTERS = {"none": 11, "add": 16, "mul": 16, "max": 18, "min": 18}
"""Reductions of the operators that write at places, and the first operator set that has each."""


def computed(g: Growing, *shape: int) -> str | None:
    """Numbers from 0 to 1 of `shape` that hidden units make, the same for all samples; None where there are none."""
    v = g.pick(lambda v: v.fixed(-1))
    if v is None:
        return None
    units = g.dense(v, prod(shape))
    made = g.net.op("Sigmoid", units.name)
    if v.rank > 1:
        made = g.reduce(g.of(("ReduceMean", "ReduceMax")), made, range(v.rank - 1), 0)
    return g.net.op("Reshape", made, g.net.ints(*shape)) if len(shape) != 1 else made


def sized(g: Growing, *values: int) -> str:
    """A list of integers: stored, or computed from hidden units, which come to the same whatever the sample."""
    stored = g.net.ints(*values)
    made = computed(g, len(values)) if g.chance(4) else None
    return stored if made is None else g.net.op("Add", stored, whole_numbers(g, made, 0.5))


def whole_numbers(g: Growing, x: str, below: float) -> str:
    """Numbers from 0 to 1 as integers from 0 up to, but not including, `below`."""
    return g.cast(g.net.op("Floor", g.net.op("Mul", x, g.net.number(0.999 * below))), TensorProto.INT64)


def index(g: Growing, v: Value, size: int) -> str:
    """Integers below `size`, and no less than 0, from the elements of a value."""
    return whole_numbers(g, g.net.op("Sigmoid", g.tamed(v)), size)


def chosen(g: Growing, v: Value, size: int) -> tuple[str, tuple[Dim, ...]]:
    """Where to look, and its dims: from units, one for each sample or the same for all, from positions, or stored."""
    kind = g.draw(5)
    if kind == 0:
        stored = np.asarray([g.draw(size) for _ in range(1 + g.draw(4))], np.int64)
        return g.net.array("index", stored), stored.shape
    u = g.pick(lambda u: u.rank < 4) or v
    if kind == 1:
        flat = g.reduce("ReduceMax", g.tamed(u), range(u.rank), 0)
        return index(g, Value(flat, ()), size), ()
    if kind == 2 and u.axes(2):
        axis = g.of(u.axes(2))
        found = g.net.op(g.of(("ArgMax", "ArgMin")), u.name, axis=axis, keepdims=0)
        if u.sizes[axis] > size:
            found = g.net.op("Min", found, g.net.array("last", np.asarray(size - 1, np.int64))) if g.opset >= 12 else ""
        return found, tuple(d for a, d in enumerate(u.dims) if a != axis)
    return index(g, u, size), u.dims


def look_up(g: Growing) -> None:
    """Gather from a value or from a table, at places that come from anywhere."""
    v = g.pick(lambda v: bool(v.axes()))
    if v is None or g.opset < 9:
        return
    if g.draw(2):
        shape = (g.width(), g.width())
        v = Value(g.net.random("table", *shape), shape)
    axis = g.of(v.axes())
    at, dims = chosen(g, g.values[-1], v.sizes[axis])
    made = (*v.dims[:axis], *dims, *v.dims[axis + 1 :])
    if at and 0 < len(made) < 6 and sum(isinstance(d, str) for d in made) < 2:
        g.put(g.net.op("Gather", v.name, at, axis=axis), made, v.tame)


def look_up_batch(g: Growing) -> None:
    """Gather along the batch, at places computed from its size: turned round, each sample twice, all but the first."""
    v = g.pick(lambda v: v.rank > 1 and not v.fixed(0))
    if v is None or g.opset < 11:
        return
    net = g.net
    count = net.op("Squeeze", g.slice(net.op("Shape", v.name), 0, 1, 0)) if g.opset < 13 else net.op(
        "Gather", net.op("Shape", v.name), net.array("first", np.asarray(0, np.int64)), axis=0
    )  # fmt: skip
    zero, one = (net.array("number", np.asarray(n, np.int64)) for n in (0, 1))
    at = net.op("Range", zero, count, one)
    if g.draw(2):
        at = net.op("Sub", net.op("Sub", count, one), at)
    g.put(net.op("Gather", v.name, at, axis=0), v.dims, v.tame)


def look_up_elements(g: Growing) -> None:
    """GatherElements, or a GatherND for each sample."""
    v = g.pick(lambda v: v.rank > 1 and bool(v.axes(2)))
    if v is None or g.opset < 12:
        return
    if g.draw(2):
        axis = g.of(v.axes())
        g.put(g.net.op("GatherElements", v.name, index(g, g.like(v), v.sizes[axis]), axis=axis), v.dims, v.tame)
    elif v.fixed(1):
        by = g.pick(lambda u: u.rank == 2 and u.dims[0] == v.dims[0] and u.fixed(1))
        if by is not None:
            at = g.unsqueeze(index(g, by, v.sizes[1]), [2])
            g.put(g.net.op("GatherND", v.name, at, batch_dims=1), (*by.dims, *v.dims[2:]), v.tame)


def write(g: Growing) -> None:
    """ScatterElements along an axis, at places that are told apart by TopK, stored, or, for sums, made of units."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is None or g.opset < 11:
        return
    reduction = g.of([name for name, since in SCATTERS.items() if g.opset >= since])
    way: dict[str, Attribute] = {} if reduction == "none" else {"reduction": reduction}
    axis = g.of(v.axes(2))
    size = v.sizes[axis]
    if g.chance(3) and all(v.fixed(a) for a in range(v.rank)):
        _write_rows(g, v, way)
        return
    if reduction != "none" and g.draw(2):
        at = index(g, g.like(v), size)
    else:
        at = g.net.ops("TopK", g.like(v).name, g.net.ints(size), count=2, axis=axis)[1]
    updates = g.net.op("Tanh", g.like(v).name)
    g.put(g.net.op("ScatterElements", v.name, at, updates, axis=axis, **way), v.dims, v.tame)


def _write_rows(g: Growing, v: Value, way: dict[str, Attribute]) -> None:
    """ScatterND into a value of fixed sizes, at some of its first axis' places."""
    places = sorted({g.draw(v.sizes[0]) for _ in range(2)})
    at = g.net.array("at", np.asarray(places, np.int64)[:, None])
    if way and g.draw(2):
        made = computed(g, len(places), 1)
        at = at if made is None else whole_numbers(g, made, v.sizes[0])
    updates = g.net.op("Gather", g.net.op("Tanh", g.like(v).name), g.net.ints(*places), axis=0)
    g.put(g.net.op("ScatterND", v.name, at, updates, **way), v.dims, v.tame)


def write_masked(g: Growing) -> None:
    """Rows that a mask chooses, written element by element where the mask is repeated along them, or as rows."""
    v = g.pick(lambda v: v.rank > 1 and v.fixed(-1))
    if v is None or g.opset < 13:
        return
    net, axes = g.net, list(range(1 + g.draw(v.rank - 1), v.rank))
    mask = net.op("Greater", g.reduce("ReduceSum", g.like(v).name, axes, 1), net.number(0))
    found = net.op("Transpose", net.op("NonZero", g.squeeze(mask, axes)), perm=[1, 0])
    rows = net.op("Tanh", net.op("GatherND", g.like(v).name, found))
    if g.draw(3):
        repeated = net.op("Expand", mask, net.op("Shape", v.name))
        found = net.op("Transpose", net.op("NonZero", repeated), perm=[1, 0])
        rows = net.op("Reshape", rows, net.ints(-1))
    g.put(net.op("ScatterND", v.name, found, rows), v.dims, v.tame)


def resize(g: Growing) -> None:
    """Resize along any axis but the batch's, by scales, by sizes, and with axes."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is None or g.opset < 11:
        return
    axis, net = g.of(v.axes(2)), g.net
    size = v.sizes[axis]
    more = g.of((2 * size, size + 1, max(1, size // 2), size))
    scale = np.nextafter(np.float32(more / size), np.float32(np.inf))  # rounds down to `more` places
    attributes: dict[str, Attribute] = {
        "mode": "nearest",
        "nearest_mode": g.of(("round_prefer_floor", "floor", "ceil")),
    }
    if v.rank == 4 and axis > 1 and g.draw(2):
        attributes = {"mode": g.of(("linear", "cubic"))}
    attributes["coordinate_transformation_mode"] = g.of(("half_pixel", "asymmetric", "align_corners"))
    dims = [more if a == axis else d for a, d in enumerate(v.dims)]
    empty = "" if g.opset >= 13 else net.array("empty", np.zeros(0, np.float32))
    if g.opset >= 18 and g.draw(2):
        attributes["axes"] = [axis]
        inputs = [empty, "", sized(g, more)] if g.draw(2) else [empty, net.array("scales", scale[None])]
    elif all(v.fixed(a) for a in range(v.rank)) and g.draw(2):
        inputs = [empty, "" if g.opset >= 13 else empty, sized(g, *(d for d in dims if isinstance(d, int)))]
    else:
        inputs = [empty, net.array("scales", np.where(np.arange(v.rank) == axis, scale, np.float32(1)))]
    g.put(net.op("Resize", v.name, *inputs, **attributes), dims, v.tame)


def further_floats(g: Growing) -> None:
    """A parameter that hidden units make: of a norm, a layer, a bound, a slope, a padding."""
    v = g.pick(lambda v: v.rank > 1 and v.fixed(1) and v.fixed(-1))
    if v is not None:
        g.of((_norm, _contraction, _bounds))(g, v)


def _norm(g: Growing, v: Value) -> None:
    """A norm whose scale and bias hidden units make; one of the two may be an input's or stored."""
    net, c, x, last = g.net, v.sizes[1], g.tamed(v), v.sizes[-1]
    kind, size = g.draw(3), last if g.opset >= 17 else c
    scale, shift = computed(g, size), computed(g, size) if g.draw(2) else net.random("shift", size)
    if scale is None or shift is None:
        return
    if size == last and g.opset >= 17 and (kind == 0 or size != c):
        g.put(net.op("LayerNormalization", x, scale, shift), v.dims)
    elif kind == 1 and v.rank > 2 and prod(v.sizes[2:]) > 1 and size == c:
        g.put(net.op("InstanceNormalization", x, scale, shift), v.dims)
    elif size == c:
        others = [net.random("mean", c), net.positive("variance", c)]
        g.put(net.op("BatchNormalization", x, scale, shift, *others), v.dims)


def _contraction(g: Growing, v: Value) -> None:
    """A layer whose weight or bias hidden units make."""
    net, c, x = g.net, v.sizes[1], g.tamed(v)
    kind, n = g.draw(3), g.width()
    bias = computed(g, n)
    if bias is None:
        return
    if kind == 0 and v.rank == 2:
        g.put(net.op("Gemm", x, g.weight(c, n, fan_in=c), bias), (v.dims[0], n))
    elif kind < 2 and v.rank in (3, 4):
        shape = (n, c, *[1] * (v.rank - 2))
        weight = net.random("kernel", *shape) if g.draw(2) else computed(g, *shape)
        if weight is not None:
            g.put(net.op("Conv", x, weight, bias), (v.dims[0], n, *v.dims[2:]))
    elif (weight := computed(g, v.sizes[-1], n)) is not None:
        g.put(net.op("MatMul", x, weight), (*v.dims[:-1], n))


def _bounds(g: Growing, v: Value) -> None:
    """A bound, a slope, or what stands around, that hidden units make."""
    net, c, x = g.net, v.sizes[1], g.tamed(v)
    kind, number = g.draw(3), computed(g)
    slope = computed(g, *([v.sizes[-1]] if v.rank == 2 else [c, *[1] * (v.rank - 2)]))
    if number is None or slope is None:
        return
    if kind == 0 and g.opset >= 12:
        g.put(net.op("Clip", x, *(["", number] if g.draw(2) else [number])), v.dims)
    elif kind == 1 and g.opset >= 12:
        axis = g.of(v.axes())
        amounts = [0] * v.rank + [1 if a == axis else 0 for a in range(v.rank)]
        dims = [d + 1 if a == axis and isinstance(d, int) else d for a, d in enumerate(v.dims)]
        g.put(net.op("Pad", x, sized(g, *amounts), number), dims)
    else:
        g.put(net.op("PRelu", x, slope), v.dims)


def further_sizes(g: Growing) -> None:
    """Sizes, axes, bounds and counts that hidden units make."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is not None and g.opset >= 14:
        g.of((_pieces, _positions))(g, v, g.of(v.axes(2)))


def _pieces(g: Growing, v: Value, axis: int) -> None:
    """Slice, Tile, TopK, Split: how much of an axis."""
    net, size, kind = g.net, v.sizes[axis], g.draw(4)

    def dims(n: int) -> list[Dim]:
        return [n if a == axis else d for a, d in enumerate(v.dims)]

    if kind == 0:
        start = g.draw(size)
        g.put(net.op("Slice", v.name, sized(g, start), sized(g, size), net.ints(axis)), dims(size - start), v.tame)
    elif kind == 1:
        repeats = [2 if a == axis else 1 for a in range(v.rank)]
        g.put(net.op("Tile", v.name, sized(g, *repeats)), dims(2 * size), v.tame)
    elif kind == 2:
        g.put(net.ops("TopK", v.name, sized(g, 2), count=2, axis=axis)[0], dims(2), v.tame)
    else:
        pieces = net.ops("Split", v.name, sized(g, 1, size - 1), count=2, axis=axis)
        for piece, n in zip(pieces, (1, size - 1), strict=True):
            g.put(piece, dims(n), v.tame)


def _positions(g: Growing, v: Value, axis: int) -> None:
    """CumSum, ReduceSum, Trilu, Unsqueeze, OneHot: which axis, and how far."""
    net, kind = g.net, g.draw(5)
    if kind == 0:
        g.put(net.op("CumSum", g.tamed(v), net.op("Squeeze", sized(g, axis))), v.dims, tame=False)
    elif kind == 1:
        made = net.op("ReduceSum", g.tamed(v), sized(g, axis), keepdims=1)
        g.put(made, [1 if a == axis else d for a, d in enumerate(v.dims)], tame=False)
    elif kind == 2 and v.rank > 1:
        g.put(net.op("Trilu", v.name, net.op("Squeeze", sized(g, 1))), v.dims, v.tame)
    elif kind == 3 and v.rank < 5:
        g.put(net.op("Unsqueeze", v.name, sized(g, axis)), (*v.dims[:axis], 1, *v.dims[axis:]), v.tame)
    elif v.rank < 4 and (edges := computed(g, 2)) is not None:
        g.put(net.op("OneHot", index(g, v, 5), net.op("Squeeze", sized(g, 5)), edges), (*v.dims, 5))


INDEXING: tuple[Callable[[Growing], None], ...] = (
    look_up, look_up, look_up_batch, look_up_elements, write, write_masked, resize, resize, further_floats,
    further_floats, further_sizes,
)  # fmt: skip
