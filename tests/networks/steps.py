"""The steps that random networks are made of; a step for which there is no value does nothing."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from onnx import TensorProto

from tests.networks.growing import Dim, Growing, Value
from tests.networks.net import Attribute

ACTIVATIONS: dict[str, int] = {
    "Relu": 7, "Tanh": 7, "Sigmoid": 7, "LeakyRelu": 7, "Elu": 7, "Selu": 7, "Softplus": 7, "Softsign": 7, "Abs": 7,
    "HardSigmoid": 7, "Neg": 7, "Identity": 7, "Sin": 7, "Cos": 7, "Atan": 7, "Erf": 9, "Shrink": 9, "Asinh": 9,
    "Sign": 9, "Floor": 7, "Ceil": 7, "Round": 11, "Celu": 12, "HardSwish": 14, "Mish": 18, "Gelu": 20, "Swish": 24,
}  # fmt: skip
AFTER: dict[str, str] = {
    "Sqrt": "Softplus", "Log": "Softplus", "Reciprocal": "Exp", "Exp": "Tanh", "Tan": "Sin", "Asin": "Sin",
    "Acos": "Sin",
}  # fmt: skip
"""Operators that take no number whatever, and one that gives what they take."""
REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
    "ReduceProd", "ReduceLogSum",
)  # fmt: skip


def layer(g: Growing) -> None:
    """A layer along the last axis."""
    v = g.pick(lambda v: v.fixed(-1))
    if v is not None:
        g.dense(v, g.width())


def activate(g: Growing) -> None:
    v = g.pick()
    if v is None:
        return
    known = [name for name, since in ACTIVATIONS.items() if g.opset >= since]
    if g.chance(5):
        op_type = g.of([*AFTER])
        g.put(g.net.op(op_type, g.net.op(AFTER[op_type], g.tamed(v))), v.dims, tame=op_type != "Tan")
    else:
        g.put(g.net.op(g.of(known), v.name), v.dims, v.tame)


def settings(g: Growing) -> None:
    """Clip, Dropout and Cast there and back."""
    v = g.pick()
    if v is None:
        return
    kind = g.draw(3)
    if kind == 0:
        bounds = [g.net.number(-0.5), g.net.number(0.7)]
        attributes: dict[str, Attribute] = {} if g.opset >= 11 else {"min": -0.5, "max": 0.7}
        g.put(g.net.op("Clip", v.name, *(bounds if g.opset >= 11 else []), **attributes), v.dims)
    elif kind == 1:
        g.put(g.net.op("Dropout", v.name), v.dims, v.tame)
    else:
        to = g.of([TensorProto.DOUBLE, TensorProto.INT32])
        g.put(g.cast(g.cast(v.name, to), TensorProto.FLOAT), v.dims, v.tame)


def convolve(g: Growing) -> None:
    """A convolution along axis 1, grouped or not, or its transpose."""
    v = g.pick(lambda v: v.rank in (3, 4) and all(v.fixed(a) for a in range(1, v.rank)))
    if v is None:
        return
    c, places = v.sizes[1], v.sizes[2:]
    group = g.of([n for n in range(1, c + 1) if c % n == 0]) if g.draw(2) else 1
    width = group * g.of((1, 2, 3)) if group > 1 else g.width()
    kernel = [g.draw(min(3, n)) + 1 for n in places]
    stride, pad, dilation = 1 + g.draw(2), g.draw(2), 1
    fan_in = c // group * prod(kernel)
    transposed = g.chance(4)
    shape = (c, width // group) if transposed else (width, c // group)
    w = g.weight(*shape, *kernel, fan_in=fan_in)
    bias = [g.net.random("bias", width)] if g.draw(2) else []
    if transposed:
        sizes = [(n - 1) * stride + k for n, k in zip(places, kernel, strict=True)]
        pad = 0
    else:
        if g.chance(4) and all(n > 2 * (k - 1) for n, k in zip(places, kernel, strict=True)):
            dilation = 2
        span = [dilation * (k - 1) + 1 for k in kernel]
        sizes = [(n + 2 * pad - s) // stride + 1 for n, s in zip(places, span, strict=True)]
    rank = len(places)
    attributes: dict[str, Attribute] = {
        "strides": [stride] * rank,
        "pads": [pad] * 2 * rank,
        "dilations": [dilation] * rank,
    }
    op_type = "ConvTranspose" if transposed else "Conv"
    g.put(g.net.op(op_type, v.name, w, *bias, group=group, **attributes), (v.dims[0], width, *sizes))


def residual(g: Growing) -> None:
    """Two values of the same sizes meet."""
    v = g.pick()
    if v is None:
        return
    other = g.like(v)
    op_type = g.of(["Add", "Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", "Div", "Where", "PRelu", "Pow"])
    a, b = (v, other) if g.draw(2) else (other, v)
    if op_type in ("Max", "Min") and g.opset < 8:
        op_type = "Add"
    if op_type == "Where" and g.opset >= 9:
        test = g.net.op(g.of(["Less", "Greater"]), a.name, b.name)
        g.put(g.net.op("Where", test, g.net.op("Tanh", a.name), b.name), v.dims, b.tame)
    elif op_type == "Div":
        g.put(g.net.op("Div", a.name, g.net.op("Exp", g.net.op("Tanh", b.name))), v.dims, a.tame)
    elif op_type == "Pow":
        g.put(g.net.op("Pow", g.net.op("Softplus", g.tamed(a)), g.net.op("Tanh", b.name)), v.dims)
    elif op_type == "Mul":
        g.put(g.net.op("Mul", g.tamed(a), g.net.op("Sigmoid", b.name)), v.dims)
    elif op_type in ("Sum", "Mean", "Max", "Min"):
        more = [g.tamed(g.like(v))] if g.chance(3) else []
        g.put(g.net.op(op_type, g.tamed(a), g.tamed(b), *more), v.dims)
    else:
        g.put(g.net.op("Sub" if op_type == "Sub" else "Add", a.name, b.name), v.dims, a.tame and b.tame)


def parameter(g: Growing) -> None:
    """A parameter that broadcasts to a value, in front or behind."""
    v = g.pick()
    if v is None:
        return
    rank = g.draw(v.rank) + 1
    shape = [d if isinstance(d, int) and g.draw(3) else 1 for d in v.dims[v.rank - rank :]]
    op_type = g.of(["Add", "Mul", "Sub", "Div", "Max", "PRelu", "Min"])
    if op_type in ("Max", "Min") and g.opset < 8:
        op_type = "Add"
    p = g.net.positive("scale", *shape)
    if op_type == "PRelu" or (op_type == "Div") or g.draw(2):
        g.put(g.net.op(op_type, v.name, p), v.dims, v.tame)
    else:
        g.put(g.net.op(op_type, p, v.name), v.dims, v.tame)


def gate(g: Growing) -> None:
    """A value times what some of its axes reduce to (squeeze and excitation), or a smaller layer's."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is None:
        return
    axes = [a for a in v.axes() if g.draw(2)] or v.axes()[-1:]
    small = Value(g.reduce("ReduceMean", v.name, axes, 1), tuple(1 if a in axes else d for a, d in enumerate(v.dims)))
    if small.fixed(-1) and g.draw(2):
        small = g.dense(small, small.sizes[-1])
    g.put(g.net.op(g.of(["Mul", "Add"]), g.tamed(v), g.net.op("Sigmoid", small.name)), v.dims)


def concat(g: Growing) -> None:
    """Values side by side: the same twice, a layer beside, a parameter beside, an input beside."""
    v = g.pick(lambda v: bool(v.axes()))
    if v is None:
        return
    axis = g.of(v.axes())
    fits = [o for o in g.values if o.rank == v.rank and o.fixed(axis) and _same_but(o, v, axis)]
    pieces = [v]
    for _ in range(1 + g.draw(2)):
        kind = g.draw(4)
        if kind == 0 and all(v.fixed(a) for a in range(v.rank)):
            sizes = [n if a != axis else 2 for a, n in enumerate(v.sizes)]
            pieces.append(Value(g.net.random("beside", *sizes), tuple(sizes)))
        elif kind == 1 and axis == v.rank - 1:
            pieces.append(g.dense(v, g.width()))
        elif kind == 2 and v.fixed(-1):
            pieces.append(g.like(v))
        else:
            pieces.append(g.of(fits))
    if g.draw(2):
        pieces.reverse()
    size = sum(p.sizes[axis] for p in pieces)
    dims = [size if a == axis else d for a, d in enumerate(v.dims)]
    g.put(g.net.op("Concat", *(p.name for p in pieces), axis=axis), dims, all(p.tame for p in pieces))


def _same_but(a: Value, b: Value, axis: int) -> bool:
    return all(m == n for i, (m, n) in enumerate(zip(a.dims, b.dims, strict=True)) if i != axis)


def cut(g: Growing) -> None:
    """Split, Slice or Gather along an axis."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is None:
        return
    axis = g.of(v.axes(2))
    size = v.sizes[axis]

    def dims(n: int) -> list[Dim]:
        return [n if a == axis else d for a, d in enumerate(v.dims)]

    kind = g.draw(3)
    if kind == 0:
        sizes = [size // 2] * 2 if size % 2 == 0 and g.draw(2) else [1, size - 1]
        pieces = g.split(v.name, sizes, axis)
        made = [Value(p, tuple(dims(n)), v.tame) for p, n in zip(pieces, sizes, strict=True)]
        if sizes[0] == sizes[1] and g.draw(2):
            g.put(g.net.op("Mul", g.tamed(made[0]), g.net.op("Sigmoid", made[1].name)), dims(sizes[0]))
        else:
            for m, n in zip(made, sizes, strict=True):
                g.put(m.name, dims(n), v.tame)
    elif kind == 1:
        start, step = g.draw(size), 1 + g.draw(2)
        if g.opset < 10 or g.draw(3):
            step = step if g.opset >= 10 else 1
            end = g.of([size, 2**31 - 1, start + 1])
            g.put(g.slice(v.name, start, end, axis, step), dims(len(range(start, min(end, size), step))), v.tame)
        else:
            g.put(g.slice(v.name, -1, -size - 1, axis, -1), dims(size), v.tame)
    else:
        _gather(g, v, axis)


def _gather(g: Growing, v: Value, axis: int) -> None:
    size = v.sizes[axis]
    kind = g.draw(4)
    if kind == 0:
        index = np.asarray(g.draw(size))
    elif kind == 1:
        index = np.asarray([*range(size)][::-1])
    elif kind == 2:
        index = np.asarray([g.draw(size) - (size if g.opset >= 11 and g.draw(2) else 0) for _ in range(1 + g.draw(5))])
    else:
        index = np.asarray([[g.draw(size) for _ in range(2)] for _ in range(1 + g.draw(3))])
    dims = (*v.dims[:axis], *index.shape, *v.dims[axis + 1 :])
    if dims and len(dims) <= 6:
        g.put(g.net.op("Gather", v.name, g.net.array("index", index.astype(np.int64)), axis=axis), dims, v.tame)


def reshape(g: Growing) -> None:
    """An axis in two, two in one, all but the first in one, or an axis of one."""
    v = g.pick()
    if v is None:
        return
    kind = g.draw(5)
    dims = list(v.dims)
    if kind == 0 and v.axes(4) and v.rank < 6:
        axis = g.of(v.axes(4))
        size = v.sizes[axis]
        factor = g.of([n for n in range(1, size + 1) if size % n == 0])
        dims[axis : axis + 1] = [factor, size // factor]
        g.put(g.reshape(v, dims), dims, v.tame)
    elif kind == 1 and v.rank > 2:
        axis = g.draw(v.rank - 1)
        if v.fixed(axis) and v.fixed(axis + 1):
            dims[axis : axis + 2] = [v.sizes[axis] * v.sizes[axis + 1]]
            g.put(g.reshape(v, dims), dims, v.tame)
    elif kind == 2 and v.rank > 1 and all(v.fixed(a) for a in range(1, v.rank)):
        g.put(g.net.op("Flatten", v.name, axis=1), (dims[0], prod(v.sizes[1:])), v.tame)
    elif kind == 3 and v.rank < 6:
        axis = g.draw(v.rank + 1)
        dims.insert(axis, 1)
        g.put(g.unsqueeze(v.name, [axis]), dims, v.tame)
    elif kind == 4 and 1 in dims and v.rank > 2:
        axis = dims.index(1)
        del dims[axis]
        g.put(g.squeeze(v.name, [axis]), dims, v.tame)


def transpose(g: Growing) -> None:
    v = g.pick(lambda v: v.rank > 1)
    if v is None:
        return
    perm = [*range(v.rank)]
    if g.draw(2):
        a, b = g.draw(v.rank), g.draw(v.rank)
        perm[a], perm[b] = perm[b], perm[a]
    else:
        perm = [0, *perm[2:], 1] if g.draw(2) else [0, perm[-1], *perm[1:-1]]
    g.put(g.net.op("Transpose", v.name, perm=perm), [v.dims[a] for a in perm], v.tame)


def fold(g: Growing) -> None:
    """A layer over all but the last axis at once, as exporters write linear layers; and back."""
    v = g.pick(lambda v: v.rank > 2 and v.fixed(-1) and sum(not v.fixed(a) for a in range(v.rank)) < 2)
    if v is None:
        return
    width = g.width()
    flat = g.net.op("Reshape", v.name, g.net.ints(-1, v.sizes[-1]))
    net_value = g.net.op("MatMul", flat, g.weight(v.sizes[-1], width, fan_in=v.sizes[-1]))
    dims = (*v.dims[:-1], width)
    g.put(g.net.op("Reshape", net_value, g.target(v, dims, zeros=False)), dims)


def shuffle(g: Growing) -> None:
    """The channel shuffle of ShuffleNet."""
    v = g.pick(lambda v: v.rank > 1 and v.fixed(1) and all(v.fixed(a) for a in range(1, v.rank)))
    if v is None:
        return
    group = g.of([n for n in range(1, v.sizes[1] + 1) if v.sizes[1] % n == 0])
    apart = (v.dims[0], group, v.sizes[1] // group, *v.dims[2:])
    h = g.net.op("Transpose", g.reshape(v, apart), perm=[0, 2, 1, *range(3, v.rank + 1)])
    g.put(g.net.op("Reshape", h, g.target(v, v.dims)), v.dims, v.tame)


def reduce(g: Growing) -> None:
    v = g.pick(lambda v: v.rank > 1)
    if v is None:
        return
    axes = [a for a in range(v.rank) if (v.fixed(a) or g.chance(4)) and g.draw(2)]
    if not axes or len(axes) == v.rank:
        axes = [v.rank - 1]
    op_type, keepdims = g.of(REDUCTIONS), g.draw(2)
    x = g.tamed(v)
    x = g.net.op("Softplus", x) if op_type == "ReduceLogSum" else x
    x = g.net.op("Tanh", x) if op_type == "ReduceProd" else x
    signed = [a - v.rank for a in axes] if g.opset >= 11 and g.draw(2) else axes
    dims = [1 if a in axes else d for a, d in enumerate(v.dims) if keepdims or a not in axes]
    g.put(g.reduce(op_type, x, signed, keepdims), dims, tame=op_type in ("ReduceMean", "ReduceMax", "ReduceMin"))


def normalise(g: Growing) -> None:
    """One of the normalisations, with its parameters."""
    v = g.pick(lambda v: v.rank > 1 and v.fixed(1) and v.fixed(-1))
    if v is None:
        return
    net, c, x = g.net, v.sizes[1], g.tamed(v)
    kind = g.draw(7)
    if kind == 0 and g.opset >= 17:
        axis = g.of([v.rank - 1, *([1] if all(v.fixed(a) for a in range(1, v.rank)) else [])])
        shape = v.sizes[axis:]
        parameters = [net.positive("scale", *shape), net.random("shift", *shape)]
        g.put(net.op("LayerNormalization", x, *parameters, axis=axis), v.dims)
    elif kind == 1:
        parameters = [net.positive("scale", c), net.random("shift", c), net.random("mean", c)]
        g.put(net.op("BatchNormalization", x, *parameters, net.positive("variance", c)), v.dims)
    elif kind == 2 and v.rank == 4:
        g.put(net.op("LRN", x, size=3, alpha=0.5), v.dims)
    elif kind == 3 and v.rank > 2 and prod(v.sizes[2:]) > 1:
        parameters = [net.positive("scale", c), net.random("shift", c)]
        g.put(net.op("InstanceNormalization", x, *parameters), v.dims)
    elif kind == 4 and g.opset >= 21 and v.rank > 2:
        groups = g.of([n for n in range(1, c + 1) if c % n == 0])
        parameters = [net.positive("scale", c), net.random("shift", c)]
        g.put(net.op("GroupNormalization", x, *parameters, num_groups=groups), v.dims)
    elif kind == 5 and g.opset >= 23:
        g.put(net.op("RMSNormalization", x, net.positive("scale", v.sizes[-1])), v.dims)
    else:
        axis = g.of([a for a in range(v.rank) if v.fixed(a)])
        op_type = g.of(["Softmax", "LogSoftmax", "LpNormalization", "CumSum"])
        if op_type == "CumSum":
            name = net.op("CumSum", x, net.ints(axis)) if g.opset >= 11 else net.op("Softmax", x, axis=axis)
        else:
            name = net.op(op_type, x, axis=axis)
        g.put(name, v.dims, tame=op_type != "CumSum")


def attend(g: Growing) -> None:
    """Self-attention with one or more heads, fused or not, with as many keys as queries or fewer."""
    v = g.pick(lambda v: v.rank == 3 and v.fixed(1) and v.fixed(2))
    if v is None:
        return
    net, (batch, t, _) = g.net, v.dims
    heads, d = g.of((1, 2, 3, 4)), g.of((2, 3, 4))
    few = g.of([n for n in range(1, heads + 1) if heads % n == 0])
    if few == heads and g.draw(2):
        fused = g.dense(v, 3 * heads * d)
        q, k, w = (Value(n, (batch, t, heads * d)) for n in g.split(fused.name, [heads * d] * 3, 2))
    else:
        q, k, w = g.dense(v, heads * d), g.dense(v, few * d), g.dense(v, few * d)

    def apart(x: Value, count: int, perm: list[int]) -> str:
        name = net.op("Transpose", g.reshape(x, (batch, t, count, d)), perm=perm)
        if count == heads:
            return name
        return net.op("Gather", name, net.ints(*np.repeat(range(count), heads // count)), axis=1)

    query, keys = apart(q, heads, [0, 2, 1, 3]), apart(k, few, [0, 2, 3, 1])
    scores = net.op("Mul", net.op("MatMul", query, keys), net.number(d**-0.5))
    weights = net.op("Softmax", scores, axis=-1 if g.opset >= 13 else 3)
    read = net.op("Transpose", net.op("MatMul", weights, apart(w, few, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    g.put(net.op("Reshape", read, g.target(v, (batch, t, heads * d))), (batch, t, heads * d))


def product(g: Growing) -> None:
    """A product of two activations that sums over units or over places."""
    v = g.pick(lambda v: v.rank > 2 and v.fixed(-1))
    if v is None:
        return
    other = g.like(v)
    turned = g.net.op("Transpose", g.tamed(other), perm=[*range(v.rank - 2), v.rank - 1, v.rank - 2])
    a, b = (g.tamed(v), turned) if g.draw(2) else (turned, g.tamed(v))
    size = v.dims[-2] if a != turned else v.dims[-1]
    g.put(g.net.op("MatMul", a, b), (*v.dims[:-2], size, size), tame=False)


def pool(g: Growing) -> None:
    v = g.pick(lambda v: v.rank in (3, 4) and all(v.fixed(a) for a in range(1, v.rank)))
    if v is None:
        return
    if g.draw(2):
        name = g.net.op(g.of(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]), g.tamed(v))
        g.put(name, (*v.dims[:2], *[1] * (v.rank - 2)), tame=False)
        return
    places = v.sizes[2:]
    kernel = [min(2, n) for n in places]
    sizes = [(n - k) // k + 1 for n, k in zip(places, kernel, strict=True)]
    op_type = g.of(["MaxPool", "AveragePool", "LpPool"])
    g.put(g.net.op(op_type, v.name, kernel_shape=kernel, strides=kernel), (*v.dims[:2], *sizes), v.tame)


def space(g: Growing) -> None:
    """Resize, and channels to places and back."""
    v = g.pick(lambda v: v.rank == 4 and all(v.fixed(a) for a in range(1, 4)))
    if v is None:
        return
    n, c, h, w = v.dims[0], *v.sizes[1:]
    kind = g.draw(3)
    if kind == 0 and c % 4 == 0:
        mode = {"mode": g.of(["DCR", "CRD"])} if g.opset >= 11 else {}
        g.put(g.net.op("DepthToSpace", v.name, blocksize=2, **mode), (n, c // 4, 2 * h, 2 * w), v.tame)
    elif kind == 1 and h % 2 == 0 and w % 2 == 0:
        g.put(g.net.op("SpaceToDepth", v.name, blocksize=2), (n, 4 * c, h // 2, w // 2), v.tame)
    elif g.opset >= 9:
        scales = g.net.array("scales", np.asarray([1, 1, 2, 2], np.float32))
        region = g.net.array("region", np.zeros(0, np.float32)) if g.opset < 13 else ""
        inputs = [scales] if g.opset < 11 else [region, scales]
        name = g.net.op("Resize" if g.opset >= 10 else "Upsample", v.name, *inputs, mode=g.of(["nearest", "linear"]))
        g.put(name, (n, c, 2 * h, 2 * w), v.tame)


def pad(g: Growing) -> None:
    """Places, or units, of zero around."""
    v = g.pick(lambda v: bool(v.axes()))
    if v is None:
        return
    axis = g.of(v.axes())
    front, behind = g.draw(2), 1 + g.draw(2)
    amounts = [front if a == axis else 0 for a in range(v.rank)] + [behind if a == axis else 0 for a in range(v.rank)]
    dims = [v.sizes[axis] + front + behind if a == axis else d for a, d in enumerate(v.dims)]
    g.put(g.with_ints("Pad", v.name, "pads", amounts, 11), dims, v.tame)


def spread(g: Growing) -> None:
    """Expand or Tile."""
    v = g.pick(lambda v: bool(v.axes()))
    if v is None:
        return
    axis, times = g.of(v.axes()), 2 + g.draw(2)
    dims: list[Dim] = list(v.dims)
    if v.sizes[axis] == 1 and g.opset >= 8 and g.draw(3):
        dims[axis] = times
        target = [times if a == axis else 1 for a in range(v.rank)]
        g.put(g.net.op("Expand", v.name, g.net.ints(*target)), dims, v.tame)
    else:
        dims[axis] = v.sizes[axis] * times
        repeats = [times if a == axis else 1 for a in range(v.rank)]
        g.put(g.net.op("Tile", v.name, g.net.ints(*repeats)), dims, v.tame)


def select(g: Growing) -> None:
    """The largest elements along an axis, or where the largest is."""
    v = g.pick(lambda v: bool(v.axes(2)))
    if v is None:
        return
    axis = g.of(v.axes(2))
    if g.draw(2):
        found = g.net.op(g.of(["ArgMax", "ArgMin"]), v.name, axis=axis, keepdims=1)
        name = g.net.op("Mul", g.cast(found, TensorProto.FLOAT), g.net.number(0.2))
        g.put(name, [1 if a == axis else d for a, d in enumerate(v.dims)])
    elif g.opset >= 10:
        values = g.net.ops("TopK", v.name, g.net.ints(2), count=2, axis=axis)[0]
        g.put(values, [2 if a == axis else d for a, d in enumerate(v.dims)], v.tame)


def route(g: Growing) -> None:
    """Rows that the data choose, through a layer of their own: back in their places, or their sum."""
    v = g.pick(lambda v: v.rank == 2 and v.fixed(1))
    if v is None or g.opset < 11:
        return
    by = g.pick(lambda u: u.rank == 2 and u.fixed(1) and u.dims[0] == v.dims[0]) or v
    net, n = g.net, v.sizes[1]
    score = g.reduce(g.of(("ReduceMax", "ReduceSum")), by.name, [1], 0)
    where = net.op("NonZero", net.op("Greater", score, net.number(0.1)))
    listed = net.op("Transpose", where, perm=[1, 0])
    rows = net.op("GatherND", v.name, listed) if g.draw(2) else net.op("Gather", v.name, g.squeeze(where, [0]), axis=0)
    rows = net.op("Tanh", net.op("MatMul", rows, g.weight(n, n, fan_in=n)))
    if g.draw(2):
        g.put(net.op("ScatterND", v.name, listed, rows), v.dims, v.tame)
    else:
        g.put(g.reduce("ReduceSum", rows, [0], 1), (1, n))


def source(g: Growing) -> None:
    """Numbers that come from no weight: in the sizes of a value, or along one axis."""
    v = g.pick(lambda v: v.fixed(-1))
    if v is None:
        return
    kind, net = g.draw(4), g.net
    if kind == 0 and g.opset >= 9:
        made = net.op("ConstantOfShape", net.op("Shape", v.name))
    elif kind == 1 and g.opset >= 11:
        made = net.op("Range", net.number(0), net.number(v.sizes[-1]), net.number(1))
    elif kind == 2 and g.opset >= 8:
        made = net.op("Expand", net.number(0.3), net.op("Shape", v.name))
    else:
        size = net.op("Size" if g.draw(2) else "Shape", v.name)
        made = net.op("Sigmoid", g.cast(size, TensorProto.FLOAT))
        made = g.reduce("ReduceMean", made, [0], 1) if net.nodes[-3].op_type == "Shape" else made
    g.put(net.op("Add", v.name, made), v.dims, tame=False)


def unknown(g: Growing) -> None:
    """Operators without a rule, of ONNX and of other domains."""
    v = g.pick(lambda v: v.rank > 1)
    if v is None:
        return
    kind = g.draw(4)
    if kind == 0 and g.opset >= 14:
        g.put(g.net.op("Trilu", v.name), v.dims, v.tame)
    elif kind == 1 and g.opset >= 11:
        zeros = g.net.op("Cast", g.net.op("Mul", v.name, g.net.number(0)), to=TensorProto.INT64)
        g.put(g.net.op("GatherElements", v.name, zeros, axis=v.rank - 1), v.dims, v.tame)
    elif kind == 2 and g.opset >= 9 and v.rank == 4:
        g.put(g.net.op("MeanVarianceNormalization", v.name), v.dims)
    else:
        g.put(g.net.op("QuickGelu", v.name, domain="com.microsoft"), v.dims, v.tame)


COMMON: tuple[Callable[[Growing], None], ...] = (layer, activate, residual, parameter, convolve, reshape, transpose)
RARE: tuple[Callable[[Growing], None], ...] = (
    settings, gate, concat, cut, fold, shuffle, reduce, normalise, attend, product, pool, space, pad, spread, select,
    source, route,
)  # fmt: skip
STEPS = (*COMMON, *COMMON, *RARE, *RARE, unknown)
