"""ONNX into a trainable torch module: one pass over the nodes, each entered in a graph of torch.fx."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import inliner

from onnxpart.errors import OnnxpartError
from onnxpart.model import read_checked, rows_of
from onnxpart.stream import stream
from onnxpart.torch import trainable
from onnxpart.torch.builder import Builder, Scope
from onnxpart.torch.module import ImportedModule
from onnxpart.torch.operators.registry import Constant, Handler, Info, find, normal_domain
from onnxpart.torch.store import DTYPES

_SMALL = 1024


def import_onnx(model: onnx.ModelProto | str | os.PathLike[str]) -> ImportedModule:
    """Turn a model into a module that computes the same, can be trained, and knows its initializers' names.

    The module takes the graph's inputs by position and returns a tensor, or a tuple for several outputs.
    It is in training mode, as torch modules are at first; call `eval()` for inference. Float initializers
    that are weights are parameters, one each however often it is used; batch-norm statistics and other
    constants are buffers. Batch norm and dropout act in training whatever the file says, with its momentum.
    External data are mapped, and copied one initializer after the other.

    :raises OnnxpartError: for a file that can't be read, an operator without an entry in the table, or a form
        that torch can't do.
    """
    proto, _, folder = read_checked(model)
    _check_types(proto.graph)
    proto = _inlined(proto)
    tensors = [tensor for graph in trainable.graphs(proto.graph) for tensor in graph.initializer]
    constants = {tensor.name: _constant(tensor, folder) for tensor in tensors}
    scope = Scope(
        opsets=_opsets(proto),
        infos=_infer(proto),
        trainable=trainable.trainable(proto.graph),
        statistics=trainable.statistics(proto.graph),
        initializers=constants,
    )
    builder = Builder(scope)
    builder.add_graph(proto.graph)
    body = builder.finish(proto.graph)
    origins = [node.meta.get("origin", "") for node in body.graph.nodes if node.op.startswith("call")]
    return ImportedModule(body, frozenset(constants), scope.renamed, origins)


def _constant(tensor: onnx.TensorProto, folder: Path | None) -> Constant:
    return Constant(tensor.name, stream(rows_of(tensor, folder)).array())


def _check_types(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
        element = kind.tensor_type.elem_type
        if kind.WhichOneof("value") not in (None, "tensor_type") or (element and element not in DTYPES):
            what = onnx.TensorProto.DataType.Name(element).lower() if element else kind.WhichOneof("value")
            raise OnnxpartError(f"{value.name!r} is of type {what}, which torch has no tensors of; cut it off.")


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace local functions, and composite operators without an entry, by what they consist of."""
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opsets = _opsets(proto)
    missing = {(node.domain, node.op_type) for node in _nodes(proto) if not _handler(node, opsets)}
    composite = [key for key in missing if _is_composite(*key, opsets)]
    if not composite:
        return proto
    proto = _with_defaults(proto, composite, opsets)
    try:
        inlined = inliner.inline_selected_functions(proto, composite, inline_schema_functions=True)
    except RuntimeError:  # a body that depends on types which aren't known: the node is refused later
        return proto
    return _inlined(inlined) if len(inlined.graph.node) > len(proto.graph.node) else inlined


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in trainable.graphs(proto.graph):
        yield from graph.node


def _with_defaults(
    proto: onnx.ModelProto, composite: list[tuple[str, str]], opsets: Mapping[str, int]
) -> onnx.ModelProto:
    """Write out the default attributes of composite operators; the inliner would leave them out."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for node in _nodes(result):
        if (node.domain, node.op_type) in composite:
            domain = normal_domain(node.domain)
            schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
            given = {attribute.name for attribute in node.attribute}
            defaults = (schema.attributes[name].default_value for name in schema.attributes if name not in given)
            node.attribute.extend(default for default in defaults if default.name)
    return result


def _is_composite(domain: str, op_type: str, opsets: Mapping[str, int]) -> bool:
    domain = normal_domain(domain)
    try:
        schema = onnx.defs.get_schema(op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, f"has_{kind}", False) for kind in ("function", "context_dependent_function"))


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    return {normal_domain(entry.domain): entry.version for entry in proto.opset_import}


def _handler(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Handler | None:
    domain = normal_domain(node.domain)
    return find(domain, node.op_type, opsets.get(domain, 1))


def _infer(proto: onnx.ModelProto) -> dict[str, Info]:
    """Infer shapes and types without the bytes of the weights, which would be copied a few times."""
    graph, light = proto.graph, onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    light.graph.node.extend(graph.node)
    light.graph.value_info.extend(graph.value_info)
    light.graph.output.extend(graph.output)
    light.graph.input.extend(graph.input)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    result: dict[str, Info] = {}
    for inner in trainable.graphs(inferred.graph):
        for value in (*inner.input, *inner.value_info, *inner.output):
            if value.type.HasField("tensor_type"):
                found = _info(value.type.tensor_type)
                known = result.setdefault(value.name, found)
                result[value.name] = found if known == found else Info()  # bodies may give one name to several values
    return result


def _info(tensor: onnx.TypeProto.Tensor) -> Info:
    dtype = tensor.elem_type or None
    if not tensor.HasField("shape"):
        return Info(None, dtype)
    return Info(tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim), dtype)
