"""Quantized numbers. Rounding passes gradients on if a quantized value is dequantized at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from onnx import TensorProto
from torch import Tensor, fx
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.tensors import DTYPES

_CONV: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]


def _along(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Broadcast scales or zero points against x: one for all, one per index of an axis, or one per block of it."""
    if values.dim() == 0 or (values.dim() == 1 and values.numel() == 1):
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, axis: int, block: int) -> Tensor:
    """Divide by the scale, round to even, shift by the zero point, and saturate."""
    return _rounded(x, scale, zero, dtype, axis, block).to(dtype if dtype.itemsize < 8 else torch.int64)


def _rounded(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, axis: int, block: int) -> Tensor:
    y = x.to(scale.dtype) / _along(scale, x, axis, block)
    if dtype.is_floating_point:
        most = torch.finfo(dtype).max
        return y.float().clamp(-most, most)
    info = torch.iinfo(dtype)
    y = y + (torch.round(y) - y).detach()  # the gradient passes as if nothing were rounded
    y = y if zero is None else y + _along(zero, x, axis, block).to(y.dtype)
    return y.clamp(info.min, info.max)


def requantize(
    x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, axis: int, block: int, result: torch.dtype | None
) -> Tensor:
    """Quantize and dequantize in one, through which gradients pass."""
    return dequantize(_rounded(x, scale, zero, dtype, axis, block), scale, zero, axis, block, result)


def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, dtype: torch.dtype | None
) -> Tensor:
    """Shift by the zero point and multiply by the scale."""
    y = x.to(scale.dtype)
    if zero is not None:
        y = y - _along(zero, x, axis, block).to(scale.dtype)
    return (y * _along(scale, x, axis, block)).to(dtype or scale.dtype)


def _target(node: Node) -> torch.dtype:
    """Return the type that a node quantizes to."""
    code = node.attribute("output_dtype", 0) or node.results[0].dtype or TensorProto.UINT8
    if code not in DTYPES:
        name = TensorProto.DataType.Name(code).lower()
        raise node.error(f"torch has no tensors of {name}; quantize to int8 or uint8")
    return DTYPES[code]


@operator("QuantizeLinear", since=10)
def quantize_linear(node: Node) -> Tensor:
    """Round to integers, or to floats of a byte, with a scale and a zero point."""
    axis, block = node.attribute("axis", 1), node.attribute("block_size", 0)
    if node.attribute("precision", 0) or not node.attribute("saturate", 1):
        raise node.error("precision and saturate aren't imported; leave them out")
    return node.call(quantize, node.tensor(0), node.tensor(1), node.optional(2), _target(node), axis, block)


def _quantized(x: object, settings: tuple[object, ...]) -> tuple[Tensor, torch.dtype] | None:
    """Return the tensor that was quantized into x with the same settings, and the type; None for anything else."""
    if not isinstance(x, fx.Proxy) or x.node.target is not quantize:
        return None
    inner, scale, zero, dtype, axis, block = x.node.args
    known = tuple(value.node if isinstance(value, fx.Proxy) else value for value in settings)
    if (scale, zero, axis, block) != known or not isinstance(inner, fx.Node) or not isinstance(dtype, torch.dtype):
        return None
    return cast(Tensor, fx.Proxy(inner, x.tracer)), dtype


@operator("DequantizeLinear", since=10)
def dequantize_linear(node: Node) -> Tensor:
    """Turn quantized numbers back into floats."""
    axis, block, code = node.attribute("axis", 1), node.attribute("block_size", 0), node.attribute("output_dtype", 0)
    x, scale, zero, result = node.tensor(0), node.tensor(1), node.optional(2), DTYPES[code] if code else None
    quantized = _quantized(x, (scale, zero, axis, block))
    if quantized is not None:
        return node.call(requantize, quantized[0], scale, zero, quantized[1], axis, block, result)
    return node.call(dequantize, x, scale, zero, axis, block, result)


def _shifted(x: Tensor, zero: Tensor | None, last: bool = False) -> Tensor:
    """Return x minus the zero point in float64, in which products of bytes are exact."""
    if zero is None:
        return x.double()
    return x.double() - (zero.double().unsqueeze(-1) if last and zero.dim() else zero.double())


def _matmul(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    return torch.matmul(_shifted(a, a_zero, last=True), _shifted(b, b_zero)).to(torch.int32)


@operator("MatMulInteger", since=10)
def matmul_integer(node: Node) -> Tensor:
    """Multiply matrices of bytes."""
    return node.call(_matmul, node.tensor(0), node.tensor(1), node.optional(2), node.optional(3))


def _requantized(y: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return (torch.round(y * scale.double()) + zero.double()).clamp(info.min, info.max).to(dtype)


def _qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, scale: Tensor, zero: Tensor,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    factor = a_scale.double() * b_scale.double() / scale.double()
    return _requantized(torch.matmul(_shifted(a, a_zero), _shifted(b, b_zero)), factor, zero, dtype)


@operator("QLinearMatMul", since=10)
def qlinear_matmul(node: Node) -> Tensor:
    """Multiply quantized matrices."""
    return node.call(_qlinear_matmul, *node.tensors(), _target(node))


def _conv(
    x: Tensor, x_zero: Tensor | None, w: Tensor, w_zero: Tensor | None, bias: Tensor | None, settings: Sequence[object]
) -> Tensor:
    """Convolve integers, less their zero points, in float64."""
    strides, pads, dilations, group = settings
    rank = x.dim() - 2
    assert isinstance(pads, Sequence)
    half = len(pads) // 2
    padded = F.pad(_shifted(x, x_zero), [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])])
    if w_zero is not None and w_zero.dim():
        w_zero = w_zero.reshape(-1, *[1] * (w.dim() - 1))
    return _CONV[rank - 1](
        padded, _shifted(w, w_zero), None if bias is None else bias.double(), strides, 0, dilations, group
    )


def _conv_integer(
    x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, settings: Sequence[object]
) -> Tensor:
    return _conv(x, x_zero, w, w_zero, None, settings).to(torch.int32)


def _settings(node: Node, weight: int) -> tuple[object, ...]:
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.error("auto_pad isn't imported for quantized convolutions; write the pads")
    rank = node.known_rank(weight) - 2
    ones, zeros = [1] * rank, [0] * 2 * rank
    attributes = (node.attribute(name, default) for name, default in (("strides", ones), ("pads", zeros)))
    return (*attributes, node.attribute("dilations", ones), node.attribute("group", 1))


@operator("ConvInteger", since=10)
def conv_integer(node: Node) -> Tensor:
    """Convolve bytes."""
    settings = _settings(node, 1)
    return node.call(_conv_integer, node.tensor(0), node.tensor(1), node.optional(2), node.optional(3), settings)


def _qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, scale: Tensor, zero: Tensor,
    bias: Tensor | None, settings: Sequence[object], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    factor = x_scale.double() * w_scale.double() / scale.double()
    if factor.dim():
        factor = factor.reshape(-1, *[1] * (x.dim() - 2))
    return _requantized(_conv(x, x_zero, w, w_zero, bias, settings), factor, zero, dtype)


@operator("QLinearConv", since=10)
def qlinear_conv(node: Node) -> Tensor:
    """Convolve quantized numbers."""
    tensors = [node.tensor(index) for index in range(8)]
    return node.call(_qlinear_conv, *tensors, node.optional(8), _settings(node, 3), _target(node))
