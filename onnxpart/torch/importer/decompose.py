"""Inlined functions and branches that are known: what the importer does to a model before its one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from onnxpart.frontend.functions import without_functions
from onnxpart.ir.protos import all_graphs, all_nodes, normal_domain, opsets_of
from onnxpart.torch.importer.operators.registry import find
from onnxpart.torch.importer.types import inferred

_DOMAIN = "onnxpart.inlined"


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace local functions, and composite operators without an entry, by their bodies."""
    while True:
        proto = without_functions(proto)
        opsets = opsets_of(proto)
        without = (node for node in all_nodes(proto.graph) if not _has_entry(node, opsets))
        if not any(_function_schema(node, opsets) for node in without):
            return proto
        written = _written_out(proto, opsets)
        if not written.functions:
            return proto  # bodies that depend on types which aren't known: the nodes are refused later
        proto = written


def branch_of(node: onnx.NodeProto, then: bool) -> onnx.GraphProto:
    """Return a branch of an If."""
    name = "then_branch" if then else "else_branch"
    graph: onnx.GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return graph


def with_branches(proto: onnx.ModelProto, taken: Mapping[str, bool]) -> onnx.ModelProto:
    """Replace each If in `taken` by its branch; `taken` names an If by its first output."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for graph in reversed(list(all_graphs(result.graph))):  # inner ones first
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type != "If" or node.output[0] not in taken:
                nodes.append(node)
                continue
            branch = branch_of(node, taken[node.output[0]])
            pairs = zip(branch.output, node.output, strict=True)
            nodes += [*branch.node, *(onnx.helper.make_node("Identity", [v.name], [name]) for v, name in pairs if name)]
            graph.initializer.extend(branch.initializer)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return result


def _has_entry(node: onnx.NodeProto, opsets: Mapping[str, int]) -> bool:
    domain = normal_domain(node.domain)
    return find(domain, node.op_type, opsets.get(domain, 1)) is not None


def _function_schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Any:
    """Return the schema of an operator that is a function, or None; onnx's type stub lacks its methods."""
    domain = normal_domain(node.domain)
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def _written_out(proto: onnx.ModelProto, opsets: Mapping[str, int]) -> onnx.ModelProto:
    """Return the model with a local function in place of each composite operator without an entry."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    types = inferred(result)
    for graph in all_graphs(result.graph):
        for node in graph.node:
            schema = None if _has_entry(node, opsets) else _function_schema(node, opsets)
            function = schema and _function(node, schema, types, opsets)
            if schema and function:
                function.domain, function.name = _DOMAIN, f"{node.op_type}_{len(result.functions)}"
                result.functions.append(function)
                node.attribute.extend(_defaults(node, schema))
                node.domain, node.op_type = function.domain, function.name
    if result.functions and _DOMAIN not in opsets:
        result.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return result


def _function(
    node: onnx.NodeProto, schema: Any, types: Mapping[str, onnx.TypeProto], opsets: Mapping[str, int]
) -> onnx.FunctionProto | None:
    """Return an operator's body for its inputs' types; a body is valid up to the opset of the next one."""
    versions = [v for v in schema.function_opset_versions if v <= opsets[""]]
    if versions:
        body = schema.get_function_with_opset_version(max(versions))
    else:
        kinds = [types.get(name, onnx.TypeProto()) for name in node.input]
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opsets[""]]
        known = all(kind.WhichOneof("value") for name, kind in zip(node.input, kinds, strict=True) if name)
        if not versions or not known:
            return None
        serialized = [kind.SerializeToString() for kind in kinds]
        body = schema.get_context_dependent_function_with_opset_version(
            max(versions), node.SerializeToString(), serialized
        )
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(body)
    del function.opset_import[:]
    function.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items())
    return function


def _defaults(node: onnx.NodeProto, schema: Any) -> Iterator[onnx.AttributeProto]:
    """Yield the defaults of attributes that aren't given; the inliner would leave them out."""
    given = {attribute.name for attribute in node.attribute}
    for name in schema.attributes:
        default = schema.attributes[name].default_value
        if name not in given and default.name:
            yield default
