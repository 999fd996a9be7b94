"""Operators that make values or change their type."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.values import Constant, Value, are_known
from onnxpart.torch.tensors import DTYPES


@operator("Constant")
def constant(node: Node) -> Value:
    """Return the attribute's value, whatever its kind."""
    name = node.outputs[0]
    for key, dtype in (("int", np.int64), ("ints", np.int64), ("float", np.float32), ("floats", np.float32)):
        value: object = node.attribute(f"value_{key}", None)
        if value is not None:
            return Constant(name, np.array(value, dtype))
    tensor: onnx.TensorProto | None = node.attribute("value", None)
    if tensor is None:
        raise node.error("only tensors, ints and floats are imported; store the constant as a dense tensor")
    return Constant(name, onnx.numpy_helper.to_array(tensor))


def full(anchor: torch.Tensor, shape: torch.Tensor | Sequence[int], value: torch.Tensor) -> torch.Tensor:
    """Fill a tensor of the value's dtype on the anchor's device."""
    sizes = shape.tolist() if isinstance(shape, torch.Tensor) else list(shape)
    return value.to(anchor.device).reshape(()).expand(sizes).clone()


@operator("ConstantOfShape", since=9)
def constant_of_shape(node: Node) -> Value:
    """Fill a shape; this happens while importing if the shape is known."""
    tensor: onnx.TensorProto | None = node.attribute("value", None)
    value = np.zeros(1, np.float32) if tensor is None else onnx.numpy_helper.to_array(tensor)
    shape = node.constant(0)
    if shape is not None:
        return Constant(node.outputs[0], np.full(shape.tolist(), value.reshape(-1)[0], value.dtype))
    items = node.integers(0)
    filler = node.builder.tensor(Constant(node.outputs[0], value))
    return node.call(full, node.builder.anchor(), items.items if items else node.tensor(0), filler)


def integer_range(anchor: Tensor, start: int, limit: int, delta: int) -> Tensor:
    """Count in steps, on the anchor's device."""
    return torch.arange(start, limit, delta, device=anchor.device)


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (value.item() for value in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    return start + torch.arange(count, device=start.device).to(start.dtype) * delta


@operator("Range", since=11)
def range_(node: Node) -> Value:
    """Count from one number to another, in steps; while importing if all are known."""
    bounds = [node.integers(index) for index in range(3)]
    items = [bound.items[0] for bound in bounds if bound is not None]
    if len(items) == len(bounds) and are_known(items):
        return Constant(node.outputs[0], np.arange(*items))
    if len(items) == len(bounds):
        return node.call(integer_range, node.builder.anchor(), *items)
    return node.call(_range, *(node.tensor(index).reshape(()) for index in range(3)))


def _eye(x: Tensor, offset: int, dtype: torch.dtype) -> Tensor:
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (columns - rows.unsqueeze(1) == offset).to(dtype)


@operator("EyeLike", since=9)
def eye_like(node: Node) -> Tensor:
    """Make ones on a diagonal, in the shape of a matrix."""
    return node.call(_eye, node.tensor(0), node.attribute("k", 0), _dtype(node) or node.dtype(0))


def _dtype(node: Node) -> torch.dtype | None:
    """Return the type that the attribute `dtype` names."""
    code: int | None = node.attribute("dtype", None)
    if code is not None and code not in DTYPES:
        raise node.error(f"torch has no type for ONNX element type {code}; use another one")
    return None if code is None else DTYPES[code]


def drawn(anchor: Tensor, shape: Sequence[int], dtype: torch.dtype, normal: bool, a: float, b: float) -> Tensor:
    """Draw from a normal distribution (mean, deviation), or a uniform one (low, high), on the anchor's device."""
    result = torch.empty(tuple(shape), dtype=dtype, device=anchor.device)
    return result.normal_(a, b) if normal else result.uniform_(a, b)


def _random_like(x: Tensor, dtype: torch.dtype | None, normal: bool, a: float, b: float) -> Tensor:
    return drawn(x, x.shape, dtype or x.dtype, normal, a, b)


@operator("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike")
def random(node: Node) -> Tensor:
    """Draw from a distribution with torch's generator; ONNX leaves open what a seed gives."""
    normal, dtype = "Normal" in node.op_type, _dtype(node)
    names = (("mean", 0.0), ("scale", 1.0)) if normal else (("low", 0.0), ("high", 1.0))
    settings = [node.attribute(name, default) for name, default in names]
    if node.op_type.endswith("Like"):
        return node.call(_random_like, node.tensor(0), dtype, normal, *settings)
    shape: list[int] = node.attribute("shape", [])
    return node.call(drawn, node.builder.anchor(), shape, dtype or torch.float32, normal, *settings)


def _bernoulli(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.bernoulli(x).to(dtype or x.dtype)


@operator("Bernoulli", since=15)
def bernoulli(node: Node) -> Tensor:
    """Draw ones with the given probabilities, by torch's generator."""
    return node.call(_bernoulli, node.tensor(0), _dtype(node))


_E4M3FN_END = 464.0
"""Half a step above the largest float8e4m3fn."""


def _to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Round to a float of a byte; too large numbers saturate, or become NaN if the type has no infinity."""
    most = torch.finfo(dtype).max
    x = x.float()
    if saturate:
        x = torch.clamp(x, -most, most)
    elif dtype == torch.float8_e4m3fn:
        x = torch.where(x.abs() > _E4M3FN_END, torch.nan, x)
    return x.to(dtype)


@operator("Cast", "CastLike")
def cast(node: Node) -> Tensor:
    """Change the element type."""
    if node.op_type == "CastLike":
        dtype: torch.dtype | None = node.dtype(1)
    else:
        dtype = DTYPES.get(node.attribute("to", TensorProto.UNDEFINED))
    if dtype is None:
        raise node.error(f"torch has no type for ONNX element type {node.attribute('to', 0)}; cast to another one")
    if dtype.itemsize == 1 and dtype.is_floating_point:
        if dtype == torch.float8_e8m0fnu:
            raise node.error("casts to float8e8m0 aren't imported; cast to another type")
        return node.call(_to_float8, node.tensor(0), dtype, bool(node.attribute("saturate", 1)))
    return node.tensor(0).to(dtype)


@operator("BitCast", since=26)
def bit_cast(node: Node) -> Tensor:
    """Take the bits for another type of the same size."""
    code = node.attribute("to", TensorProto.UNDEFINED)
    if code not in DTYPES:
        raise node.error(f"torch has no type for ONNX element type {code}; cast to another one")
    return node.tensor(0).view(DTYPES[code])
