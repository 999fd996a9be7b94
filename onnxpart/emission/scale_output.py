"""The paper's alternative to dividing the output's weights by K: the whole network's output is scaled by 1/K."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpart.analysis.op import qualified
from onnxpart.analysis.rules.table import TABLE, Mean
from onnxpart.errors import MergeError
from onnxpart.ir.flatten import GRAPHS
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model
from onnxpart.ir.protos import all_nodes, captured, graphs_of, replace_reads, set_repeated, unused
from onnxpart.planning.plan import Plan, copy_name


def scale_output(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The whole with its output scaled by 1/K in front of the output function (section 2.2).

    Use it with weights that were merged with `normalize="output"`: the parts' outputs add up. The duplicated whole
    takes the mean of tensors that exist once per part; that becomes the sum. A tensor that is added to the sum and
    belongs to no part, such as an input that skips all layers, is multiplied by K.

    :param model: the duplicated whole or the original graph, or the proto of its draft; it is left as it is.
    :returns: a copy in which every tensor of `plan.mean` keeps its name and is scaled exactly once.
    :raises MergeError: when something is added to sums within an If, Loop or Scan that isn't summed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if plan.k > 1:
        _Scaling(result, plan, infer(Model(model, model.graph.name, "")).dtype).apply()
    return result


class _Scaling:
    """Scales tensors of a graph in place. `types`: by name. `summed`: those that hold or lead to the parts' sum."""

    def __init__(self, model: onnx.ModelProto, plan: Plan, types: dict[str, int]) -> None:
        self.graph, self.plan, self.types = model.graph, plan, types
        self.taken = {n for node in self.graph.node for n in (node.name, *node.input, *node.output)}
        self.taken.update(t.name for t in self.graph.initializer)
        self.summed = _summed(self.graph, plan)
        self.leads = set(plan.mean)
        """Tensors that are scaled, or lead to a scaled one through linear operators only."""
        self.inner = list(self._linear(self.graph, self.leads))
        """The operators in between: they read tensors that aren't scaled yet."""
        self.nodes: list[onnx.NodeProto] = []

    def apply(self) -> None:
        """Put the factors in."""
        for node in self.graph.node:
            if node.op_type in GRAPHS:
                self._check_inside(node, {n for n in node.output if n in self.leads})
            elif node in self.inner and _mean(node) == "sum":
                for i, name in enumerate(node.input):
                    if name and name not in self.summed:
                        node.input[i] = self._times(name, self.plan.k, unused(f"{name}__times", self.taken))
            self.nodes.append(node)
            for name in [n for n in node.output if n in self.plan.mean]:
                raw = self._sum(node, name)
                self.summed.add(raw)
                for user in self.inner:
                    replace_reads(user, {name: raw})
                self._times(raw, 1.0 / self.plan.k, name)
        set_repeated(self.graph.node, self.nodes)

    def _times(self, name: str, factor: float, output: str) -> str:
        """Append a node that multiplies by a number."""
        dtype = helper.tensor_dtype_to_np_dtype(self.types.get(output, self.types.get(name, TensorProto.FLOAT)))
        number = unused(f"{output}__scale", self.taken)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(factor, dtype), number))
        self.nodes.append(helper.make_node("Mul", [name, number], [output], name=unused(f"{output}__mean", self.taken)))
        return output

    def _sum(self, node: onnx.NodeProto, name: str) -> str:
        """Let `node` compute the parts' sum, in place of their mean if it computes that."""
        raw, k = unused(f"{name}__sum", self.taken), self.plan.k
        copies = list(takewhile(lambda pair: pair[1] == copy_name(name, pair[0]), enumerate(node.input)))
        _rename(node, name, raw)
        if node.op_type == "Mean" and len(copies) == len(node.input):
            if len(copies) == k:
                node.op_type = "Sum"
            else:  # the parts were merged from smaller ones, and the mean is over those
                return self._times(raw, k, unused(f"{name}__sum", self.taken))
        return raw

    def _linear(self, graph: onnx.GraphProto, leads: set[str]) -> Iterator[onnx.NodeProto]:
        """Nodes through which sums lead to any of the tensors in `leads`; what they read is added to `leads`."""
        for node in reversed(graph.node):
            mean = _mean(node)
            if mean == "no" or leads.isdisjoint(node.output):
                continue
            if mean == "sum" or len([n for n in node.input if n in self.summed]) == 1 or node.op_type in GRAPHS:
                leads.update([*node.input, *captured(node)])
                yield node

    def _check_inside(self, node: onnx.NodeProto, leads: set[str]) -> None:
        """Check that an If, Loop or Scan adds nothing to sums but what surely belongs to a part.

        :raises MergeError: when something is.
        """
        first = 1 if node.op_type == "Loop" else 0  # the body of a Loop also gives whether to go on
        for graph in graphs_of(node):
            pairs = zip(node.output, graph.output[first:], strict=False)
            inside = {value.name for name, value in pairs if name in leads}
            read = inside.copy() if node.op_type == "If" else set()
            for inner in self._linear(graph, inside):
                if inner.op_type in GRAPHS:
                    self._check_inside(inner, inside)
                elif _mean(inner) == "sum":
                    read.update(filter(None, inner.input))
            read |= inside & {value.name for value in graph.input}
            if not read <= self.summed:
                raise MergeError(
                    f"{node.op_type} {node.name!r} adds something to the sum of the parts that belongs to no part; "
                    "merge with --normalize weights."
                )


def _mean(node: onnx.NodeProto) -> Mean:
    """Whether the mean over parts passes through a node."""
    rule = TABLE.get(qualified(node.domain, node.op_type))
    return "no" if rule is None else rule.mean


def _summed(graph: onnx.GraphProto, plan: Plan) -> set[str]:
    """The parameters that merging summed, tensors made of them alone, and activations that depend on parameters."""
    pure = {tensor.name for tensor in graph.initializer}
    trained = {name for i in plan.initializers if not i.constant for name in _names(i.name, pure)}
    summed = {i.name for i in plan.initializers if i.after_reduction and not i.constant}
    for node in all_nodes(graph):
        if node.op_type in ("Shape", "Size"):
            continue
        read, given = {n for n in (*node.input, *captured(node)) if n}, {n for n in node.output if n}
        if not read.isdisjoint(summed if read <= pure else trained):
            summed |= given
        if read <= pure:
            pure |= given
        if not read.isdisjoint(trained):
            trained |= given
    return summed


def _names(name: str, known: set[str]) -> list[str]:
    """An initializer and its copies."""
    return [name, *takewhile(known.__contains__, (copy_name(name, p) for p in range(len(known))))]


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for i, name in enumerate(node.output):
        if name == old:
            node.output[i] = new
