"""Reductions, and other operators along one axis."""

from collections.abc import Callable

import torch
from torch import Tensor

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator


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


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(torch.square(x), axes, keep)


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(torch.abs(x), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.sqrt(_sum_square(x, axes, keep)).to(x.dtype)
    result: Tensor = torch.linalg.vector_norm(x, 2, axes, keep)
    return result


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _greatest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amax(_filled(x, axes, least=True), axes, keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amin(_filled(x, axes, least=False), axes, keep)


def _filled(x: Tensor, axes: list[int], least: bool) -> Tensor:
    """Give reduced axes of size 0 the neutral element."""
    if all(x.shape[axis] for axis in axes):
        return x
    if x.dtype == torch.bool:
        neutral: float = not least
    elif x.is_floating_point():
        neutral = -torch.inf if least else torch.inf
    else:
        neutral = torch.iinfo(x.dtype).min if least else torch.iinfo(x.dtype).max
    return x.new_full([1 if axis in axes else size for axis, size in enumerate(x.shape)], neutral)


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": _greatest,
    "ReduceMean": torch.mean,
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": _sum_square,
}


@operator(*_REDUCTIONS)
def reduce(node: Node) -> Tensor:
    """Reduce over axes: an attribute in old opsets, an input in new ones; all axes if none are given."""
    axes = node.integer_list("axes", 1)
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return node.tensor(0)
    rank = node.known_rank(0)
    axes = [axis % rank for axis in axes] if axes else list(range(rank))
    return node.call(_REDUCTIONS[node.op_type], node.tensor(0), axes, bool(node.attribute("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node) -> Tensor:
    """Find the first or last of the greatest or smallest elements along an axis."""
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    x, axis, keep = node.tensor(0), node.attribute("axis", 0), bool(node.attribute("keepdims", 1))
    if not node.attribute("select_last_index", 0):
        return node.call(function, x, axis, keep)
    return node.size(0, axis % node.known_rank(0)) - 1 - node.call(function, x.flip(axis), axis, keep)


def _cumulated(x: Tensor, axis: int, exclusive: bool, reverse: bool, product: bool) -> Tensor:
    x = x.flip(axis) if reverse else x
    result = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, min(1, x.shape[axis])), int(product))
        result = torch.cat([first, result.narrow(axis, 0, max(x.shape[axis] - 1, 0))], axis)
    return result.flip(axis) if reverse else result


@operator("CumSum", since=11)
@operator("CumProd", since=26)
def cumulate(node: Node) -> Tensor:
    """Sum up or multiply along an axis, from either end, each element included or not."""
    axis = node.scalar(1, None)
    if axis is None:
        raise node.error("the axis is missing; check the model with onnx.checker")
    settings = [bool(node.attribute(name, 0)) for name in ("exclusive", "reverse")]
    return node.call(_cumulated, node.tensor(0), int(axis), *settings, node.op_type == "CumProd")


def _greatest_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@operator("TopK")
def top_k(node: Node) -> tuple[Tensor, ...]:
    """Find the k greatest or smallest along an axis, of equal ones the first."""
    k = node.scalar(1, node.attribute("k", None))
    if k is None:
        raise node.error("k is missing; check the model with onnx.checker")
    result = node.call(
        _greatest_k, node.tensor(0), int(k), node.attribute("axis", -1), bool(node.attribute("largest", 1))
    )
    return result[0], result[1]


def _mark_first(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, True), 1)


@operator("Hardmax", since=13)
def hardmax(node: Node) -> Tensor:
    """Mark the first greatest element along an axis."""
    return node.call(_mark_first, node.tensor(0), node.attribute("axis", -1))


@operator("Hardmax")
def hardmax_of_matrix(node: Node) -> Tensor:
    """Mark the first greatest element along all axes from `axis` on, as before opset 13."""
    x = node.tensor(0)
    return node.call(_mark_first, x.flatten(node.attribute("axis", 1)), -1).reshape(x.shape)
