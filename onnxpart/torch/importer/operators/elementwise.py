"""Operators that work element by element."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.sizes import compare_sizes
from onnxpart.torch.importer.values import Constant, Value


def _shift_left(x: Tensor, places: Tensor) -> Tensor:
    width = torch.iinfo(x.dtype).bits
    shifted = torch.bitwise_left_shift(x, torch.clamp(places, max=width - 1))
    return torch.where(places < width, shifted, torch.zeros_like(x))


def _shift_right(x: Tensor, places: Tensor) -> Tensor:
    info = torch.iinfo(x.dtype)
    shifted = torch.bitwise_right_shift(x, torch.clamp(places, max=info.bits - 1))
    return shifted if info.min < 0 else torch.where(places < info.bits, shifted, torch.zeros_like(x))


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": torch.div,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": runtime.parametric_relu,
    "Pow": runtime.power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


@operator(*_UNARY)
def unary(node: Node) -> Tensor:
    """Call torch's function of the same meaning."""
    return node.call(_UNARY[node.op_type], node.tensor(0))


@operator("Equal", since=7)
def equal(node: Node) -> Value:
    """Compare element by element, sizes while importing."""
    sizes = compare_sizes(node)
    if sizes is not None:
        both = all(node.rank(index) == 0 for index in (0, 1))
        return Constant(node.outputs[0], np.array(sizes[0] if both else sizes))
    return node.call(torch.eq, node.tensor(0), node.tensor(1))


@operator(*_BINARY, since=7)
def binary(node: Node) -> Tensor:
    """Call torch's function of the same meaning; numpy broadcasting, as since opset 7."""
    if node.op_type == "Div" and not node.is_float(0):
        return node.call(runtime.integer_divide, node.tensor(0), node.tensor(1))
    return node.call(_BINARY[node.op_type], node.tensor(0), node.tensor(1))


@operator("Sum", "Mean", "Min", "Max", since=8)
def variadic(node: Node) -> Tensor:
    """Fold any number of tensors."""
    function = {"Min": torch.minimum, "Max": torch.maximum}.get(node.op_type, torch.add)
    tensors = node.tensors()
    result = tensors[0]
    for tensor in tensors[1:]:
        result = node.call(function, result, tensor)
    return result / len(tensors) if node.op_type == "Mean" else result


@operator("Mod", since=10)
def mod(node: Node) -> Tensor:
    """Take the sign of the divisor, or of the dividend with `fmod`."""
    return node.call(torch.fmod if node.attribute("fmod", 0) else torch.remainder, *node.tensors())


@operator("Where", since=9)
def where(node: Node) -> Tensor:
    """Choose element by element."""
    return node.call(torch.where, *node.tensors())


@operator("LeakyRelu", since=6)
def leaky_relu(node: Node) -> Tensor:
    """Scale negative numbers."""
    return F.leaky_relu(node.tensor(0), node.attribute("alpha", 0.01))


@operator("Elu", since=6)
def elu(node: Node) -> Tensor:
    """Saturate exponentially."""
    return F.elu(node.tensor(0), node.attribute("alpha", 1.0))


@operator("Celu", since=12)
def celu(node: Node) -> Tensor:
    """Saturate exponentially, with a continuous derivative."""
    return F.celu(node.tensor(0), node.attribute("alpha", 1.0))


@operator("Selu", since=6)
def selu(node: Node) -> Tensor:
    """Scale an Elu."""
    alpha = node.attribute("alpha", 1.67326319217681884765625)
    return F.elu(node.tensor(0), alpha) * node.attribute("gamma", 1.05070102214813232421875)


@operator("HardSigmoid", since=6)
def hard_sigmoid(node: Node) -> Tensor:
    """Clip a line to [0, 1]."""
    line = node.tensor(0) * node.attribute("alpha", 0.2) + node.attribute("beta", 0.5)
    return F.hardtanh(line, 0.0, 1.0)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(node: Node) -> Tensor:
    """Set numbers that are not above alpha to zero."""
    return F.threshold(node.tensor(0), node.attribute("alpha", 1.0), 0.0)


@operator("Shrink", since=9)
def shrink(node: Node) -> Tensor:
    """Set numbers within lambd to zero, and move the others by bias."""
    x, limit, bias = node.tensor(0), node.attribute("lambd", 0.5), node.attribute("bias", 0.0)
    return (x - bias) * (x > limit) + (x + bias) * (x < -limit)


@operator("Gelu", since=20)
def gelu(node: Node) -> Tensor:
    """Weigh by the normal distribution function, exact or by tanh."""
    return F.gelu(node.tensor(0), approximate=node.attribute("approximate", "none"))


@operator("Swish", since=24)
def swish(node: Node) -> Tensor:
    """Weigh by a sigmoid."""
    x = node.tensor(0)
    return x * torch.sigmoid(x * node.attribute("alpha", 1.0))


@operator("Clip", since=1)
def clip(node: Node) -> Tensor:
    """Bound from both sides; the bounds are attributes before opset 11.

    Between two numbers it is what exporters write for ReLU6 and Hardtanh, whose gradient at the bounds is 0.
    """
    x = node.tensor(0)
    if any(node.has(index) and node.constant(index) is None for index in (1, 2)):
        return node.call(torch.clamp, x, node.optional(1), node.optional(2))
    low = node.scalar(1, node.attribute("min", None))
    high = node.scalar(2, node.attribute("max", None))
    if low is None and high is None:
        return x
    if node.has(1) or node.has(2):
        low, high = (bound if bound is None or node.is_float(0) else int(bound) for bound in (low, high))
    if node.is_float(0) and low is not None and high is not None and low < high:
        return F.hardtanh(x, low, high)
    return torch.clamp(x, low, high)


@operator("BitShift", since=11)
def bit_shift(node: Node) -> Tensor:
    """Shift bits; a shift by the type's width or more gives 0."""
    right = node.attribute("direction", "") == "RIGHT"
    return node.call(_shift_right if right else _shift_left, node.tensor(0), node.tensor(1))


@operator("IsInf", since=10)
def is_infinite(node: Node) -> Tensor:
    """Find infinities, of both signs or of one."""
    x = node.tensor(0)
    low, high = (math.inf if node.attribute(f"detect_{sign}", 1) else math.nan for sign in ("negative", "positive"))
    return (x == -low) | (x == high)
