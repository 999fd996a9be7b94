"""The paper's alternative to dividing the output's weights by K: the whole network's output is scaled by 1/K."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpart.control import captured, replace_reads, unused
from onnxpart.emit import copy_name
from onnxpart.model import Model
from onnxpart.plan import Plan
from onnxpart.rules import TABLE
from onnxpart.shapes import infer


def scale_output(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The whole with its output scaled by 1/K in front of the output function (section 2.2).

    It goes with weights that were merged with `normalize="output"`, where the parts' outputs add up. Where the
    duplicated whole takes the mean of what exists once per part, that becomes the sum.

    :param model: the duplicated whole or the original graph, or the proto of its draft; it is left as it is.
    :returns: a copy in which every tensor of `plan.mean` keeps its name and is scaled exactly once.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if plan.k == 1:
        return result
    graph = result.graph
    types = infer(Model(model, graph.name, "")).dtype
    taken = {n for node in graph.node for n in (node.name, *node.input, *node.output)}
    taken.update(t.name for t in graph.initializer)
    inner = _before_another(graph, plan.mean)
    scaled: list[onnx.NodeProto] = []
    for node in graph.node:
        scaled.append(node)
        for name in [n for n in node.output if n in plan.mean]:
            raw, factor = unused(f"{name}__sum", taken), unused(f"{name}__scale", taken)
            _sum_into(node, name, raw, plan.k)
            for user in inner:
                replace_reads(user, {name: raw})
            dtype = helper.tensor_dtype_to_np_dtype(types.get(name, TensorProto.FLOAT))
            graph.initializer.append(numpy_helper.from_array(np.asarray(1.0 / plan.k, dtype), factor))
            scaled.append(helper.make_node("Mul", [raw, factor], [name], name=unused(f"{name}__mean", taken)))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in scaled]
    del graph.node[:]
    graph.node.extend(copies)
    return result


def _before_another(graph: onnx.GraphProto, means: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes that lead, by linear operators alone, to a tensor that is scaled: they take what isn't scaled yet."""
    leads, found = set(means), []
    for node in reversed(graph.node):
        rule = TABLE.get(node.op_type)
        if rule is not None and rule.linear != "no" and any(n in leads for n in node.output):
            leads.update([*node.input, *captured(node)])
            found.append(node)
    return found


def _sum_into(node: onnx.NodeProto, name: str, raw: str, k: int) -> None:
    """Let `node` give `raw` in place of `name`; a mean over the parts becomes a sum."""
    if node.op_type == "Mean" and list(node.input) == [copy_name(name, p) for p in range(k)]:
        node.op_type = "Sum"
    _rename(node.output, name, raw)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for i, name in enumerate(names):
        if name == old:
            names[i] = new
