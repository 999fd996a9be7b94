"""Concrete shapes and known values of a model's tensors.

Symbolic dimensions are given trial values, and the whole graph's shapes follow from ONNX's own shape inference (the
bytes of the weights are left out of what it is given, which makes it fast). Integer arithmetic on shapes is folded
here. A second set of trial values tells which dimensions and values depend on a symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from onnxpart.borders import FOUND, cross, grown
from onnxpart.control import ENTER, LEAVE, graphs_of
from onnxpart.errors import ModelError
from onnxpart.files import Array

if TYPE_CHECKING:
    from onnxpart.model import Model

Shape = tuple[int, ...]
SMALL = 4096
"""Initializers of at most this many elements are looked at when shapes are computed."""
_TRIALS = ((2, 16, 224), (3, 24, 256), (2, 16, 224))
"""Trial values for symbols: along axis 0, in sequences, in images; for each set (see `borders.FOUND`)."""
SELECTIONS = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))
"""Operators the size of whose results depends on the data."""


@dataclass
class Shapes:
    """Shape, element type and (where known) value of every tensor, under one set of trial values.

    `guessed` are values that hold for one iteration of a loop: they tell shapes, and nothing else.
    """

    model: Model
    shape: dict[str, Shape] = field(default_factory=dict)
    dtype: dict[str, int] = field(default_factory=dict)
    folded: dict[str, Array] = field(default_factory=dict)
    guessed: dict[str, Array] = field(default_factory=dict)
    other: Shapes | None = None

    def value(self, name: str) -> Array | None:
        """The value of a tensor that doesn't depend on the inputs' data, or None."""
        if name in self.folded:
            return self.folded[name]
        if name in self.model.initializers:
            return self.model.array(name)
        return None

    def dynamic_dims(self, name: str) -> tuple[bool, ...]:
        """For each axis, whether its size depends on a symbolic dimension."""
        mine = self.shape[name]
        if self.other is None or name not in self.other.shape:
            return (False,) * len(mine)
        return tuple(a != b for a, b in zip(mine, self.other.shape[name], strict=True))

    def dynamic_value(self, name: str) -> NDBool:
        """For each element of a known value, whether it depends on a symbolic dimension."""
        mine = self.value(name)
        assert mine is not None
        if self.other is None:
            return np.zeros(mine.shape, bool)
        other = self.other.value(name)
        if other is None or other.shape != mine.shape:
            return np.ones(mine.shape, bool)
        return np.asarray(mine != other)

    @cached_property
    def _by_data(self) -> Shapes:
        return _infer(self.model, 2)

    def sized_by_data(self, name: str) -> bool:
        """Whether the size of a tensor depends on the values of others and not on their sizes alone."""
        mine, other = self.shape.get(name), self.other and self._by_data.shape.get(name)
        return mine is not None and other is not None and mine != other


NDBool = np.ndarray[Any, np.dtype[np.bool_]]


def infer(model: Model) -> Shapes:
    """Shapes of every tensor of `model`; tensors whose shape can't be told have no entry.

    :raises ModelError: when the shapes contradict each other.
    """
    first = _infer(model, 0)
    if _symbolic(model) or model.flat.regions or any(node.op_type in SELECTIONS for node in model.flat.nodes):
        first.other = _infer(model, 1)
    if model.flat.regions and grown(first):
        return _while_growing(model, first)
    return first


def _while_growing(model: Model, first: Shapes) -> Shapes:
    """Shapes where the states of loops grow: at the second iteration, and for other trial values at the third."""
    result = _infer(model, 0, grown(first))
    assert first.other is not None
    second = grown(first.other)
    result.other = _infer(model, 1, {**second, **grown(_infer(model, 1, second))})
    return result


def _symbolic(model: Model) -> bool:
    return any(
        not dim.HasField("dim_value") for value in model.proto.graph.input for dim in value.type.tensor_type.shape.dim
    )


def input_shapes(model: Model, trial: int = 0) -> dict[str, Shape]:
    """Shapes of the inputs with trial values in place of symbols; the same symbol gets the same value."""
    return _trial_shapes(model, trial)[0]


def _trial_shapes(model: Model, trial: int) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes of the inputs, and the trial value of each symbol."""
    symbols: dict[str, int] = {}
    shapes = {}
    for value in model.proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = []
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
                continue
            size = _TRIALS[trial][0 if axis == 0 else 2 if len(dims) >= 4 and axis >= 2 else 1]
            shape.append(symbols.setdefault(dim.dim_param, size) if dim.dim_param else size)
        shapes[value.name] = tuple(shape)
    return shapes, symbols


def _infer(model: Model, trial: int, states: Mapping[str, Shape | None] | None = None) -> Shapes:
    shapes = Shapes(model)
    given, symbols = _trial_shapes(model, trial)
    light = _light(model, given)
    try:
        inferred = shape_inference.infer_shapes(light, check_type=False, strict_mode=False, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ModelError(f"{model.name}: the shapes contradict each other ({error}); fix the export.") from None
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        _record(shapes, value.name, value.type)
    for name, tensor in model.initializers.items():
        shapes.shape[name], shapes.dtype[name] = tuple(tensor.dims), tensor.data_type
    fold = _Fold(shapes, symbols, FOUND[trial])
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        if node.domain in (ENTER, LEAVE):
            cross(shapes, model.flat.regions[path[-1][0]], node, trial, states or {})
        else:
            fold.visit(node)
    return shapes


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """What is declared about values in a graph and in those inside it."""
    yield from (*graph.value_info, *graph.output)
    for node in graph.node:
        for inner in graphs_of(node):
            yield from _values(inner)


def _record(shapes: Shapes, name: str, type_: onnx.TypeProto, unknown: int | None = None) -> None:
    if not type_.HasField("tensor_type"):
        return
    tensor = type_.tensor_type
    shapes.dtype[name] = tensor.elem_type
    if tensor.HasField("shape"):
        dims = tensor.shape.dim
        if unknown is not None:
            shapes.shape[name] = tuple(dim.dim_value if dim.HasField("dim_value") else unknown for dim in dims)
            return
        shape = tuple([dim.dim_value for dim in dims])
        if 0 not in shape or all(dim.HasField("dim_value") for dim in dims):
            shapes.shape[name] = shape


def _light(model: Model, inputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """The model with concrete inputs, and without the values of large initializers; integers become inputs for that."""
    graph = model.proto.graph
    light = onnx.ModelProto(ir_version=model.proto.ir_version, opset_import=model.proto.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    for value in graph.input:
        type_ = value.type.tensor_type
        light.graph.input.append(helper.make_tensor_value_info(value.name, type_.elem_type, inputs[value.name]))
    for tensor in graph.initializer:
        kind, dims = tensor.data_type, tensor.dims
        integer = kind in (TensorProto.INT64, TensorProto.INT32)
        if (integer or len(dims) <= 1) and prod(dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif integer:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, kind, dims))
        else:
            light.graph.initializer.add(name=tensor.name, data_type=kind, dims=dims)
    for value in graph.output:
        out = onnx.ValueInfoProto(name=value.name)
        if value.type.HasField("tensor_type"):
            out.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        light.graph.output.append(out)
    return light


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


class _Fold:
    """Folds values node by node, and fills in shapes that the inference left out."""

    def __init__(self, shapes: Shapes, symbols: Mapping[str, int], found: int) -> None:
        self.shapes = shapes
        self.symbols = symbols
        self.found = found
        self.opsets = shapes.model.opsets

    def visit(self, node: onnx.NodeProto) -> None:
        shapes = self.shapes
        if node.domain not in ("", "ai.onnx"):
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
        for value in _values(self.shapes.model.proto.graph):
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
            types = {name: _type(shapes, name) for name in node.input if name}
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
                _record(shapes, name, type_, unknown)


def _type(shapes: Shapes, name: str) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(shapes.dtype[name], shapes.shape.get(name))
