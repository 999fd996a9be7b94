"""Values of shape arithmetic, computed node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from onnxpart.ir.protos import SMALL, is_onnx
from onnxpart.ir.shapes import SELECTIONS, Shape, Shapes, declared_values, record, type_of
from onnxpart.storage.rows import Array

_FOLDED = frozenset(
    (
        "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
        "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat", "ConstantOfShape", "Cos", "CumSum", "Div", "Equal",
        "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
        "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Neg",
        "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Round", "ScatterElements",
        "ScatterND", "Sign", "Sin", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "TopK", "Transpose",
        "Trilu", "Unsqueeze", "Where", "Xor",
    )
)  # fmt: skip
"""The operators of shape arithmetic: they compute numbers from numbers, the same in each run."""
_VALUED = _FOLDED | {"Shape", "Size"}
"""The operators whose results' values may be known."""
_UNINFERRED = (onnx.defs.SchemaError, onnx.checker.ValidationError, KeyError, ValueError)
"""What ONNX's inference raises for nodes that it can't infer."""
_LIKE_INPUT = frozenset(("GroupNormalization", "RMSNormalization"))
"""Operators whose output has the input's shape although ONNX's inference doesn't say so in every version."""
_FLOATS_LIKE_INPUT = frozenset(("Binarizer", "Imputer", "Normalizer", "Scaler"))
"""Operators of ai.onnx.ml, for which ONNX infers nothing: floats in the input's shape."""


_RUN = {"log": lambda *_: None, "verbose": 0, "opsets": {}, "new_ops": None, "existing_functions": {}}
"""What onnx's reference operators ask of the runtime around them."""


@cache
def _reference(op_type: str, opset: int) -> Any:
    """ONNX's reference implementation of an operator, a class that is made for a node."""
    from onnx.reference.ops import load_op  # it takes as long to import as a large network to load

    return load_op("", op_type, opset)


def _size(op_type: str, values: Sequence[Any]) -> float:
    """About how many elements an operator makes of known values, for operators that make many of few."""
    first = values[0] if values else None
    if op_type == "ConstantOfShape" and first is not None:
        return float(np.prod(np.abs(first), dtype=np.float64))
    if op_type == "Range" and all(v is not None for v in values):
        start, stop, step = (float(np.ravel(v)[0]) if np.size(v) else 0.0 for v in values)
        return abs((stop - start) / step) if step else 0.0
    if op_type in ("Expand", "Tile") and first is not None and len(values) > 1 and values[1] is not None:
        return float(np.size(first) * np.prod(np.maximum(np.abs(values[1]), 1), dtype=np.float64))
    if op_type in ("OneHot", "Pad") and len(values) > 1:  # by a depth, or by amounts
        factors = np.abs(np.asarray(values[1], np.float64)) + (op_type == "Pad")
        return float(np.size(values[0]) * np.prod(factors))
    return float(sum(np.size(v) for v in values)) if op_type == "Concat" else 0.0


class Folding:
    """Folds values node by node, and fills in shapes that the inference left out.

    `inferred`: the tensors whose shape the inference knew, and the empty name. `complete`: they are all that there are.
    `contradicting`: the first outputs of nodes whose inputs don't fit each other.
    """

    def __init__(self, shapes: Shapes, symbols: Mapping[str, int], found: int) -> None:
        self.shapes = shapes
        self.symbols = symbols
        self.found = found
        self.opsets = shapes.model.opsets
        self.inferred = frozenset((*shapes.shape, ""))
        self.complete = self.inferred.issuperset(shapes.model.flat.values)
        self.contradicting: set[str] = set()

    def visit(self, node: onnx.NodeProto) -> None:
        """Enter what is known of a node's outputs, given all that is known of its inputs."""
        shapes, op_type = self.shapes, node.op_type
        if self.complete and op_type not in _VALUED:
            return
        if not is_onnx(node):
            if node.domain == "ai.onnx.ml" and node.op_type in _FLOATS_LIKE_INPUT and node.input[0] in shapes.shape:
                shapes.shape[node.output[0]] = shapes.shape[node.input[0]]
                shapes.dtype[node.output[0]] = TensorProto.FLOAT
            self._believe(node)
            return
        if op_type in ("Shape", "Size"):
            self._measure(node)
            return
        if op_type in _FOLDED:
            names = node.input[:]
            if all(self._known(name) or self._small(name) for name in names if name):
                self._evaluate(node, names)
            if op_type == "Gather" and self._is_beyond(node, names):
                self.contradicting.add(node.output[0])
        outputs = set(filter(None, node.output))
        if shapes.shape.keys() >= outputs and (self.inferred.issuperset(node.input) or self._known(node.output[0])):
            return
        self._infer_locally(node)
        first = node.input[0] if node.input else ""
        if node.op_type in _LIKE_INPUT and node.output[0] not in shapes.shape and first in shapes.shape:
            shapes.shape[node.output[0]], shapes.dtype[node.output[0]] = shapes.shape[first], shapes.dtype[first]
        self._believe(node)

    def _measure(self, node: onnx.NodeProto) -> None:
        """Enter the value of a Shape or Size."""
        shape = self.shapes.shape.get(node.input[0])
        if shape is not None:
            attrs = {a.name: a.i for a in node.attribute}
            part = shape[attrs.get("start", 0) : attrs.get("end", len(shape))]
            value = np.asarray(part if node.op_type == "Shape" else np.prod(shape, dtype=np.int64), np.int64)
            self._set(node.output[0], value)

    def refused(self) -> set[str]:
        """The tensors that no node can make: what it reads doesn't fit, or there would be a negative size."""
        shapes = self.shapes.shape
        negative = {shape for shape in set(shapes.values()) if min(shape, default=0) < 0}
        return self.contradicting.union([name for name in shapes if shapes[name] in negative] if negative else ())

    def _is_beyond(self, node: onnx.NodeProto, names: Sequence[str]) -> bool:
        """Whether a Gather of known places looks up beyond its table."""
        places, shape = self.shapes.folded.get(names[1]), self.shapes.shape.get(names[0])
        if places is None or not places.size or shape is None:
            return False
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return -len(shape) <= axis < len(shape) and bool(places.max() >= shape[axis] or places.min() < -shape[axis])

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
        """Take the declared shape of an output that has no other."""
        for name in node.output:
            if name not in self.shapes.shape and name in self._declared:
                self.shapes.dtype[name], self.shapes.shape[name] = self._declared[name]

    def _known(self, name: str) -> bool:
        return name in self.shapes.folded or name in self.shapes.guessed

    def _small(self, name: str) -> bool:
        return name in self.shapes.model.initializers and prod(self.shapes.shape[name]) <= SMALL

    def _set(self, name: str, value: Array, guess: bool = False) -> None:
        (self.shapes.guessed if guess else self.shapes.folded)[name] = value
        self.shapes.shape[name] = value.shape
        self.shapes.dtype[name] = helper.np_dtype_to_tensor_dtype(value.dtype)

    def _evaluate(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        """Compute the outputs of a node whose inputs, `names`, are known, unless they are large."""
        shapes, model = self.shapes, self.shapes.model
        if all(name in model.initializers for name in names) and not model.constants.issuperset(names):
            dtype = shapes.dtype[names[0]]
            if dtype not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
                return  # arithmetic on weights alone is not shape arithmetic
        guess = any(name in shapes.guessed for name in names)
        values = [shapes.guessed[n] if n in shapes.guessed else shapes.value(n) if n else None for n in names]
        known = shapes.shape.get(node.output[0])
        if known is not None and prod(known) > SMALL:
            return
        if _size(node.op_type, values) > SMALL:
            return
        try:
            results = [np.asarray(v) for v in _reference(node.op_type, self.opsets[""])(node, _RUN).run(*values)]
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return  # an unusual form: its value stays unknown, which is always safe
        for name, result in zip(node.output, results, strict=False):
            if name and result.size <= SMALL:
                self._set(name, result, guess)

    def _infer_locally(self, node: onnx.NodeProto) -> None:
        """Let ONNX infer the outputs of a node alone, given the shapes and values of its inputs."""
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
        except shape_inference.InferenceError:
            self.contradicting.update(node.output[:1])
            return
        except _UNINFERRED:
            return
        unknown = self.found if node.op_type in SELECTIONS else None
        for name, type_ in outputs.items():
            if name not in shapes.shape:
                record(shapes, name, type_, unknown)
