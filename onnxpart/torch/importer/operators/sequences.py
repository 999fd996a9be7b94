"""Sequences and optional values; at run time they are lists and None."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.operators.runtime import device_of
from onnxpart.torch.importer.values import Constant, Value


def _listed(*tensors: Tensor) -> list[Tensor]:
    return list(tensors)


@operator("SequenceConstruct", "SequenceEmpty", since=11)
def construct(node: Node) -> Tensor:
    """Make a sequence."""
    return node.call(_listed, *node.tensors())


def _element(sequence: list[Tensor], position: Tensor) -> Tensor:
    return sequence[int(position)]


@operator("SequenceAt", since=11)
def at(node: Node) -> Tensor:
    """Pick an element, counted from either end."""
    return node.call(_element, node.tensor(0), node.tensor(1))


def _length(sequence: list[Tensor], anchor: Tensor) -> Tensor:
    return torch.tensor(len(sequence), device=device_of(anchor))


@operator("SequenceLength", since=11)
def length(node: Node) -> Tensor:
    """Count the elements."""
    return node.call(_length, node.tensor(0), node.builder.anchor())


def _inserted(sequence: list[Tensor], tensor: Tensor, position: Tensor | None) -> list[Tensor]:
    place = len(sequence) if position is None else int(position)
    return [*sequence[:place], tensor, *sequence[place:]]


@operator("SequenceInsert", since=11)
def insert(node: Node) -> Tensor:
    """Put an element in front of a position, or at the end."""
    return node.call(_inserted, node.tensor(0), node.tensor(1), node.optional(2))


def _erased(sequence: list[Tensor], position: Tensor | None) -> list[Tensor]:
    place = (-1 if position is None else int(position)) % len(sequence)
    return [*sequence[:place], *sequence[place + 1 :]]


@operator("SequenceErase", since=11)
def erase(node: Node) -> Tensor:
    """Remove an element, the last by default."""
    return node.call(_erased, node.tensor(0), node.optional(1))


def _split(x: Tensor, sizes: Tensor | None, axis: int, keep: bool) -> list[Tensor]:
    if not keep and (sizes is None or (sizes.dim() == 0 and sizes == 1)):
        return list(x.unbind(axis))
    if sizes is None:
        return list(torch.split(x, 1, axis))
    return list(torch.split(x, sizes.tolist(), axis))


@operator("SplitToSequence", since=11)
def split(node: Node) -> Tensor:
    """Cut along an axis into a sequence of pieces; single ones lose the axis without `keepdims`, as in ONNX Runtime."""
    axis, keep = node.attribute("axis", 0), bool(node.attribute("keepdims", 1))
    return node.call(_split, node.tensor(0), node.optional(1), axis, keep)


def _joined(sequence: list[Tensor], axis: int, new_axis: bool) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@operator("ConcatFromSequence", since=11)
def join(node: Node) -> Tensor:
    """Join a sequence along an axis, or a new one."""
    return node.call(_joined, node.tensor(0), node.attribute("axis", 0), bool(node.attribute("new_axis", 0)))


def _nothing() -> None:
    return None


@operator("Optional", since=15)
def optional(node: Node) -> Value:
    """Pass a value on, or none."""
    return node.tensor(0) if node.has(0) else node.call(_nothing)


def _given(value: Any, anchor: Tensor) -> Tensor:
    return torch.tensor(value is not None, device=device_of(anchor))


@operator("OptionalHasElement", since=15)
def has_element(node: Node) -> Value:
    """Tell whether there is a value."""
    if not node.has(0):
        return Constant(node.outputs[0], np.array(False))
    return node.call(_given, node.tensor(0), node.builder.anchor())


def _content(value: Any) -> Any:
    if value is None:
        raise ValueError("there is no value to get")
    return value


@operator("OptionalGetElement", since=15)
def get_element(node: Node) -> Tensor:
    """Get the value, which must be there."""
    return node.call(_content, node.tensor(0))
