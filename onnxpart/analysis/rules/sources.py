"""Operators that tell sizes or make constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from onnxpart.analysis.labels import Fields
from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Indices, Rewrite, put, sizes
from onnxpart.analysis.rules.table import operator


def rewrite_eye_like(r: Rewrite) -> None:
    """EyeLike: of a tensor with the sizes that it has in the whole network."""
    if all(k is None for k in r.kept_in(0)):
        return
    if "dtype" not in r.op.attributes:
        r.set("dtype", r.op.state.shapes.dtype[r.op.inputs[0]])
    r.node.input[0] = r.add("ConstantOfShape", [r.constant(r.op.shape(0), "shape")], "zeros")


@operator("EyeLike", versions=(9, 22), kind="source", rewrite=rewrite_eye_like)
def eye_like(op: Op) -> list[Fields]:
    """EyeLike: a constant of the whole's shape, which is known for what is divided."""
    if any(op.dynamic(0)):
        op.share(op.fields(0), f"{op.title} needs its whole size, which isn't fixed")
    return [()]


def rewrite_shape(r: Rewrite) -> None:
    """Shape, Size: the sizes of the whole network's tensor."""
    op = r.op
    kept = r.kept_in(0)
    if all(k is None for k in kept):
        return
    whole = np.asarray(op.shape(0), np.int64)
    dynamic = np.asarray(op.state.shapes.dynamic_dims(op.inputs[0]))
    part = np.asarray(sizes(kept, op.shape(0)), np.int64)
    if op.op_type == "Size":
        _scaled_size(r, whole, part, bool(dynamic.any()))
        return
    window = slice(op.attributes.get("start", 0), op.attributes.get("end", len(whole)))
    whole, dynamic, part = whole[window], dynamic[window], part[window]
    out = r.node.output[0]
    if not dynamic.any():
        r.node.CopyFrom(helper.make_node("Identity", [r.constant(whole, "shape")], [out], name=r.node.name))
        return
    raw = r.name("shape")
    r.node.output[0] = raw
    value = raw
    grow = dynamic & (whole != part)
    after: list[onnx.NodeProto] = []
    if grow.any():
        for op_type, factor in (("Mul", np.where(grow, whole, 1)), ("Div", np.where(grow, part, 1))):
            name = r.name("scaled")
            after.append(helper.make_node(op_type, [value, r.constant(factor, "factor")], [name], name=name))
            value = name
    r.after.extend([*after, *put(r, (~dynamic).tolist(), whole.tolist(), value, out)])


def _scaled_size(r: Rewrite, whole: Indices, part: Indices, dynamic: bool) -> None:
    """Size: the number of elements in the whole network, computed from the part's where it is known at run time only.

    :param whole: shape of the whole's tensor, int64 [rank]. :param part: that of the part's.
    """
    out = r.node.output[0]
    if not dynamic:
        constant = r.constant(np.prod(whole), "size")
        r.node.CopyFrom(helper.make_node("Identity", [constant], [out], name=r.node.name))
        return
    raw, scaled = r.name("size"), r.name("scaled")
    r.node.output[0] = raw
    up, down = r.constant(np.prod(whole), "factor"), r.constant(np.prod(part), "factor")
    r.after.append(helper.make_node("Mul", [raw, up], [scaled], name=scaled))
    r.after.append(helper.make_node("Div", [scaled, down], [out], name=r.name("div")))


@operator("Constant", versions=(1, 9, 11, 12, 13, 19, 21, 23, 24, 25), kind="source")
@operator("ConstantOfShape", versions=(9, 20, 21, 23, 24, 25), kind="source")
@operator("Range", versions=(11, 27), kind="source")
@operator("RandomNormal", "RandomUniform", versions=(1, 22), kind="source")
@operator("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", versions=(17,), kind="source")
@operator("Shape", versions=(1, 13, 15, 19, 21, 23, 24, 25), kind="source", rewrite=rewrite_shape)
@operator("Size", versions=(1, 13, 19, 21, 23, 24, 25), kind="source", rewrite=rewrite_shape)
def source(op: Op) -> list[Fields]:
    """Shape arithmetic, constants and random numbers: nothing is divided."""
    return [()] * len(op.outputs)
