"""Operators that work place by place, or within one channel: activations, arithmetic, batch norm, pooling."""

from __future__ import annotations

from onnxpart.analysis.joins import follow, follow_channels, join, meet
from onnxpart.analysis.labels import Fields, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Rewrite, dims, put
from onnxpart.analysis.rules.mix import rewrite_channels, slides
from onnxpart.analysis.rules.table import operator


@operator("Relu", versions=(6, 13, 14), kind="elementwise", zero="data")
@operator("LeakyRelu", versions=(6, 16), kind="elementwise", zero="data")
@operator("Elu", "Selu", "HardSigmoid", versions=(6, 22), kind="elementwise")
@operator("Celu", versions=(12, 28), kind="elementwise")
@operator("Gelu", versions=(20,), kind="elementwise", zero="data")
@operator("Tanh", versions=(6, 13), kind="elementwise", zero="data")
@operator("Sigmoid", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", versions=(6, 13), kind="elementwise")
@operator("HardSwish", versions=(14, 22), kind="elementwise")
@operator("Softplus", "Softsign", versions=(1, 22), kind="elementwise")
@operator("Mish", versions=(18, 22), kind="elementwise")
@operator("Swish", versions=(24,), kind="elementwise")
@operator("ThresholdedRelu", versions=(10, 22), kind="elementwise")
@operator("Round", versions=(11, 22), kind="elementwise")
@operator("Sign", "Erf", versions=(9, 13), kind="elementwise")
@operator("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", versions=(7, 22), kind="elementwise")
@operator("Sinh", "Cosh", "Asinh", "Acosh", "Atanh", versions=(9, 22), kind="elementwise")
@operator("Clip", versions=(6, 11, 12, 13), kind="elementwise")
@operator("Not", versions=(1,), kind="elementwise")
@operator("IsNaN", versions=(9, 13, 20), kind="elementwise")
@operator("IsInf", versions=(10, 20), kind="elementwise")
@operator("Shrink", versions=(9,), kind="elementwise")
@operator("BitwiseNot", versions=(18,), kind="elementwise")
@operator("BitCast", versions=(26,), kind="elementwise")
@operator("Identity", versions=(1, 13, 14, 16, 19, 21, 23, 24, 25), kind="elementwise", mean="data", zero="data")
@operator("Cast", versions=(6, 9, 13, 19, 21, 23, 24, 25, 28), kind="elementwise", mean="data", zero="data")
@operator("CastLike", versions=(15, 19, 21, 23, 24, 25), kind="elementwise", mean="data")
@operator("Dropout", versions=(7, 10, 12, 13, 22), kind="elementwise", mean="data", zero="data")
@operator("Neg", versions=(6, 13), kind="elementwise", mean="data", zero="data")
def unary(op: Op) -> list[Fields]:
    """The result carries the labels of its first input; any further inputs are settings."""
    return [op.fields(0)] * len(op.outputs)


def rewrite_broadcast(r: Rewrite) -> None:
    """Broadcasting: operands that are shared along a divided axis are cut to the part's share of it."""
    for i in range(len(r.op.inputs)):
        if r.op.has(i):
            r.narrow_broadcast(i, r.kept_out())


@operator("Pow", versions=(7, 12, 13, 15), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Min", "Max", versions=(6, 8, 12, 13), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Where", versions=(9, 16), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Equal", versions=(7, 11, 13, 19), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Less", "Greater", versions=(7, 9, 13), kind="elementwise", rewrite=rewrite_broadcast)
@operator("LessOrEqual", "GreaterOrEqual", versions=(12, 16), kind="elementwise", rewrite=rewrite_broadcast)
@operator("And", "Or", "Xor", versions=(7,), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Mod", versions=(10, 13, 28), kind="elementwise", rewrite=rewrite_broadcast)
@operator("BitShift", versions=(11, 28), kind="elementwise", rewrite=rewrite_broadcast)
@operator("BitwiseAnd", "BitwiseOr", "BitwiseXor", versions=(18,), kind="elementwise", rewrite=rewrite_broadcast)
@operator("Add", "Sub", versions=(7, 13, 14), kind="elementwise", rewrite=rewrite_broadcast, mean="sum", zero="sum")
@operator("Sum", versions=(6, 8, 13), kind="elementwise", rewrite=rewrite_broadcast, mean="sum", zero="sum")
@operator("Mul", versions=(7, 13, 14), kind="elementwise", rewrite=rewrite_broadcast, mean="scale", zero="scale")
@operator("Div", versions=(7, 13, 14), kind="elementwise", rewrite=rewrite_broadcast, mean="data", zero="data")
@operator("Mean", versions=(6, 8, 13), kind="elementwise", rewrite=rewrite_broadcast)
def broadcast(op: Op) -> list[Fields]:
    """All inputs meet place by place with numpy broadcasting."""
    inputs = [i for i in range(len(op.inputs)) if op.has(i)]
    return [join(op, inputs, len(op.out_shape()))]


@operator("PRelu", versions=(7, 9, 16), kind="elementwise", rewrite=rewrite_broadcast)
def prelu(op: Op) -> list[Fields]:
    """PRelu: the slope broadcasts to the input."""
    fields = op.fields(0)
    follow(op, fields, 1)
    return [fields]


@operator(
    "BatchNormalization", versions=(7, 9, 14, 15), kind="elementwise", rewrite=rewrite_channels, zero="parameters"
)
def per_channel(op: Op) -> list[Fields]:
    """BatchNormalization: parameters of shape [C] apply along axis 1."""
    fields = op.fields(0)
    for i in range(1, len(op.inputs)):
        if op.has(i):
            follow_channels(op, fields, i)
    return [fields, *[op.fields(3)] * (len(op.outputs) - 1)]


def rewrite_resize(r: Rewrite) -> None:
    """Resize: `sizes` has the part's size of a divided axis, which is one that keeps its size."""
    if not r.op.has(3):
        return
    if "axes" not in r.op.attributes:
        dims(r, 3)
        return
    kept = [r.kept_out()[axis] for axis in r.op.attributes["axes"]]
    if any(k is not None for k in kept):
        divided, part = [k is not None for k in kept], [0 if k is None else len(k) for k in kept]
        r.before.extend(put(r, divided, part, r.node.input[3]))
        r.node.input[3] = r.before[-1].output[0]


@operator("AveragePool", versions=(7, 10, 11, 19, 22), kind="elementwise", mean="data", zero="data")
@operator("MaxPool", versions=(1, 8, 10, 11, 12, 22), kind="elementwise", zero="data")
@operator("LpPool", versions=(2, 11, 18, 22), kind="elementwise")
@operator("GlobalLpPool", versions=(2, 22), kind="elementwise")
def pool(op: Op) -> list[Fields]:
    """Pooling: places of one channel meet; labels stay along batch and channels."""
    keep = (0, 1, *slides(op))
    fields = tuple(op.labels.tie_along(f, keep) for f in op.fields(0))
    if any(name in op.state.read for name in op.outputs[1:]):
        op.share(fields, "it returns positions that count over all channels")
    return [fields, *[()] * (len(op.outputs) - 1)]


def _resized(op: Op) -> set[int]:
    """The axes along which a Resize or Upsample may give other places than it takes."""
    rank = len(op.shape(0))
    axes = [axis % rank for axis in op.attributes.get("axes", range(rank))]
    if op.attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return set(axes)
    if op.has(3):
        stretched = op.attributes.get("keep_aspect_ratio_policy", b"stretch") == b"stretch"
        same = [a == b for a, b in zip(op.shape(0), op.out_shape(), strict=True)]
        return {axis for axis in axes if not (stretched and same[axis]) or op.dynamic(0)[axis]}
    if "scales" in op.attributes:
        return {axis for axis, factor in zip(axes, op.attributes["scales"], strict=True) if factor != 1}
    known = op.trial(2 if op.op_type == "Resize" and op.opset >= 11 else 1)
    if known is None:
        return set(axes)
    return {axis for axis, f, varies in zip(axes, known.value, known.varies, strict=True) if f != 1 or varies}


@operator("Resize", versions=(10, 11, 13, 18, 19), kind="elementwise", rewrite=rewrite_resize, mean="data")
@operator("Upsample", versions=(7, 9, 10), kind="elementwise", mean="data")
def resize(op: Op) -> list[Fields]:
    """Resize, Upsample: places of one channel meet; along axes that keep their size nothing does."""
    resized, rank = _resized(op), len(op.shape(0))
    if any(varying(f) & resized & {0, 1} for f in op.fields(0)):
        raise Barrier("it resizes a divided axis")
    return [tuple(op.labels.tie_along(f, set(range(rank)) - resized) for f in op.fields(0))]


@operator("MaxRoiPool", versions=(1, 22), kind="elementwise")
@operator("RoiAlign", versions=(10, 16, 22), kind="elementwise")
def regions(op: Op) -> list[Fields]:
    """RoiAlign, MaxRoiPool: places of one channel meet, at places that every part takes alike."""
    for i in range(1, len(op.inputs)):
        op.share(op.fields(i), "it says where to sample")
    result = []
    for f in op.fields(0):
        if f.shape[0] > 1:
            op.share([f], "its batch axis is divided")
        else:
            result.append(op.labels.tie_along(f, (1,)))
    return [tuple(result)]


def rewrite_grid_sample(r: Rewrite) -> None:
    """GridSample: what is shared along a divided batch axis is cut to the part's share of it."""
    for i in (0, 1):
        r.narrow(i, (r.kept_out()[0], *r.kept_in(i)[1:]))


@operator("GridSample", versions=(16, 20, 22), kind="elementwise", rewrite=rewrite_grid_sample, mean="data")
def grid_sample(op: Op) -> list[Fields]:
    """GridSample: places of one channel meet; the grid goes along the batch axis, into which groups may be folded."""
    result = [op.labels.tie_along(f, (0, 1)) for f in op.fields(0)]
    for f in op.fields(1):
        if f.shape[0] > 1:
            meet(op, result, op.labels.tie_along(f, (0,)))
        else:
            op.share([f], "it says where to sample")
    return [tuple(f for f in result if varying(f))]


def rewrite_quantize(r: Rewrite) -> None:
    """QuantizeLinear, DequantizeLinear: scales and zero points that are one to a channel."""
    kept = r.kept_out()
    for i in range(1, len(r.op.inputs)):
        if r.op.has(i) and len(r.op.shape(i)) == 1 and r.op.shape(i) != (1,):
            r.narrow(i, (kept[r.op.axis(1)],))


@operator(
    "QuantizeLinear",
    "DequantizeLinear",
    versions=(10, 13, 19, 21, 23, 24, 25, 28),
    kind="elementwise",
    rewrite=rewrite_quantize,
)
def quantize(op: Op) -> list[Fields]:
    """QuantizeLinear, DequantizeLinear: place by place; scale and zero point are one for all or one to a channel."""
    rank, axis = len(op.shape(0)), op.axis(1)
    if len(op.shape(1)) > 1 or op.attributes.get("block_size"):
        raise Barrier("its scales are per block")
    name = op.inputs[0]
    if name in op.state.model.initializers and not op.state.model.is_float(name) and rank > 0:
        op.state.depends_on_parameters.update(op.outputs)  # they were trained before they were quantized
        raise Barrier("its weights are integers, which neither train nor divide by K: split before quantizing")
    fields = op.fields(0)
    if len(op.shape(1)) == 1:
        follow(op, fields, 1, tuple(f.reshape(f.size, *[1] * (rank - 1 - axis)) for f in op.fields(1)))
    return [fields]
