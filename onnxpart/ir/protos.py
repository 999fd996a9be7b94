"""ONNX protos: what nodes read, which are live, graphs inside nodes, constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

ATTRIBUTE_KINDS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
"""Attributes that hold graphs."""
SMALL = 4096
"""Initializers of at most this many elements are looked at when shapes are computed."""
NESTING = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""ONNX's own operators that hold graphs."""


_ONNX = ("", "ai.onnx")
"""The two names of ONNX's own domain."""


def normal_domain(domain: str) -> str:
    """The domain of an operator or of a set of them; ONNX's own domain, which has two names, is the empty string."""
    return "" if domain in _ONNX else domain


def is_onnx(node: NodeProto, *op_types: str) -> bool:
    """Whether a node is one of ONNX's own operators (and, where types are given, of one of these)."""
    return (not op_types or node.op_type in op_types) and node.domain in _ONNX


def opsets_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Opset version by domain; ONNX's own domain is the empty string, and is always there."""
    return {"": 1} | {normal_domain(entry.domain): entry.version for entry in proto.opset_import}


def graphs_of(node: NodeProto) -> list[GraphProto]:
    """The graphs inside a node."""
    result: list[GraphProto] = []
    if node.op_type not in NESTING and node.domain in _ONNX:  # to look at all attributes takes ten times as long
        return result
    for attribute in node.attribute:
        if attribute.type in ATTRIBUTE_KINDS:
            result += [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
    return result


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside its nodes, the outer before the inner."""
    yield graph
    for node in graph.node:
        for inner in graphs_of(node):
            yield from all_graphs(inner)


def all_nodes(body: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph, or of a function, and those of the graphs inside them, the outer before the inner."""
    for node in body.node:
        yield node
        for inner in graphs_of(node):
            yield from all_nodes(inner)


def captured(node: NodeProto) -> list[str]:
    """Names of outer values that the subgraphs of `node` read."""
    result: list[str] = []
    for graph in graphs_of(node):
        inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        for child in graph.node:
            result += [name for name in [*child.input, *captured(child)] if name and name not in inner]
            inner.update(child.output)
        result += [value.name for value in graph.output if value.name not in inner]
    return result


def replace_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Let a node, and the graphs inside it, read other values; values have names of their own (see `share_names`)."""
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for graph in graphs_of(node):
        for child in graph.node:
            replace_reads(child, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


# -- one namespace ----------------------------------------------------------------------------------------------
def unused(name: str, taken: set[str]) -> str:
    """`name`, with a number behind it if it is taken; it is in use from here on."""
    result, i = name, 1
    while result in taken:
        result, i = f"{name}_{i}", i + 1
    taken.add(result)
    return result


def names_of(graph: GraphProto) -> set[str]:
    """Names of the values that a graph and the graphs inside it define, without initializers."""
    found = {value.name for inner in all_graphs(graph) for value in inner.input}
    return found.union(*(node.output for node in all_nodes(graph)))


def set_repeated(field_: Any, values: Sequence[Any]) -> None:
    """Set a repeated field to `values`; some of them may be its own."""
    copies = [type(v).FromString(v.SerializeToString()) for v in values]
    del field_[:]
    field_.extend(copies)


def keep(field_: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove the entries of a repeated field that aren't wanted."""
    for i in reversed(range(len(field_))):
        if not wanted(field_[i]):
            del field_[i]


def live(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """Nodes that lead to the outputs, in their order, and the names in use."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if not used.isdisjoint(node.output):
            used.update(node.input, captured(node))
            used.discard("")
            kept.append(node)
    return kept[::-1], used


def constant_value(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node under its output's name; None for other nodes and for strings and sparse."""
    if not is_onnx(node, "Constant"):
        return None
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            return tensor
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64), node.output[0])
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32), node.output[0])
    return None


def light_copy(proto: onnx.ModelProto, *fields: str) -> onnx.ModelProto:
    """A model with the same operator sets and only these fields of the graph: weights cost time and memory."""
    light = onnx.ModelProto(opset_import=proto.opset_import)
    for field_ in fields:
        getattr(light.graph, field_).extend(getattr(proto.graph, field_))
    return light


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the bytes of large weights, which become inputs instead."""
    light = light_copy(proto, "node", "output", "sparse_initializer", "quantization_annotation")
    light.ir_version = max(proto.ir_version, 4)
    light.functions.extend(proto.functions)
    graph = proto.graph
    light.graph.name = graph.name
    names = {tensor.name for tensor in graph.initializer}
    light.graph.input.extend(value for value in graph.input if value.name not in names)
    for tensor in graph.initializer:
        size = prod(tensor.dims)
        external = tensor.data_location == TensorProto.EXTERNAL
        if size <= SMALL and not external:
            light.graph.initializer.append(tensor)
            continue
        light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def metadata_of(proto: onnx.ModelProto) -> dict[str, str]:
    """The texts that a model carries, by key."""
    return {entry.key: entry.value for entry in proto.metadata_props}


def constant_node(tensor: TensorProto) -> onnx.NodeProto:
    """The Constant node that gives a tensor under its name."""
    return helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
