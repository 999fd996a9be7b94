"""An operator of each kind in a network of its own: conv, OPERATOR, conv, pooling, linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from tests.networks.looping import given, graph, integer, loop, taken
from tests.networks.net import Net
from tests.networks.recurrent import GATES, Form, recur

WIDTH = 6
FLOAT, INT32, INT64, BOOL, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
    TensorProto.UINT8,
)
Build = Callable[[Net, str], str]


@dataclass(frozen=True)
class Recipe:
    """An operator on h ``[N, 6, 4, 4]``, and what becomes of the units in front of it.

    `build` returns a value of rank 4 with `channels` channels. `shared`: a layer beside the divided ones is not.
    """

    build: Build
    becomes: Literal["divided", "duplicated", "undivided", "shared"] = "divided"
    channels: int = WIDTH
    opset: int = 17


def other(n: Net) -> str:
    """A second tensor of the same shape, by other weights."""
    return n.conv("x", 2, WIDTH, name="other")


def unary(op_type: str, opset: int = 17, **attributes: int | float) -> Recipe:
    return Recipe(lambda n, h: n.op(op_type, h, **attributes), opset=opset)


def each(make: Callable[[str], Recipe], names: str) -> dict[str, Recipe]:
    return {name: make(name) for name in names.split()}


def within(op_type: str, before: str) -> Recipe:
    """An operator that takes what `before` gives: positive numbers, or ones below 1."""
    return Recipe(lambda n, h: n.op(op_type, n.op("Mul", n.op(before, h), n.number(0.9))))


def binary(op_type: str, **attributes: int | float) -> Recipe:
    return Recipe(lambda n, h: n.op(op_type, h, other(n), **attributes))


def floats(n: Net, h: str) -> str:
    return n.op("Cast", h, to=FLOAT)


def compared(op_type: str) -> Recipe:
    return Recipe(
        lambda n, h: n.op("Where", n.op(op_type, n.op("Round", h), n.op("Round", other(n))), h, n.op("Neg", h))
    )


def logical(op_type: str) -> Recipe:
    return Recipe(
        lambda n, h: n.op(
            "Where", n.op(op_type, n.op("Cast", n.op("Relu", h), to=BOOL), n.op("Less", other(n), h)), h, n.op("Neg", h)
        )
    )


def whole_numbers(n: Net, h: str, to: int = INT32) -> str:
    return n.op("Cast", n.op("Mul", n.op("Softplus", h), n.number(4)), to=to)


def bits(op_type: str, opset: int = 18, to: int = INT32, **attributes: str) -> Recipe:
    return Recipe(
        lambda n, h: floats(n, n.op(op_type, whole_numbers(n, h, to), whole_numbers(n, other(n), to), **attributes)),
        opset=opset,
    )


def pool(op_type: str, **attributes: int) -> Recipe:
    return Recipe(lambda n, h: n.op(op_type, h, kernel_shape=[2, 2], strides=[1, 1], **attributes))


def reduction(op_type: str, positive: bool = False) -> dict[str, Recipe]:
    """Over places, and over channels; axes are an attribute (opset 13) or an input (18)."""

    def before(n: Net, h: str) -> str:
        return n.op("Softplus", h) if positive else h

    def over(n: Net, h: str, *axes: int) -> str:
        return n.op(op_type, before(n, h), n.ints(*axes), keepdims=1)

    def attribute(n: Net, h: str, *axes: int) -> str:
        if op_type == "ReduceSum":
            return over(n, h, *axes)
        return n.op(op_type, before(n, h), axes=list(axes), keepdims=1)

    return {
        op_type: Recipe(lambda n, h: over(n, h, 2, 3), opset=18),
        f"{op_type}: an attribute": Recipe(lambda n, h: attribute(n, h, -1)),
        f"{op_type}: over channels": Recipe(lambda n, h: over(n, h, 1), "duplicated", channels=1, opset=18),
    }


def along(op_type: str, opset: int = 17) -> dict[str, Recipe]:
    return {
        f"{op_type}: over channels": Recipe(lambda n, h: n.op(op_type, h, axis=1), "duplicated", opset=opset),
        op_type: Recipe(lambda n, h: n.op(op_type, h, axis=3), opset=opset),
    }


def moved(n: Net, h: str, build: Build) -> str:
    """`build` with channels last, and back."""
    return n.op("Transpose", build(n, n.op("Transpose", h, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])


def reversed_along(n: Net, h: str, perm: list[int], *lengths: int) -> str:
    """A ReverseSequence along the first of the axes in `perm`, of these lengths along the second, and back."""
    turned = n.op("ReverseSequence", n.op("Transpose", h, perm=perm), n.ints(*lengths), time_axis=0, batch_axis=1)
    return n.op("Transpose", turned, perm=sorted(range(4), key=perm.__getitem__))


def norm(n: Net, op_type: str, h: str, *shape: int, **attributes: int | float) -> str:
    return n.op(op_type, h, n.positive("scale", *shape), n.random("shift", *shape), **attributes)


def channelwise(n: Net, h: str, values: str) -> str:
    """Adds 6 values that come from no weight, one to a channel."""
    return n.op("Add", h, n.op("Reshape", values, n.ints(1, WIDTH, 1, 1)))


def branched(n: Net, h: str) -> str:
    return taken(n, given(n), lambda m: [m.op("Relu", other(m))], lambda m: [m.op("Neg", h)])[0]


def looped(n: Net, h: str) -> str:
    return loop(n, integer(n, 2), [h], lambda m, _, s: ([m.op("Tanh", m.conv(s[0], WIDTH, WIDTH, name="again"))], []))[
        0
    ]


def scanned(n: Net, h: str) -> str:
    both = n.op("Concat", *[n.op("Unsqueeze", value, n.ints(0)) for value in (h, other(n))], axis=0)
    body = graph(n, "body", {"s": "state", "part": "each"}, lambda m: [m.op("Add", m.op("Tanh", "s"), "part")])
    return n.op("Scan", h, both, body=body, num_scan_inputs=1)


def places(n: Net, h: str) -> str:
    return n.op("Reshape", h, n.ints(0, 0, -1))


def image(n: Net, h: str) -> str:
    return n.op("Reshape", h, n.ints(0, 0, 4, 4))


def attended(n: Net, h: str) -> str:
    """Products of two activations over places, [N, 6, 16] x [N, 6, 16]: no unit meets another."""
    scores = n.op("MatMul", n.op("Reshape", h, n.ints(0, 0, 16, 1)), n.op("Reshape", other(n), n.ints(0, 0, 1, 16)))
    return n.op("Softmax", scores, axis=3)


def turned_heads(n: Net, h: str, shape: str, **attributes: int) -> str:
    """RotaryEmbedding over 16 places [N, 16, 6 * 4] or 6 heads [N, 6, 16, 4]; three projections of 6 heads of 4."""
    tokens = n.op("Reshape", n.op("Transpose", h, perm=[0, 2, 3, 1]), n.ints(0, 16, 6))
    heads = n.op("MatMul", tokens, n.random("heads.weight", 6, 24))
    rows = n.op("Concat", n.op("Shape", h, start=0, end=1), n.ints(16), axis=0)
    angles = [n.random("cos", 16, 2), n.random("sin", 16, 2), n.op("Expand", n.ints(*range(16)), rows)]
    if shape == "heads":
        heads = n.op("Transpose", n.op("Reshape", heads, n.ints(0, 0, 6, 4)), perm=[0, 2, 1, 3])
        turned = n.op("RotaryEmbedding", heads, *angles, **attributes)
        turned = n.op("Reshape", n.op("Transpose", turned, perm=[0, 2, 1, 3]), n.ints(0, 0, 24))
    else:
        turned = n.op("RotaryEmbedding", heads, *angles, num_heads=6, **attributes)
    return n.op("Reshape", n.op("Transpose", turned, perm=[0, 2, 1]), n.ints(0, 24, 4, 4))


def heads(n: Net, h: str, queries: int, keys: int, width: int, **attributes: int) -> str:
    """Attention over 16 places."""
    tokens = n.op("Reshape", n.op("Transpose", h, perm=[0, 2, 3, 1]), n.ints(0, 16, 6))
    sizes = {"q": queries, "k": keys, "v": keys}
    inputs = [n.op("MatMul", tokens, n.random(f"{i}.weight", 6, size * width)) for i, size in sizes.items()]
    out = n.op("Attention", *inputs, q_num_heads=queries, kv_num_heads=keys, **attributes)
    return n.op("Reshape", n.op("Transpose", out, perm=[0, 2, 1]), n.ints(0, queries * width, 4, 4))


def four_axes(n: Net, h: str) -> str:
    """Attention over heads [N, 6, 16, 2] with a mask for each head."""
    tokens = n.op("Reshape", n.op("Transpose", h, perm=[0, 2, 3, 1]), n.ints(0, 16, 6))

    def project(name: str) -> str:
        flat = n.op("MatMul", tokens, n.random(f"{name}.weight", 6, 12))
        return n.op("Transpose", n.op("Reshape", flat, n.ints(0, 0, 6, 2)), perm=[0, 2, 1, 3])

    out = n.op("Attention", project("q"), project("k"), project("v"), n.random("mask", 6, 16, 16))
    return n.op("Reshape", n.op("Transpose", out, perm=[0, 1, 3, 2]), n.ints(0, 12, 4, 4))


def split_in(n: Net, h: str, *sizes: int) -> str:
    pieces = n.ops("Split", h, n.ints(*sizes), count=len(sizes), axis=1)
    return n.op("Concat", *pieces[::-1], axis=1)


def sliced(n: Net, h: str, start: int, end: int, axis: int, step: int = 1) -> str:
    return n.op("Slice", h, n.ints(start), n.ints(end), n.ints(axis), n.ints(step))


def statistics(n: Net, h: str) -> str:
    parameters = [n.positive("scale", 6), n.random("shift", 6), n.random("mean", 6), n.positive("variance", 6)]
    return n.op("BatchNormalization", h, *parameters)


def linear(n: Net, h: str) -> str:
    """A Gemm from all places of all channels to 6 units, as an image of one place."""
    flat = n.op("Flatten", h, axis=1)
    return n.op("Reshape", n.linear(flat, 96, 6, name="middle"), n.ints(0, 6, 1, 1))


def turned_gemm(n: Net, h: str) -> str:
    """A Gemm with neither operand turned, behind one with both."""
    flat = n.op("ReduceMean", h, axes=[2, 3], keepdims=0)
    first = n.op("Gemm", flat, n.random("first.weight", 6, 6), n.random("first.bias", 1, 6), alpha=0.5, beta=2.0)
    turned = n.op("Transpose", first, perm=[1, 0])
    second = n.op("Gemm", turned, n.random("second.weight", 6, 6), transA=1, transB=1)
    return n.op("Reshape", second, n.ints(0, 6, 1, 1))


def masked_rows(n: Net, h: str) -> str:
    """A softmax along rows, some of which are masked as a whole, and zeros in their place."""
    seen = n.op("Greater", n.op("ReduceMax", "x", axes=[1, 3]), n.number(1))
    odds = n.op("Softmax", n.op("Where", seen, h, n.number(-np.inf)), axis=3)
    return n.op("Where", n.op("IsNaN", odds), n.number(0), odds)


def table_lookup(n: Net, h: str) -> str:
    """An embedding whose rows follow a sign, added to h."""
    index = n.op("Cast", n.op("Relu", n.op("Sign", sliced(n, "x", 0, 1, 1))), to=TensorProto.INT64)
    found = n.op("Gather", n.random("table", 2, 6), n.op("Squeeze", index, n.ints(1)), axis=0)
    return n.op("Add", h, n.op("Transpose", found, perm=[0, 3, 1, 2]))


def positions(op_type: str) -> dict[str, Recipe]:
    def over(n: Net, h: str, axis: int) -> str:
        return n.op("Mul", floats(n, n.op(op_type, h, axis=axis, keepdims=1)), n.number(0.3))

    return {
        op_type: Recipe(lambda n, h: n.op("Mul", h, over(n, h, 2))),
        f"{op_type}: over channels": Recipe(lambda n, h: n.op("Mul", h, over(n, h, 1)), "undivided"),
    }


def best(n: Net, h: str, axis: int) -> str:
    return n.ops("TopK", h, n.ints(3), count=2, axis=axis)[0]


def source(build: Callable[[Net], str], opset: int = 17) -> Recipe:
    return Recipe(lambda n, h: channelwise(n, h, build(n)), opset=opset)


def eye(n: Net) -> str:
    return n.op("ReduceSum", n.op("EyeLike", n.array("square", np.zeros((6, 6), np.float32)), k=1), n.ints(0))


def resized(n: Net, h: str, **attributes: str) -> str:
    scales = n.array("scales", np.asarray([1, 1, 2, 2], np.float32))
    return n.op("Resize", h, "", scales, **attributes)


def shaped(n: Net, h: str) -> str:
    """A zero that is made in the shape that Shape tells."""
    return n.op("Add", h, n.op("Expand", n.number(0.5), n.op("Shape", h)))


def counted(n: Net, h: str) -> str:
    """The mean as sum over count, both over the whole tensor's places."""
    share = n.op("Div", n.op("Cast", n.op("Size", h), to=FLOAT), n.op("Cast", n.op("Size", "x"), to=FLOAT))
    return n.op("Mul", h, share)


def recurrent(op_type: str) -> dict[str, Recipe]:
    """Along the places of h, in each version and direction; all forms are in test_recurrent.py."""

    def along(n: Net, h: str, direction: str) -> str:
        sequence = n.op("Transpose", places(n, h), perm=[2, 0, 1])
        (y,) = recur(n, Form(op_type, direction), sequence, WIDTH, {})
        return n.op("Reshape", n.op("Transpose", y, perm=[2, 1, 3, 0]), n.ints(0, -1, 4, 4))

    def recipe(direction: str, opset: int) -> Recipe:
        return Recipe(
            lambda n, h: along(n, h, direction), channels=WIDTH * (1 + (direction == "bidirectional")), opset=opset
        )

    return {
        op_type: recipe("forward", 17),
        f"{op_type}: version 7": recipe("reverse", 9),
        f"{op_type}: version 22": recipe("bidirectional", 22),
    }


def indices(n: Net, *shape: int, upto: int) -> str:
    """Constant positions along an axis of `upto`, of `shape`."""
    rng = np.random.default_rng(5)
    return n.array("indices", rng.integers(0, upto, shape))


def permuted_places(n: Net, *shape: int) -> str:
    """Constant positions that are all different along the last axis, which has 4."""
    rng = np.random.default_rng(5)
    return n.array("indices", rng.permuted(np.broadcast_to(np.arange(4), shape), axis=-1))


def batched(n: Net, values: str, channels: int) -> str:
    """A constant ``[1, channels, 4, 4]`` for every sample."""
    return n.op(
        "Expand", values, n.op("Concat", sliced(n, n.op("Shape", "x"), 0, 1, 0), n.ints(channels, 4, 4), axis=0)
    )


def constant(n: Net, *shape: int) -> str:
    """Numbers between 0 and 1 that are no parameter."""
    values = np.random.default_rng(5).random(int(np.prod(shape))).tolist()
    return n.op("Reshape", n.op("Constant", value_floats=values), n.ints(*shape))


def grid(n: Net) -> str:
    """Where to sample: a constant grid, moved by the input."""
    move = n.op("ReduceMean", n.op("Transpose", "x", perm=[0, 2, 3, 1]), axes=[3])
    return n.op("Tanh", n.op("Add", constant(n, 1, 4, 4, 2), move))


def grouped_grid(n: Net, h: str, offsets: str) -> str:
    """Each channel sampled at places of its own: channels and places folded into the batch axis."""
    alone = n.op("Reshape", h, n.ints(-1, 1, 4, 4))
    return n.op("Reshape", n.op("GridSample", alone, n.op("Tanh", offsets)), n.ints(-1, WIDTH, 4, 4))


def own_places(n: Net, h: str) -> str:
    """Places that a layer computes for each channel."""
    offsets = n.op("Reshape", n.conv("x", 2, 2 * WIDTH, name="offsets"), n.ints(-1, 2, 4, 4))
    return grouped_grid(n, h, n.op("Transpose", offsets, perm=[0, 2, 3, 1]))


def given_places(n: Net, h: str) -> str:
    """Places for each channel that come from the input."""
    times = n.op("Tile", n.op("Transpose", "x", perm=[0, 2, 3, 1]), n.ints(1, WIDTH, 1, 1))
    return grouped_grid(n, h, n.op("Reshape", times, n.ints(-1, 4, 4, 2)))


def viewed(n: Net, h: str) -> str:
    """A view by strides as exporters write it: all elements by their numbers, which follow from the sizes."""
    zero, one = (n.array("step", np.asarray(value, np.int64)) for value in (0, 1))
    count = n.op("Range", zero, n.op("Size", h), one)
    return n.op("Gather", n.op("Reshape", h, n.ints(-1)), n.op("Reshape", count, n.op("Shape", h)))


def regions(n: Net, h: str, op_type: str) -> str:
    """Two regions of the first sample, averaged."""
    if op_type == "MaxRoiPool":
        rois = n.op("Reshape", n.op("Constant", value_floats=[0.0, 0, 0, 3, 3, 0, 1, 0, 2, 3]), n.ints(2, 5))
        found = n.op(op_type, h, rois, pooled_shape=[2, 2])
    else:
        rois = n.op("Reshape", n.op("Constant", value_floats=[0.0, 0, 3, 3, 1, 0, 2, 3]), n.ints(2, 4))
        found = n.op(op_type, h, rois, n.ints(0, 0), output_height=2, output_width=2, sampling_ratio=2)
    return n.op("Add", n.op("ReduceMean", found, axes=[0], keepdims=1), n.op("ReduceMean", "x", axes=[1, 2, 3]))


def mel(n: Net) -> str:
    """A filter bank of 6 bands, summed over frequencies."""
    whole = [n.array("setting", np.asarray(v, np.int64)) for v in (6, 64, 8000)]
    bank = n.op("MelWeightMatrix", *whole, n.number(0), n.number(4000))
    return n.op("ReduceSum", bank, n.ints(0), keepdims=0)


def window(op_type: str) -> Recipe:
    return source(lambda n: n.op(op_type, n.array("size", np.asarray(6, np.int64))))


def spectrum(n: Net, h: str, axis: int) -> str:
    """The real part of a discrete Fourier transform."""
    signal = n.op("Unsqueeze", h, n.ints(4))
    found = n.op("DFT", signal, "", n.array("axis", np.asarray(axis, np.int64)))
    return n.op("Gather", found, n.array("real", np.asarray(0, np.int64)), axis=4)


def spectrum_attribute(n: Net, h: str) -> str:
    found = n.op("DFT", n.op("Unsqueeze", h, n.ints(4)), axis=2)
    return n.op("Gather", found, n.array("real", np.asarray(0, np.int64)), axis=4)


def quantized(n: Net, h: str, shape: tuple[int, ...] = ()) -> str:
    """Rounded to whole steps and back: one step for all channels, or one for each."""
    axis = {"axis": 1} if shape else {}
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        step = n.array("step", np.linspace(0.05, 0.07, 6, dtype=np.float32) if shape else np.float32(0.05))
        h = n.op(op_type, h, step, n.array("zero", np.full(shape, 3, np.int8)), **axis)
    return h


def hot(n: Net, h: str) -> str:
    """Which place of each row is largest, one-hot: [N, 6, 4, 4]."""
    where = n.op("ArgMax", h, axis=3, keepdims=0)
    depth, values = n.array("depth", np.asarray(4, np.int64)), n.array("values", np.float32([0, 1]))
    return n.op("Mul", h, n.op("OneHot", where, depth, values, axis=-1))


def windows(n: Net, h: str) -> str:
    """Windows of 2 x 2 that are put next to one another."""
    columns = n.op("Reshape", n.conv(h, 6, 24, name="wide"), n.ints(0, 24, 16))
    return n.op("Col2Im", columns, n.ints(8, 8), n.ints(2, 2), strides=[2, 2])


def deformed(n: Net, h: str, own: bool = False) -> str:
    """A deformable convolution whose offsets come from the input, or from the units themselves."""
    source = n.conv(h, 6, 8, name="offset") if own else n.op("Concat", "x", "x", "x", "x", axis=1)
    offset = n.op("Mul", source, n.number(0.3))
    return n.op(
        "DeformConv",
        h,
        n.random("middle.weight", 6, 6, 2, 2),
        offset,
        n.random("middle.bias", 6),
        pads=[0, 0, 1, 1],
        kernel_shape=[2, 2],
    )


def pooled_positions(n: Net, h: str) -> str:
    """MaxPool with its positions, which count over all channels."""
    values, where = n.ops("MaxPool", h, count=2, kernel_shape=[2, 2])
    return n.op("Add", values, n.op("Mul", floats(n, where), n.number(0.01)))


def pooled_over_channels(op_type: str) -> Recipe:
    def build(n: Net, h: str) -> str:
        last = n.op("Transpose", h, perm=[0, 2, 3, 1])
        return n.op("Transpose", n.op("Sub", last, n.op(op_type, last)), perm=[0, 3, 1, 2])

    return Recipe(build, "duplicated")


RECIPES: dict[str, Recipe] = {
    "If": Recipe(branched),
    "Loop": Recipe(looped),
    "Scan": Recipe(scanned),
    "BitCast": Recipe(lambda n, h: n.op("BitCast", n.op("Neg", n.op("BitCast", h, to=INT32)), to=FLOAT), opset=26),
    "BlackmanWindow": window("BlackmanWindow"),
    "HammingWindow": window("HammingWindow"),
    "HannWindow": window("HannWindow"),
    "MelWeightMatrix": source(mel),
    "CastLike": Recipe(lambda n, h: n.op("CastLike", whole_numbers(n, h), "x")),
    "CenterCropPad": Recipe(lambda n, h: n.op("CenterCropPad", h, n.ints(2, 6), axes=[2, 3]), opset=18),
    "CenterCropPad: all axes": Recipe(
        lambda n, h: n.op(
            "CenterCropPad", h, n.op("Concat", sliced(n, n.op("Shape", h), 0, 2, 0), n.ints(3, 3), axis=0)
        ),
        opset=18,
    ),
    "Col2Im": Recipe(windows, opset=18),
    "CumProd": Recipe(lambda n, h: n.op("CumProd", h, n.ints(2)), opset=26),
    "CumProd: over channels": Recipe(lambda n, h: n.op("CumProd", h, n.ints(1)), "duplicated", opset=26),
    "DFT": Recipe(lambda n, h: spectrum(n, h, -3), opset=20),
    "DFT: an attribute": Recipe(spectrum_attribute),
    "DFT: over channels": Recipe(lambda n, h: spectrum(n, h, 1), "undivided", opset=20),
    "DeformConv": Recipe(deformed, opset=19),
    "DeformConv: offsets from units": Recipe(lambda n, h: deformed(n, h, own=True), "shared", opset=19),
    "Einsum: one operand": Recipe(lambda n, h: moved(n, h, lambda n, t: n.op("Einsum", t, equation="nhwc->nwhc"))),
    "Einsum: an exchange": Recipe(
        lambda n, h: n.op(
            "Transpose",
            n.op("Einsum", n.op("Pad", h, n.ints(0, 0, 1, 1, 0, 0, 1, 1)), equation="nchw->nhwc"),
            perm=[0, 3, 1, 2],
        )
    ),
    "Einsum: sums of places": Recipe(
        lambda n, h: n.op("Add", h, n.op("Unsqueeze", n.op("Einsum", h, equation="ncij->nci"), n.ints(3)))
    ),
    "Einsum: sums of channels": Recipe(
        lambda n, h: n.op("Unsqueeze", n.op("Einsum", h, equation="ncij->nij"), n.ints(1)), "duplicated", channels=1
    ),
    "GatherElements": Recipe(
        lambda n, h: n.op("GatherElements", h, batched(n, indices(n, 1, 6, 4, 4, upto=4), 6), axis=-1)
    ),
    "GatherElements: the best": Recipe(
        lambda n, h: n.op("GatherElements", other(n), n.ops("TopK", h, n.ints(4), count=2, axis=3)[1], axis=3)
    ),
    "GatherElements: over channels": Recipe(
        lambda n, h: n.op("GatherElements", h, batched(n, indices(n, 1, 6, 4, 4, upto=6), 6), axis=1), "undivided"
    ),
    "GatherND": Recipe(
        lambda n, h: moved(
            n,
            h,
            lambda n, t: n.op(
                "Unsqueeze",
                n.op(
                    "GatherND",
                    t,
                    n.op(
                        "Expand",
                        indices(n, 1, 3, 2, upto=4),
                        n.op("Concat", sliced(n, n.op("Shape", t), 0, 1, 0), n.ints(3, 2), axis=0),
                    ),
                    batch_dims=1,
                ),
                n.ints(2),
            ),
        )
    ),
    "GatherND: over channels": Recipe(
        lambda n, h: n.op(
            "GatherND",
            h,
            n.op(
                "Expand",
                indices(n, 1, 6, 1, upto=6),
                n.op("Concat", sliced(n, n.op("Shape", h), 0, 1, 0), n.ints(6, 1), axis=0),
            ),
            batch_dims=1,
        ),
        "undivided",
    ),
    "GridSample": Recipe(lambda n, h: n.op("GridSample", h, grid(n))),
    "GridSample: places of each channel": Recipe(own_places),
    "GridSample: given places of each channel": Recipe(given_places),
    "Gather: a view by strides": Recipe(viewed),
    "MaxRoiPool": Recipe(lambda n, h: regions(n, h, "MaxRoiPool")),
    "RoiAlign": Recipe(lambda n, h: regions(n, h, "RoiAlign")),
    "MaxPool: positions": Recipe(pooled_positions, "undivided"),
    "MeanVarianceNormalization": Recipe(lambda n, h: n.op("MeanVarianceNormalization", h, axes=[2, 3])),
    "MeanVarianceNormalization: over channels": Recipe(
        lambda n, h: n.op("MeanVarianceNormalization", h, axes=[1, 2, 3]), "duplicated"
    ),
    "OneHot": Recipe(hot),
    "QuantizeLinear": Recipe(quantized),
    "QuantizeLinear: by channel": Recipe(lambda n, h: quantized(n, h, (6,))),
    "DequantizeLinear": Recipe(quantized),
    "DequantizeLinear: by channel": Recipe(lambda n, h: quantized(n, h, (6,))),
    "ReverseSequence": Recipe(lambda n, h: reversed_along(n, h, [2, 3, 0, 1], 1, 2, 3, 4)),
    "ReverseSequence: over channels": Recipe(lambda n, h: reversed_along(n, h, [1, 3, 0, 2], 1, 2, 3, 6), "undivided"),
    "Scatter": Recipe(
        lambda n, h: n.op(
            "Scatter", h, n.op("Expand", permuted_places(n, 1, 6, 4, 4), n.op("Shape", h)), other(n), axis=3
        ),
        opset=9,
    ),
    "Scatter: over channels": Recipe(
        lambda n, h: n.op("Scatter", h, n.op("Expand", indices(n, 1, 6, 4, 4, upto=6), n.op("Shape", h)), h, axis=1),
        "undivided",
        opset=9,
    ),
    "ScatterElements": Recipe(
        lambda n, h: n.op("ScatterElements", h, batched(n, permuted_places(n, 1, 6, 4, 4), 6), other(n), axis=3)
    ),
    "ScatterElements: over channels": Recipe(
        lambda n, h: n.op(
            "ScatterElements", h, batched(n, indices(n, 1, 6, 4, 4, upto=6), 6), other(n), axis=1, reduction="add"
        ),
        "undivided",
        opset=16,
    ),
    "ScatterElements: from constants": Recipe(
        lambda n, h: n.op(
            "ScatterElements",
            h,
            batched(n, permuted_places(n, 1, 6, 4, 4), 6),
            n.op("Expand", n.number(0.5), n.op("Shape", h)),
            axis=3,
        )
    ),
    "ScatterND": Recipe(
        lambda n, h: n.op(
            "Transpose",
            n.op(
                "ScatterND",
                n.op("Transpose", h, perm=[2, 3, 0, 1]),
                n.array("indices", np.int64([[1], [3]])),
                n.op("Slice", n.op("Transpose", other(n), perm=[2, 3, 0, 1]), n.ints(0), n.ints(2), n.ints(0)),
            ),
            perm=[2, 3, 0, 1],
        )
    ),
    "ScatterND: blocks from the input": Recipe(
        lambda n, h: n.op(
            "Transpose",
            n.op(
                "ScatterND",
                n.op("Transpose", h, perm=[2, 3, 0, 1]),
                n.array("indices", np.int64([[1], [3]])),
                n.op(
                    "Slice",
                    n.op("Transpose", n.op("Concat", "x", "x", "x", axis=1), perm=[2, 3, 0, 1]),
                    n.ints(0),
                    n.ints(2),
                    n.ints(0),
                ),
            ),
            perm=[2, 3, 0, 1],
        )
    ),
    "ScatterND: over channels": Recipe(
        lambda n, h: n.op(
            "Transpose",
            n.op(
                "ScatterND",
                n.op("Transpose", h, perm=[1, 2, 0, 3]),
                n.array("indices", np.int64([[1], [3]])),
                n.op("Slice", n.op("Transpose", h, perm=[1, 2, 0, 3]), n.ints(0), n.ints(2), n.ints(0)),
            ),
            perm=[2, 0, 1, 3],
        ),
        "undivided",
    ),
    "TensorScatter": Recipe(lambda n, h: n.op("TensorScatter", h, sliced(n, other(n), 0, 2, 2), axis=2), opset=24),
    "TensorScatter: over channels": Recipe(
        lambda n, h: n.op("TensorScatter", h, sliced(n, other(n), 0, 2, 1), axis=1), "undivided", opset=24
    ),
    "Trilu": Recipe(lambda n, h: n.op("Trilu", h)),
    "Trilu: over channels": Recipe(lambda n, h: moved(n, h, lambda n, t: n.op("Trilu", t, upper=0)), "undivided"),
    **each(
        unary,
        "Relu LeakyRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Abs Exp ThresholdedRelu "
        "Floor Ceil Round Sign Sin Cos Atan Sinh Cosh Asinh Erf Neg Identity Shrink Dropout",
    ),
    "Gelu": unary("Gelu", 20),
    "Mish": unary("Mish", 18),
    "Swish": unary("Swish", 24),
    "Selu: version 22": unary("Selu", 22),
    "Identity: version 25": unary("Identity", 25),
    "Log": within("Log", "Softplus"),
    "Sqrt": within("Sqrt", "Softplus"),
    "Reciprocal": within("Reciprocal", "Cosh"),
    "Tan": within("Tan", "Tanh"),
    "Asin": within("Asin", "Tanh"),
    "Acos": within("Acos", "Tanh"),
    "Atanh": within("Atanh", "Tanh"),
    "Acosh": Recipe(lambda n, h: n.op("Acosh", n.op("Add", n.op("Softplus", h), n.number(1)))),
    "Clip": Recipe(lambda n, h: n.op("Clip", h, n.number(-0.5), n.number(0.5))),
    "Clip: attributes": Recipe(lambda n, h: n.op("Clip", h, min=-0.5, max=0.5), opset=10),
    "Dropout: an attribute": Recipe(lambda n, h: n.op("Dropout", h, ratio=0.5), opset=11),
    "Cast": Recipe(lambda n, h: floats(n, n.op("Cast", h, to=TensorProto.DOUBLE))),
    "Not": Recipe(lambda n, h: n.op("Where", n.op("Not", n.op("Less", h, n.number(0))), h, n.op("Exp", h))),
    "IsNaN: of nothing but masks": Recipe(masked_rows),
    "IsNaN": Recipe(lambda n, h: n.op("Where", n.op("IsNaN", h), n.op("Neg", h), n.op("Tanh", h))),
    "IsInf": Recipe(lambda n, h: n.op("Where", n.op("IsInf", h), n.op("Neg", h), n.op("Tanh", h))),
    "BitwiseNot": Recipe(lambda n, h: floats(n, n.op("BitwiseNot", whole_numbers(n, h))), opset=18),
    **each(binary, "Add Sub Mul Div Min Max Mean Sum"),
    "Add: a parameter": Recipe(lambda n, h: n.op("Add", n.random("shift", 6, 1, 1), h)),
    "Add: to every place": Recipe(lambda n, h: n.op("Add", h, n.random("shift", 1, 6, 4, 4))),
    "Add: to rows": Recipe(lambda n, h: n.op("Add", h, n.random("shift", 4, 1))),
    "Add: a scalar": Recipe(lambda n, h: n.op("Add", h, n.number(0.5))),
    "Add: an input": Recipe(lambda n, h: n.op("Add", h, sliced(n, "x", 0, 1, 1))),
    "Mul: a parameter": Recipe(lambda n, h: n.op("Mul", h, n.positive("scale", 1, 6, 1, 1))),
    "Mul: a gate of one channel": Recipe(lambda n, h: n.op("Mul", h, n.op("Sigmoid", n.conv("x", 2, 1, name="gate")))),
    "Sub: from a parameter": Recipe(lambda n, h: n.op("Sub", n.random("shift", 6, 1, 1), h)),
    "Div: by a parameter": Recipe(lambda n, h: n.op("Div", h, n.positive("scale", 6, 1, 1))),
    "Sum: three": Recipe(lambda n, h: n.op("Sum", h, other(n), n.random("shift", 6, 1, 1))),
    "Pow": Recipe(lambda n, h: n.op("Pow", n.op("Softplus", h), other(n))),
    "Pow: a scalar": Recipe(lambda n, h: n.op("Pow", h, n.number(2))),
    "Mod": Recipe(lambda n, h: n.op("Mod", h, n.op("Cosh", other(n)), fmod=1)),
    "Where": Recipe(lambda n, h: n.op("Where", n.op("Greater", h, other(n)), h, n.op("Sin", h))),
    **each(compared, "Equal Less LessOrEqual Greater GreaterOrEqual"),
    **each(logical, "And Or Xor"),
    **each(bits, "BitwiseAnd BitwiseOr BitwiseXor"),
    "BitShift": bits("BitShift", to=UINT8, direction="LEFT"),
    "PRelu": Recipe(lambda n, h: n.op("PRelu", h, n.positive("slope", 6, 1, 1))),
    "PRelu: one slope": Recipe(lambda n, h: n.op("PRelu", h, n.positive("slope", 1))),
    "BatchNormalization": Recipe(statistics),
    "BatchNormalization: version 9": Recipe(statistics, opset=9),
    "AveragePool": pool("AveragePool"),
    "AveragePool: padded": pool("AveragePool", ceil_mode=1, count_include_pad=1),
    "MaxPool": pool("MaxPool"),
    "LpPool": pool("LpPool", p=2),
    **each(unary, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    **{f"{name}: over channels": pooled_over_channels(name) for name in ("GlobalAveragePool", "GlobalMaxPool")},
    "Resize": Recipe(lambda n, h: resized(n, h, mode="linear")),
    "Resize: sizes": Recipe(
        lambda n, h: n.op(
            "Resize", h, "", "", n.op("Concat", sliced(n, n.op("Shape", h), 0, 2, 0), n.ints(7, 5), axis=0)
        )
    ),
    "Upsample": Recipe(
        lambda n, h: n.op("Upsample", h, n.array("scales", np.asarray([1, 1, 2, 2], np.float32))), opset=9
    ),
    "Conv": Recipe(lambda n, h: n.conv(h, 6, 6, kernel=3, name="middle")),
    "Conv: depthwise": Recipe(lambda n, h: n.conv(h, 6, 6, kernel=3, group=6, name="middle")),
    "Conv: depthwise with a multiplier": Recipe(lambda n, h: n.conv(h, 6, 12, group=6, name="middle"), channels=12),
    "ConvTranspose": Recipe(
        lambda n, h: n.op(
            "ConvTranspose", h, n.random("middle.weight", 6, 12, 2, 2), n.random("middle.bias", 12), strides=[2, 2]
        ),
        channels=12,
    ),
    "ConvTranspose: depthwise": Recipe(
        lambda n, h: n.op("ConvTranspose", h, n.random("middle.weight", 6, 1, 3, 3), group=6, pads=[1, 1, 1, 1])
    ),
    "Gemm": Recipe(linear),
    "Gemm: turned operands": Recipe(turned_gemm),
    "MatMul": Recipe(lambda n, h: moved(n, h, lambda n, t: n.op("MatMul", t, n.random("middle.weight", 6, 6)))),
    "MatMul: the weight in front": Recipe(
        lambda n, h: image(n, n.op("MatMul", n.random("middle.weight", 6, 6), places(n, h)))
    ),
    "MatMul: activations": Recipe(attended),
    "Attention": Recipe(lambda n, h: heads(n, h, 6, 6, 2), channels=12, opset=23),
    "Attention: causal, grouped queries": Recipe(lambda n, h: heads(n, h, 6, 3, 2, is_causal=1), channels=12, opset=24),
    "Attention: one head": Recipe(lambda n, h: heads(n, h, 1, 1, 12), "duplicated", channels=12, opset=23),
    "Attention: one head of keys": Recipe(lambda n, h: heads(n, h, 3, 1, 4), "duplicated", channels=12, opset=23),
    "Attention: four axes and a mask": Recipe(four_axes, channels=12, opset=23),
    "RotaryEmbedding": Recipe(lambda n, h: turned_heads(n, h, "flat"), channels=24, opset=23),
    "RotaryEmbedding: four axes": Recipe(lambda n, h: turned_heads(n, h, "heads"), channels=24, opset=23),
    "RotaryEmbedding: pairs side by side": Recipe(
        lambda n, h: turned_heads(n, h, "heads", interleaved=1), channels=24, opset=23
    ),
    "Einsum": Recipe(lambda n, h: n.op("Einsum", h, n.random("middle.weight", 6, 6), equation="nchw,cd->ndhw")),
    "Einsum: an ellipsis": Recipe(
        lambda n, h: moved(n, h, lambda n, t: n.op("Einsum", t, n.random("w", 6, 6), equation="...i,oi->...o"))
    ),
    "Einsum: a gate": Recipe(lambda n, h: n.op("Einsum", h, other(n), equation="nchw,nchw->nchw")),
    "Reshape": Recipe(lambda n, h: image(n, n.op("Reshape", h, n.ints(-1, 6, 16)))),
    "Reshape: without the batch": Recipe(
        lambda n, h: n.op("Reshape", n.op("Tanh", n.op("Reshape", h, n.ints(-1))), n.ints(-1, 6, 4, 4)),
    ),
    "Reshape: groups": Recipe(
        lambda n, h: n.op(
            "Reshape", n.op("Softmax", n.op("Reshape", h, n.ints(0, 6, 2, 8)), axis=3), n.ints(0, 6, 4, 4)
        )
    ),
    "Reshape: a computed target": Recipe(
        lambda n, h: n.op("Reshape", n.op("Reshape", h, n.ints(0, -1)), n.op("Shape", h))
    ),
    "Flatten": Recipe(lambda n, h: n.op("Reshape", n.op("Flatten", h, axis=1), n.ints(0, 6, 4, 4))),
    "Flatten: from axis 2": Recipe(lambda n, h: n.op("Reshape", n.op("Flatten", h, axis=2), n.ints(-1, 6, 4, 4))),
    "Squeeze": Recipe(
        lambda n, h: n.op("Unsqueeze", n.op("Squeeze", n.op("GlobalMaxPool", h), n.ints(2, 3)), n.ints(2, 3))
    ),
    "Squeeze: an attribute": Recipe(
        lambda n, h: n.op("Unsqueeze", n.op("Squeeze", n.op("GlobalMaxPool", h), axes=[2, 3]), axes=[2, 3]), opset=11
    ),
    "Unsqueeze": Recipe(lambda n, h: n.op("Squeeze", n.op("Tanh", n.op("Unsqueeze", h, n.ints(1))), n.ints(1))),
    "Transpose": Recipe(lambda n, h: moved(n, h, lambda n, t: n.op("Tanh", t))),
    "Concat": Recipe(lambda n, h: n.op("Concat", h, other(n), axis=1), channels=12),
    "Concat: with the input": Recipe(lambda n, h: n.op("Concat", "x", h, axis=1), channels=8),
    "Concat: along places": Recipe(lambda n, h: n.op("Concat", h, other(n), axis=3)),
    "Concat: along places with the input": Recipe(
        lambda n, h: n.op("Concat", h, n.op("Concat", "x", "x", "x", axis=1), axis=2), "undivided"
    ),
    "Split": Recipe(
        lambda n, h: moved(n, h, lambda n, t: n.op("Sum", *n.ops("Split", t, n.ints(1, 3), count=2, axis=1)[:1]))
    ),
    "Split: channels": Recipe(lambda n, h: split_in(n, n.op("Concat", h, other(n), axis=1), 6, 6), channels=12),
    "Split: gates": Recipe(
        lambda n, h: n.op("Mul", *n.ops("Split", n.conv(h, 6, 12, name="wide"), count=2, axis=1)),
    ),
    "Split: an attribute": Recipe(
        lambda n, h: n.op("Mul", *n.ops("Split", n.conv(h, 6, 12, name="wide"), count=2, axis=1, split=[6, 6])),
        opset=11,
    ),
    "Split: num_outputs": Recipe(
        lambda n, h: n.op("Mul", *n.ops("Split", n.conv(h, 6, 12, name="wide"), count=2, axis=1, num_outputs=2)),
        opset=18,
    ),
    "Slice": Recipe(lambda n, h: sliced(n, h, 1, 3, 2)),
    "Slice: channels": Recipe(lambda n, h: sliced(n, n.conv(h, 6, 18, name="wide"), 0, 18, 1, 3)),
    "Slice: backwards": Recipe(lambda n, h: sliced(n, h, -1, -7, 1, -1)),
    "Slice: channels of the whole batch": Recipe(
        lambda n, h: n.op("Slice", n.conv(h, 6, 12, name="wide"), n.ints(0, 6), n.ints(2**63 - 1, 12), n.ints(0, 1))
    ),
    "Slice: channels, and places to an end that is computed": Recipe(
        lambda n, h: n.op(
            "Slice",
            n.conv(h, 6, 12, name="wide"),
            n.ints(6, 1),
            n.op("Slice", n.op("Shape", "wide"), n.ints(1), n.ints(3)),
            n.ints(1, 2),
        )
    ),
    "Slice: attributes": Recipe(lambda n, h: n.op("Slice", h, starts=[0], ends=[9], axes=[1]), opset=9),
    "Gather": Recipe(lambda n, h: n.op("Gather", h, n.ints(5, 3, 1, 0, 2, 4), axis=1)),
    "Gather: of places": Recipe(lambda n, h: n.op("Gather", h, n.ints(0, 3), axis=-1)),
    "Gather: an embedding": Recipe(table_lookup),
    "Pad: amounts that constants are rounded to": Recipe(
        lambda n, h: n.op(
            "Pad",
            h,
            n.op(
                "Cast", n.op("Ceil", n.op("Constant", value_floats=[0.0, 0.0, 0.6, 0.6, 0.0, 0.0, 0.6, 0.6])), to=INT64
            ),
        )
    ),
    "Expand": Recipe(lambda n, h: n.op("Expand", n.op("GlobalMaxPool", h), n.op("Shape", h))),
    "Expand: a constant": Recipe(lambda n, h: n.op("Expand", n.op("GlobalMaxPool", h), n.ints(1, 6, 3, 3))),
    "Tile": Recipe(lambda n, h: n.op("Tile", h, n.ints(1, 1, 2, 1))),
    "Tile: channels": Recipe(lambda n, h: n.op("Tile", h, n.ints(1, 2, 1, 1)), channels=12),
    "Pad": Recipe(lambda n, h: n.op("Pad", h, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
    "Pad: channels": Recipe(lambda n, h: n.op("Pad", h, n.ints(0, 1, 0, 0, 0, 2, 0, 0)), channels=9),
    "Pad: an attribute": Recipe(lambda n, h: n.op("Pad", h, pads=[0, 0, 1, 1, 0, 0, 1, 1]), opset=10),
    "DepthToSpace": Recipe(
        lambda n, h: n.op("DepthToSpace", n.conv(h, 6, 24, name="wide"), blocksize=2, mode="DCR"),
    ),
    "DepthToSpace: CRD": Recipe(
        lambda n, h: n.op("DepthToSpace", n.conv(h, 6, 24, name="wide"), blocksize=2, mode="CRD"),
    ),
    "SpaceToDepth": Recipe(lambda n, h: n.op("SpaceToDepth", h, blocksize=2), channels=24),
    "LRN": Recipe(lambda n, h: n.op("LRN", h, size=3, alpha=0.5, beta=0.75), "duplicated"),
    "LayerNormalization": Recipe(
        lambda n, h: moved(n, h, lambda n, t: norm(n, "LayerNormalization", t, 6)), "duplicated"
    ),
    "LayerNormalization: over places": Recipe(
        lambda n, h: image(n, norm(n, "LayerNormalization", places(n, h), 16, axis=-1))
    ),
    "RMSNormalization": Recipe(
        lambda n, h: moved(n, h, lambda n, t: n.op("RMSNormalization", t, n.positive("scale", 6))),
        "duplicated",
        opset=23,
    ),
    "InstanceNormalization": Recipe(lambda n, h: norm(n, "InstanceNormalization", h, 6)),
    "GroupNormalization": Recipe(lambda n, h: norm(n, "GroupNormalization", h, 6, num_groups=6), opset=21),
    "GroupNormalization: by channel": Recipe(
        lambda n, h: norm(n, "GroupNormalization", n.conv(h, 6, 12, name="wide"), 12, num_groups=6),
        channels=12,
        opset=21,
    ),
    "GroupNormalization: one group": Recipe(
        lambda n, h: norm(n, "GroupNormalization", h, 6, num_groups=1), "duplicated", opset=21
    ),
    **along("Softmax"),
    **along("LogSoftmax"),
    **along("Hardmax"),
    "Softmax: from axis 1 on": Recipe(lambda n, h: n.op("Softmax", h, axis=1), "duplicated", opset=11),
    "Softmax: from axis 2 on": Recipe(lambda n, h: n.op("Softmax", h, axis=2), opset=11),
    **along("LpNormalization"),
    "CumSum": Recipe(lambda n, h: n.op("CumSum", h, n.ints(2))),
    "CumSum: over channels": Recipe(lambda n, h: n.op("CumSum", h, n.ints(1)), "duplicated"),
    **reduction("ReduceSum"),
    **reduction("ReduceMean"),
    **reduction("ReduceMax"),
    **reduction("ReduceMin"),
    **reduction("ReduceProd"),
    **reduction("ReduceL1"),
    **reduction("ReduceL2"),
    **reduction("ReduceLogSum", positive=True),
    **reduction("ReduceLogSumExp"),
    **reduction("ReduceSumSquare"),
    "ReduceMean: everything": Recipe(lambda n, h: n.op("Add", h, n.op("ReduceMean", h)), "duplicated"),
    **positions("ArgMax"),
    **positions("ArgMin"),
    "TopK": Recipe(lambda n, h: best(n, h, 3)),
    "TopK: over channels": Recipe(lambda n, h: best(n, h, 1), "undivided", channels=3),
    "Constant": source(lambda n: n.op("Constant", value_floats=[0.5, -1.0, 1.5, 2.0, -0.5, 1.0])),
    "ConstantOfShape": Recipe(
        lambda n, h: n.op(
            "Add", h, n.op("ConstantOfShape", n.op("Shape", h), value=onnx.numpy_helper.from_array(np.float32([2])))
        )
    ),
    "Range": source(lambda n: n.op("Range", n.number(0), n.number(6), n.number(1))),
    "EyeLike": source(eye),
    "RandomNormal": source(lambda n: n.op("RandomNormal", shape=[6], seed=3.0)),
    "RandomUniform": source(lambda n: n.op("RandomUniform", shape=[6], seed=3.0)),
    "Shape": Recipe(shaped),
    "Size": Recipe(counted),
    **{key: recipe for op_type in GATES for key, recipe in recurrent(op_type).items()},
}


def operator(key: str) -> str:
    return key.partition(":")[0]


def network(key: str) -> ModelProto:
    """The recipe's network: x ``[N, 2, 4, 4]`` to logits ``[N, 3]``."""
    recipe = RECIPES[key]
    n = Net(("x", ("N", 2, 4, 4)), opset=recipe.opset)
    h = recipe.build(n, n.conv("x", 2, WIDTH, name="before"))
    h = n.op("Relu", n.conv(h, recipe.channels, WIDTH, name="behind"), name="behind.relu")
    h = n.op("Flatten", n.op("GlobalAveragePool", h, name="pool"), axis=1, name="flat")
    return n.model(n.linear(h, WIDTH, 3, name="logits"), shape=("N", 3))
