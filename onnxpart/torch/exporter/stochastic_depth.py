"""Random masks of training (stochastic depth) as dropouts, which evaluation leaves out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxpart.ir.protos import constant_node, live


def as_dropouts(graph: onnx.GraphProto) -> None:
    """Replace each mask that is 1 with probability p and else 0 by p times a dropout of ones, in place.

    In training that is the same mask; in evaluation it is the mask's mean, p. Exporters compare uniform numbers with p.
    """
    made = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        share = _share(node, made)
        nodes += [node] if share is None else _dropout(node, made[made[node.input[0]].input[0]].input[0], share)
    kept, _ = live(nodes, [value.name for value in graph.output])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _share(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> float | None:
    """The share of ones in a mask that a node makes by Cast(Less(RandomUniformLike, share)); None for other nodes."""
    less = made.get(node.input[0]) if node.op_type == "Cast" else None
    if less is None or less.op_type != "Less":
        return None
    drawn, share = (made.get(name) for name in less.input)
    if drawn is None or drawn.op_type != "RandomUniformLike" or share is None or share.op_type != "Constant":
        return None
    held = [attribute.t for attribute in share.attribute if attribute.name == "value"]
    bounds = {a.name: a.f for a in drawn.attribute if a.name in ("low", "high")}
    if not held or np.prod(held[0].dims) != 1 or (bounds.get("low", 0.0), bounds.get("high", 1.0)) != (0.0, 1.0):
        return None
    return float(numpy_helper.to_array(held[0]).item())


def _dropout(cast: onnx.NodeProto, like: str, share: float) -> list[onnx.NodeProto]:
    """The nodes that replace a mask's last node."""
    name = cast.output[0]
    dtype = helper.tensor_dtype_to_np_dtype(next(a.i for a in cast.attribute if a.name == "to"))
    one, part = numpy_helper.from_array(np.ones(1, dtype)), numpy_helper.from_array(np.asarray(share, dtype))
    ratio = numpy_helper.from_array(np.asarray(1 - share, np.float32))
    part.name, ratio.name = f"{name}__share", f"{name}__ratio"
    return [
        constant_node(part),
        constant_node(ratio),
        helper.make_node("Shape", [like], [f"{name}__shape"], name=f"{name}__shape"),
        helper.make_node("ConstantOfShape", [f"{name}__shape"], [f"{name}__ones"], name=f"{name}__ones", value=one),
        helper.make_node("Dropout", [f"{name}__ones", ratio.name], [f"{name}__kept"], name=f"{name}__kept"),
        helper.make_node("Mul", [f"{name}__kept", part.name], [name], name=cast.name),
    ]
