"""Element types and shapes of a model's values."""

from __future__ import annotations

import onnx

from onnxpart.ir.protos import all_graphs, light_copy
from onnxpart.torch.importer.values import Info

_SMALL = 1024
"""Initializers of at most this many bytes take part in shape inference."""


def inferred(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Infer types and shapes without the bytes of the weights, which would be copied several times."""
    graph, light = proto.graph, light_copy(proto, "node", "value_info", "output", "input")
    light.ir_version = proto.ir_version
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
    found = onnx.shape_inference.infer_shapes(light, data_prop=True)
    result: dict[str, onnx.TypeProto] = {}
    for inner in all_graphs(found.graph):
        for value in (*inner.input, *inner.value_info, *inner.output):
            known = result.setdefault(value.name, value.type)
            if known != value.type:
                result[value.name] = onnx.TypeProto()  # bodies may give one name to several values
    return result


def info_of(kind: onnx.TypeProto) -> Info:
    """Return what is known of a tensor; of other values nothing is known."""
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type"):
        return Info()
    dtype = tensor.elem_type or None
    if not tensor.HasField("shape"):
        return Info(None, dtype)
    return Info(tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim), dtype)
