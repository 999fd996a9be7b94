"""Random masks of training (stochastic depth) as dropouts, which evaluation leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxpart.ir.protos import constant_node, live

_UNIFORM = "RandomUniformLike"
_BELOW = {"Less": True, "LessOrEqual": True, "Greater": False, "GreaterOrEqual": False}
"""Comparisons, and whether they hold where the first number is below the second."""


def as_dropouts(graph: onnx.GraphProto) -> None:
    """Replace each mask that is 1 with probability p and else 0 by p times a dropout of ones, in place.

    In training that is the same mask; in evaluation it is the mask's mean, p.
    """
    made = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        mask = _mask(node, made)
        nodes += [node] if mask is None else _dropout(node.output[0], node.name, *mask)
    kept, _ = live(nodes, [value.name for value in graph.output])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _mask(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> tuple[str, np.dtype[Any], float] | None:
    """The tensor of whose shape a mask is, its type, and its share of ones; None for what a node makes otherwise.

    It is made of numbers between 0 and 1: Cast(Less(drawn, share)), Cast(Greater(drawn, 1 - share)), or
    Floor(Add(drawn, share)).
    """
    test = made.get(node.input[0]) if node.op_type in ("Cast", "Floor") else None
    if test is None or test.op_type not in (_BELOW if node.op_type == "Cast" else ("Add",)):
        return None
    drawn, bound = (made.get(name) for name in test.input)
    swapped = bound is not None and bound.op_type == _UNIFORM
    if swapped:
        drawn, bound = bound, drawn
    share = _number(bound)
    if drawn is None or drawn.op_type != _UNIFORM or share is None or not 0 <= share <= 1:
        return None
    bounds = {a.name: a.f for a in drawn.attribute if a.name in ("low", "high")}
    if (bounds.get("low", 0.0), bounds.get("high", 1.0)) != (0.0, 1.0):
        return None
    if node.op_type == "Floor":
        return drawn.input[0], share.dtype, float(share)
    dtype = helper.tensor_dtype_to_np_dtype(next(a.i for a in node.attribute if a.name == "to"))
    return drawn.input[0], dtype, float(share if _BELOW[test.op_type] != swapped else 1 - share)


def _number(node: onnx.NodeProto | None) -> np.ndarray | None:
    """The single number of a Constant; None for another node."""
    if node is None or node.op_type != "Constant":
        return None
    held = [numpy_helper.to_array(attribute.t) for attribute in node.attribute if attribute.name == "value"]
    return held[0].reshape(()) if held and held[0].size == 1 else None


def _dropout(mask: str, name: str, like: str, dtype: np.dtype[Any], share: float) -> list[onnx.NodeProto]:
    """The nodes that make a mask of the shape of a tensor, the last under a name."""
    one, part = numpy_helper.from_array(np.ones(1, dtype)), numpy_helper.from_array(np.asarray(share, dtype))
    ratio = numpy_helper.from_array(np.asarray(1 - share, np.float32))
    part.name, ratio.name = f"{mask}__share", f"{mask}__ratio"
    return [
        constant_node(part),
        constant_node(ratio),
        helper.make_node("Shape", [like], [f"{mask}__shape"], name=f"{mask}__shape"),
        helper.make_node("ConstantOfShape", [f"{mask}__shape"], [f"{mask}__ones"], name=f"{mask}__ones", value=one),
        helper.make_node("Dropout", [f"{mask}__ones", ratio.name], [f"{mask}__kept"], name=f"{mask}__kept"),
        helper.make_node("Mul", [f"{mask}__kept", part.name], [mask], name=name),
    ]
