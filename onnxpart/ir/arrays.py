"""The arrays of a model's initializers, and a model's digest."""

from __future__ import annotations

import hashlib

import onnx
from onnx import TensorProto

from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured, light_copy
from onnxpart.ir.trainable import FLOATS
from onnxpart.storage.draft import to_array
from onnxpart.storage.onnx_file import Data, tensor_rows
from onnxpart.storage.rows import CHUNK, Array, Rows, stream


def rows_of(model: Model, name: str) -> Rows:
    """The initializer `name`, to be read a few rows at a time if it is external."""
    return tensor_rows(model.initializers[name], model.data) if model.external(name) else array_of(model, name)


def array_of(model: Model, name: str) -> Array:
    """The array of the initializer `name`; external data are mapped, not read."""
    if model.external(name):
        return stream(rows_of(model, name)).array()
    if name not in model.decoded:
        model.decoded[name] = to_array(model.initializers[name])
    return model.decoded[name]


def digest(proto: onnx.ModelProto, constants: frozenset[str], data: Data | None) -> str:
    """SHA-256 of what a plan is made from: the canonical graph without the values of floats."""
    graph = proto.graph
    light = light_copy(proto, "node", "input", "output")
    result = hashlib.sha256(light.SerializeToString(deterministic=True))
    read = {name for node in graph.node for name in (*node.input, *captured(node))}
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name in constants):
        if tensor.name not in read:
            continue
        what = (tensor.name, tensor.data_type, tuple(tensor.dims), tensor.name in constants)
        result.update(repr(what).encode())
        if tensor.data_type not in (*FLOATS, TensorProto.STRING):
            for chunk in stream(tensor_rows(tensor, data)).chunks(CHUNK):
                result.update(chunk.tobytes())
    return result.hexdigest()
