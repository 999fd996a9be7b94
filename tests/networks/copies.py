"""Models to compare with, and with other weights."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from onnxpart import Model
from onnxpart.ir.redraft import redraft
from onnxpart.storage.draft import fill
from onnxpart.storage.rows import Array


def restored(model: Model) -> ModelProto:
    """The model as a file of its own, in memory."""
    return redraft(model).model()


def with_arrays(proto: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    """A copy of `proto` whose initializers named in `values` hold those arrays."""
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            fill(tensor, values[tensor.name])
    return result
