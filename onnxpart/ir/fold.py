"""Values of shape arithmetic, computed node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from onnxpart.ir.protos import SMALL, is_onnx
from onnxpart.ir.shapes import SELECTIONS, Shape, Shapes, declared_values, record, type_of
from onnxpart.storage.rows import Array


def _slice(data: Array, attrs: dict[str, Any], *inputs: Array) -> Array:
    given: tuple[Any, ...] = inputs or (attrs["starts"], attrs["ends"], attrs.get("axes"))
    starts, ends, axes, steps = (*given, None, None)[:4]
    index: list[slice] = [slice(None)] * data.ndim
    order = range(len(starts)) if axes is None else axes
    for i, axis in enumerate(order):
        step = 1 if steps is None else int(steps[i])
        stop: int | None = int(ends[i])
        if step < 0 and stop is not None and stop < -data.shape[axis]:
            stop = None
        index[int(axis)] = slice(int(starts[i]), stop, step)
    return data[tuple(index)]


def _clip(x: Array, attrs: dict[str, Any], low: Array | None = None, high: Array | None = None) -> Array:
    low, high = attrs.get("min", low), attrs.get("max", high)
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _div(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.trunc(np.true_divide(a, b))).astype(a.dtype)
    return np.asarray(np.divide(a, b))


def _axes(attrs: dict[str, Any], rest: tuple[Array, ...]) -> tuple[int, ...] | None:
    if rest:
        return tuple(int(a) for a in rest[0])
    return tuple(attrs["axes"]) if "axes" in attrs else None


def _cast(x: Array, to: int) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(to))


def _constant_of_shape(attrs: dict[str, Any], x: Array) -> Array:
    value = onnx.numpy_helper.to_array(attrs["value"]) if "value" in attrs else np.zeros(1, np.float32)
    return np.full(tuple(int(d) for d in x), value.ravel()[0])


_FOLD: dict[str, Callable[..., Any]] = {
    "Identity": lambda a, x: x,
    "Gather": lambda a, x, i: np.take(x, i, axis=a.get("axis", 0)),
    "Concat": lambda a, *xs: np.concatenate(xs, axis=a["axis"]),
    "Slice": lambda a, x, *rest: _slice(x, a, *rest),
    "Squeeze": lambda a, x, *rest: np.squeeze(x, _axes(a, rest)),
    "Unsqueeze": lambda a, x, *rest: np.expand_dims(x, _axes(a, rest) or ()),
    "Cast": lambda a, x: _cast(x, a["to"]),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: _div(x, y),
    "Mod": lambda a, x, y: np.fmod(x, y) if a.get("fmod") else np.mod(x, y),
    "Pow": lambda a, x, y: np.power(x, y).astype(x.dtype),
    "Sum": lambda a, *xs: sum(xs[1:], xs[0]),
    "Clip": lambda a, x, *rest: _clip(x, a, *rest),
    "Neg": lambda a, x: -x,
    "Abs": lambda a, x: np.abs(x),
    "Sqrt": lambda a, x: np.sqrt(x),
    "Floor": lambda a, x: np.floor(x),
    "Ceil": lambda a, x: np.ceil(x),
    "Round": lambda a, x: np.rint(x),
    "Min": lambda a, *xs: np.minimum.reduce(xs),
    "Max": lambda a, *xs: np.maximum.reduce(xs),
    "Equal": lambda a, x, y: x == y,
    "Greater": lambda a, x, y: x > y,
    "Less": lambda a, x, y: x < y,
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "LessOrEqual": lambda a, x, y: x <= y,
    "Not": lambda a, x: ~x,
    "And": lambda a, x, y: x & y,
    "Or": lambda a, x, y: x | y,
    "Where": lambda a, c, x, y: np.where(c, x, y),
    "Range": lambda a, x, y, z: np.arange(x, y, z, dtype=x.dtype),
    "ReduceProd": lambda a, x, *r: np.prod(x, axis=_axes(a, r), keepdims=a.get("keepdims", 1) > 0, dtype=x.dtype),
    "ReduceSum": lambda a, x, *r: np.sum(x, axis=_axes(a, r), keepdims=a.get("keepdims", 1) > 0, dtype=x.dtype),
    "ReduceMax": lambda a, x, *r: np.max(x, axis=_axes(a, r), keepdims=a.get("keepdims", 1) > 0),
    "ReduceMin": lambda a, x, *r: np.min(x, axis=_axes(a, r), keepdims=a.get("keepdims", 1) > 0),
    "Tile": lambda a, x, n: np.tile(x, n),
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda a, x, s: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(d) for d in s))),
    "Reshape": lambda a, x, s: x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(s)]),
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
}  # fmt: skip
_LIKE_INPUT = frozenset(("GroupNormalization", "RMSNormalization"))
"""Operators whose output has the input's shape although ONNX's inference doesn't say so in every version."""
_FLOATS_LIKE_INPUT = frozenset(("Binarizer", "Imputer", "Normalizer", "Scaler"))
"""Operators of ai.onnx.ml, for which ONNX infers nothing: floats in the input's shape."""


class Folding:
    """Folds values node by node, and fills in shapes that the inference left out."""

    def __init__(self, shapes: Shapes, symbols: Mapping[str, int], found: int) -> None:
        self.shapes = shapes
        self.symbols = symbols
        self.found = found
        self.opsets = shapes.model.opsets

    def visit(self, node: onnx.NodeProto) -> None:
        shapes = self.shapes
        if not is_onnx(node):
            if node.domain == "ai.onnx.ml" and node.op_type in _FLOATS_LIKE_INPUT and node.input[0] in shapes.shape:
                shapes.shape[node.output[0]] = shapes.shape[node.input[0]]
                shapes.dtype[node.output[0]] = TensorProto.FLOAT
            self._believe(node)
            return
        if node.op_type in ("Shape", "Size"):
            shape = shapes.shape.get(node.input[0])
            if shape is not None:
                attrs = {a.name: a.i for a in node.attribute}
                part = shape[attrs.get("start", 0) : attrs.get("end", len(shape))]
                value = np.asarray(part if node.op_type == "Shape" else np.prod(shape, dtype=np.int64), np.int64)
                self._set(node.output[0], value)
            return
        if node.op_type in _FOLD and all(self._known(name) or self._small(name) for name in node.input if name):
            self._evaluate(node)
        if all(name in shapes.shape for name in node.output if name):
            return
        self._infer_locally(node)
        first = node.input[0] if node.input else ""
        if node.op_type in _LIKE_INPUT and node.output[0] not in shapes.shape and first in shapes.shape:
            shapes.shape[node.output[0]], shapes.dtype[node.output[0]] = shapes.shape[first], shapes.dtype[first]
        self._believe(node)

    @cached_property
    def _declared(self) -> dict[str, tuple[int, Shape]]:
        """Element type and shape of the tensors whose shapes the model's author wrote down."""
        result = {}
        for value in declared_values(self.shapes.model.proto.graph):
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            sizes = [d.dim_value if d.HasField("dim_value") else self.symbols.get(d.dim_param) for d in dims]
            if tensor.HasField("shape") and None not in sizes:
                result[value.name] = tensor.elem_type, tuple(size for size in sizes if size is not None)
        return result

    def _believe(self, node: onnx.NodeProto) -> None:
        """Take the declared shape of an output for which there is no other."""
        for name in node.output:
            if name not in self.shapes.shape and name in self._declared:
                self.shapes.dtype[name], self.shapes.shape[name] = self._declared[name]

    def _known(self, name: str) -> bool:
        return name in self.shapes.folded or name in self.shapes.guessed

    def _small(self, name: str) -> bool:
        tensor = self.shapes.model.initializers.get(name)
        return tensor is not None and prod(tensor.dims) <= SMALL

    def _set(self, name: str, value: Array, guess: bool = False) -> None:
        (self.shapes.guessed if guess else self.shapes.folded)[name] = value
        self.shapes.shape[name] = value.shape
        self.shapes.dtype[name] = helper.np_dtype_to_tensor_dtype(value.dtype)

    def _evaluate(self, node: onnx.NodeProto) -> None:
        model = self.shapes.model
        if all(n in model.initializers for n in node.input) and not model.constants.issuperset(node.input):
            dtype = self.shapes.dtype[node.input[0]]
            if dtype not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
                return  # arithmetic on weights alone is not shape arithmetic
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        guess = any(name in self.shapes.guessed for name in node.input)
        values = [self.shapes.guessed.get(name, self.shapes.value(name)) if name else None for name in node.input]
        known = self.shapes.shape.get(node.output[0])
        if known is not None and prod(known) > SMALL:
            return
        try:
            result = np.asarray(_FOLD[node.op_type](attrs, *values))
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, AttributeError):
            return  # an unusual form: its value stays unknown, which is always safe
        if result.size <= SMALL:
            self._set(node.output[0], result, guess)

    def _infer_locally(self, node: onnx.NodeProto) -> None:
        shapes = self.shapes
        if any(name and name not in shapes.dtype for name in node.input):
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets[""], "")
            types = {name: type_of(shapes, name) for name in node.input if name}
            data = {}
            for name in node.input:
                value = shapes.folded.get(name, shapes.guessed.get(name))
                if value is not None:
                    data[name] = onnx.numpy_helper.from_array(np.asarray(value), name)
                elif name in shapes.model.initializers and self._small(name):
                    data[name] = shapes.model.initializers[name]
            opsets = [helper.make_operatorsetid(d, v) for d, v in self.opsets.items()]
            outputs = shape_inference.infer_node_outputs(schema, node, types, data, None, opsets)
        except (onnx.defs.SchemaError, shape_inference.InferenceError, KeyError):
            return
        unknown = self.found if node.op_type in SELECTIONS else None
        for name, type_ in outputs.items():
            if name not in shapes.shape:
                record(shapes, name, type_, unknown)
