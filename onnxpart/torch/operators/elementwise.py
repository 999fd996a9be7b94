"""Operators that work element by element, and reductions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.operators import runtime
from onnxpart.torch.operators.registry import Node, operator

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
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
    "Div": torch.div,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": runtime.parametric_relu,
    "Pow": torch.pow,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


@operator(*_UNARY)
def unary(node: Node) -> Tensor:
    """Call torch's function of the same meaning."""
    return node.call(_UNARY[node.op_type], node.tensor(0))


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
    """Scale what is negative."""
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
    return torch.clamp(line, 0.0, 1.0)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(node: Node) -> Tensor:
    """Zero what is not above alpha."""
    return F.threshold(node.tensor(0), node.attribute("alpha", 1.0), 0.0)


@operator("Shrink", since=9)
def shrink(node: Node) -> Tensor:
    """Zero what is within lambd, and move the rest by bias."""
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
    """Bound from both sides; the bounds are attributes before opset 11."""
    x = node.tensor(0)
    low = node.scalar(1, node.attribute("min", None))
    high = node.scalar(2, node.attribute("max", None))
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("Softmax", "LogSoftmax", since=13)
def softmax(node: Node) -> Tensor:
    """Normalise along one axis."""
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return node.call(function, node.tensor(0), node.attribute("axis", -1))


@operator("Softmax", "LogSoftmax")
def softmax_of_matrix(node: Node) -> Tensor:
    """Normalise along all axes from `axis` on, as before opset 13."""
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    x, axis, rank = node.tensor(0), node.attribute("axis", 1), node.rank(0)
    if rank is not None and axis % rank == rank - 1:
        return node.call(function, x, -1)
    return node.call(function, x.flatten(axis), -1).reshape(x.shape)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(torch.sum(x, axes, keep))


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(torch.square(x), axes, keep)


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(torch.abs(x), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
    return result


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep)
    return x


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": _sum_square,
}


@operator(*_REDUCTIONS)
def reduce(node: Node) -> Tensor:
    """Reduce over axes: an attribute in old opsets, an input in new ones; all axes where none are given."""
    axes = node.integer_list("axes", 1)
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return node.tensor(0)
    rank = node.known_rank(0)
    axes = [axis % rank for axis in axes] if axes else list(range(rank))
    function = _REDUCTIONS[node.op_type]
    return function(node.tensor(0), axes, bool(node.attribute("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node) -> Tensor:
    """Find the first greatest or smallest element along an axis."""
    if node.attribute("select_last_index", 0):
        raise node.error("select_last_index isn't imported; reverse the axis in the model instead")
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    keep = bool(node.attribute("keepdims", 1))
    return node.call(function, node.tensor(0), node.attribute("axis", 0), keep)


@operator("CumSum", since=11)
def cumulative_sum(node: Node) -> Tensor:
    """Sum up along an axis."""
    axis = node.scalar(1, None)
    if axis is None or node.attribute("exclusive", 0) or node.attribute("reverse", 0):
        raise node.error("exclusive and reverse aren't imported; express them by Pad and Slice")
    return torch.cumsum(node.tensor(0), int(axis))


@operator("IsInf", since=10)
def is_infinite(node: Node) -> Tensor:
    """Find infinities, of both signs or of one."""
    x = node.tensor(0)
    low, high = (math.inf if node.attribute(f"detect_{sign}", 1) else math.nan for sign in ("negative", "positive"))
    return (x == -low) | (x == high)
