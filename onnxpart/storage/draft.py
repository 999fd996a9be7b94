"""Models whose large initializers are streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from onnxpart.errors import ModelError
from onnxpart.storage.rows import Array, Stream


@dataclass(frozen=True)
class Draft:
    """A model, complete but for the large initializers that are in `streams`: its `proto` has empty ones for them."""

    proto: onnx.ModelProto
    streams: Mapping[str, Stream] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        """The complete model, in memory."""
        if not self.streams:
            return self.proto
        result = without_initializers(self.proto)
        result.graph.initializer.extend(self.proto.graph.initializer)
        for tensor in result.graph.initializer:
            if tensor.name in self.streams:
                fill(tensor, self.streams[tensor.name].array())
        return result

    def arrays(self) -> dict[str, Array]:
        """Initializer name -> array."""
        whole = {t.name: to_array(t) for t in self.proto.graph.initializer if t.name not in self.streams}
        return whole | {name: source.array() for name, source in self.streams.items()}


def empty(name: str, like: Stream, doc: str = "") -> TensorProto:
    """The tensor that stands in a draft for a stream."""
    tensor = TensorProto(name=name, dims=like.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(like.dtype)
    if doc:
        tensor.doc_string = doc
    return tensor


def to_array(tensor: TensorProto) -> Array:
    """The array of a tensor that isn't external.

    :raises ModelError: when it holds fewer numbers than its shape needs.
    """
    try:
        return numpy_helper.to_array(tensor)
    except ValueError:
        raise ModelError(
            f"initializer {tensor.name!r} doesn't hold the numbers of its shape {tuple(tensor.dims)}; "
            "export the model again."
        ) from None


def fill(tensor: TensorProto, array: Array) -> None:
    """Let a tensor hold an array; its name and description stay."""
    doc = tensor.doc_string
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))
    if doc:
        tensor.doc_string = doc


def without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without its initializers."""
    result = onnx.ModelProto()
    _copy(proto, result, "graph")
    _copy(proto.graph, result.graph, "initializer")
    return result


def _copy(source: Message, target: Message, but: str) -> None:
    """Copy all fields but one."""
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif isinstance(value, Message):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)
