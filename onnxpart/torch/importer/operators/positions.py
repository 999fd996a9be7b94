"""Operators that look up, write or find positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.values import Constant

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""Names of reductions in ONNX and in torch."""


def _counted_from_front(indices: Tensor, size: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _gathered(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """ONNX Gather: x.shape with the axis replaced by the shape of `indices`, which may be negative."""
    axis = axis % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    flat = x.index_select(axis, indices.reshape(-1))
    return flat.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gathered_elements(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """ONNX GatherElements: torch.gather with indices that may be negative."""
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operator("Gather")
def gather(node: Node) -> Tensor:
    """Pick along an axis: one element, a list of them, or an embedding."""
    x, axis, indices, source = node.tensor(0), node.attribute("axis", 0), node.constant(1), node.inputs[0]
    if indices is not None and indices.ndim == 0:
        return x.select(axis, int(indices))
    counted = indices is None or bool((indices >= 0).all())
    if axis == 0 and node.rank(0) == 2 and counted and isinstance(source, Constant):
        return F.embedding(node.tensor(1), x, source.padding)
    if indices is not None and indices.ndim == 1 and counted:
        return x.index_select(axis, node.tensor(1))
    return node.call(_gathered, x, node.tensor(1), axis)


@operator("GatherElements", since=11)
def gather_elements(node: Node) -> Tensor:
    """Pick single elements along an axis."""
    return node.call(_gathered_elements, *node.tensors(), node.attribute("axis", 0))


def _gathered_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    batch, depth = indices.shape[:batch_dims], indices.shape[-1]
    x, inner = x.flatten(0, batch_dims - 1) if batch_dims else x.unsqueeze(0), indices.shape[batch_dims:-1]
    picked = indices.reshape(x.shape[0], -1, depth)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1).expand(picked.shape[:2])
    result = x[(rows, *picked.unbind(-1))]
    return result.reshape((*batch, *inner, *result.shape[2:]))


@operator("GatherND", since=11)
def gather_nd(node: Node) -> Tensor:
    """Pick slices by positions along several axes."""
    return node.call(_gathered_nd, node.tensor(0), node.tensor(1), node.attribute("batch_dims", 0))


def _scattered(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    indices = _counted_from_front(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _SCATTER[reduction])


@operator("ScatterElements", "Scatter", since=9)
def scatter_elements(node: Node) -> Tensor:
    """Write single elements along an axis, or combine them with the elements there."""
    return node.call(_scattered, *node.tensors(), node.attribute("axis", 0), node.attribute("reduction", "none"))


def _scattered_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    depth = indices.shape[-1]
    flat, row = x.flatten(0, depth - 1) if depth else x.unsqueeze(0), indices.new_zeros(indices.shape[:-1])
    for axis in range(depth):
        row = row * x.shape[axis] + _counted_from_front(indices[..., axis], x.shape[axis])
    flat, updates = flat.reshape(flat.shape[0], -1), updates.reshape(row.numel(), -1)
    return _scattered(flat, row.reshape(-1, 1).expand_as(updates), updates, 0, reduction).reshape(x.shape)


@operator("ScatterND", since=11)
def scatter_nd(node: Node) -> Tensor:
    """Write slices at positions along several axes, or combine them with the slices there."""
    return node.call(_scattered_nd, *node.tensors(), node.attribute("reduction", "none"))


def _updated(cache: Tensor, update: Tensor, starts: Tensor | None, axis: int, circular: bool) -> Tensor:
    steps = torch.arange(update.shape[axis], device=cache.device)
    starts = cache.new_zeros(cache.shape[0], dtype=torch.int64) if starts is None else starts
    places = starts.unsqueeze(1) + steps
    places = places % cache.shape[axis] if circular else places
    shape = [size if i in (0, axis) else 1 for i, size in enumerate(update.shape)]
    return cache.scatter(axis, places.reshape(shape).expand_as(update), update)


@operator("TensorScatter", since=24)
def tensor_scatter(node: Node) -> Tensor:
    """Write a sequence into a cache, each sample's from its own place on."""
    axis = node.attribute("axis", -2) % node.known_rank(0)
    circular = node.attribute("mode", "linear") == "circular"
    return node.call(_updated, node.tensor(0), node.tensor(1), node.optional(2), axis, circular)


def _one_hot(indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    indices = torch.where(indices < 0, indices + depth, indices).unsqueeze(axis)
    shape = [1] * indices.dim()
    shape[axis] = depth
    hot = indices == torch.arange(depth, device=indices.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("OneHot", since=9)
def one_hot(node: Node) -> Tensor:
    """Mark positions by one of two values; nothing for those out of range."""
    depth = node.scalar(1, None)
    if depth is None:
        raise node.error("the depth is missing; check the model with onnx.checker")
    return node.call(_one_hot, node.tensor(0), int(depth), node.tensor(2), node.attribute("axis", -1))


def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("NonZero", since=9)
def non_zero(node: Node) -> Tensor:
    """Find the elements that aren't zero; a row of positions for each axis."""
    return node.call(_non_zero, node.tensor(0))


def _compressed(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).flatten())


@operator("Compress", since=9)
def compress(node: Node) -> Tensor:
    """Keep the slices that a mask chooses."""
    axis: int | None = node.attribute("axis", None)
    return node.call(_compressed, node.tensor(0), node.tensor(1), axis)


def _unique(x: Tensor, axis: int | None, in_order: bool) -> tuple[Tensor, ...]:
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    found, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    places = torch.arange(inverse.numel(), device=x.device)
    first = places.new_full(counts.shape, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not in_order:
        order = torch.argsort(first)
        found, first, counts = found.index_select(axis, order), first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return found, first, inverse, counts


@operator("Unique", since=11)
def unique(node: Node) -> tuple[Tensor, ...]:
    """Find the distinct elements, their first positions, the number of each element among them, and their counts."""
    axis: int | None = node.attribute("axis", None)
    result = node.call(_unique, node.tensor(0), axis, bool(node.attribute("sorted", 1)))
    return tuple(result[i] for i in range(4))


def _reversed(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    steps = torch.arange(x.shape[time_axis], device=x.device)
    lengths = lengths.to(torch.int64).unsqueeze(1)
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    order = order if batch_axis < time_axis else order.t()
    shape = [size if axis in (batch_axis, time_axis) else 1 for axis, size in enumerate(x.shape)]
    return torch.gather(x, time_axis, order.reshape(shape).expand_as(x))


@operator("ReverseSequence", since=10)
def reverse_sequence(node: Node) -> Tensor:
    """Reverse the first steps of each sequence, as many as it has."""
    axes = [node.attribute(f"{name}_axis", default) for name, default in (("batch", 1), ("time", 0))]
    return node.call(_reversed, node.tensor(0), node.tensor(1), *axes)


@operator("Trilu", since=14)
def triangle(node: Node) -> Tensor:
    """Keep the upper or lower triangle of the last two axes."""
    function = torch.triu if node.attribute("upper", 1) else torch.tril
    return node.call(function, node.tensor(0), int(node.scalar(1, 0.0) or 0))
