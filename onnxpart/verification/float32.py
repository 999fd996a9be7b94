"""A model computed in float32: half types have too few digits to tell a mistake from rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxpart.storage.draft import fill, to_array
from onnxpart.storage.rows import Array

HALF = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""Types that ONNX Runtime has few CPU kernels for; it rounds after each."""
_TYPE_ATTRIBUTES = frozenset(("dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type", "to"))
"""Attributes that name an element type."""


def to_float32(model: onnx.ModelProto, types: frozenset[int]) -> None:
    """Let a model compute in float32 what it computes in `types`: inputs, outputs, initializers, casts, constants.

    :param model: changed in place.
    :param types: ONNX element types.
    """
    _graph(model.graph, types)


def arrays_to_float32(arrays: Mapping[str, Array], types: Iterable[int]) -> dict[str, Array]:
    """Arrays of element types `types` as float32, others as they are."""
    narrow = {np.dtype(helper.tensor_dtype_to_np_dtype(t)) for t in types}
    return {name: array.astype(np.float32) if array.dtype in narrow else array for name, array in arrays.items()}


def _graph(graph: onnx.GraphProto, types: frozenset[int]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type in types:
            tensor.elem_type = TensorProto.FLOAT
    for initializer in graph.initializer:
        _tensor(initializer, types)
    for node in graph.node:
        for attribute in node.attribute:
            _attribute(attribute, types)


def _attribute(attribute: AttributeProto, types: frozenset[int]) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == AttributeProto.INT and attribute.i in types:
        attribute.i = TensorProto.FLOAT
    if attribute.HasField("t"):
        _tensor(attribute.t, types)
    for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
        _graph(graph, types)


def _tensor(tensor: TensorProto, types: frozenset[int]) -> None:
    if tensor.data_type not in types:
        return
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.data_type = TensorProto.FLOAT
    else:
        fill(tensor, to_array(tensor).astype(np.float32))
