"""A node as the table of operators sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, TypeVar, cast

import numpy as np
import onnx
import torch
from torch import nn

from onnxpart.errors import OnnxpartError
from onnxpart.ir.protos import normal_domain
from onnxpart.torch.importer.values import Constant, Info, Integers, Unknown, Value
from onnxpart.torch.tensors import DTYPES, to_tensor

Handler: TypeAlias = "Callable[[Node], Value | tuple[Value, ...]]"
T = TypeVar("T")
_LONGEST_INTEGERS = 64


class Builder(Protocol):
    """What a node needs of the graph under construction."""

    def emit(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> torch.Tensor:
        """Enter a call of a function."""

    def module(self, module: nn.Module, args: tuple[object, ...]) -> torch.Tensor:
        """Enter a call of a module, and keep the module."""

    def tensor(self, value: Value) -> torch.Tensor:
        """Return the proxy of a value."""

    def statistic(self, node: Node, index: int) -> torch.Tensor:
        """Return an input of the node that training changes in place."""

    def anchor(self) -> torch.Tensor:
        """Return an input of the graph, which tells the device."""

    def take(self, node: Node, then: bool) -> tuple[Value, ...]:
        """Add the taken branch of an If to the graph; return its outputs."""

    def body(self, graph: onnx.GraphProto) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """Import a subgraph; return it, and the outer values that it reads, to be passed after its own inputs."""


class Node:
    """A node while it is imported: its attributes, and its inputs as the values that the graph holds.

    A tensor is a proxy of torch.fx: a torch function called with it becomes a call in the graph.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        opset: int,
        inputs: Sequence[Value | None],
        infos: Sequence[Info],
        results: Sequence[Info],
        builder: Builder,
    ) -> None:
        self.proto, self.results = proto, results
        self.op_type, self.domain, self.opset = proto.op_type, normal_domain(proto.domain), opset
        self.name = proto.name or (proto.output[0] if proto.output else "")
        self.inputs, self.input_names, self.outputs = list(inputs), list(proto.input), list(proto.output)
        self.builder = builder
        self._infos = infos
        self._attributes = {a.name: _decode(onnx.helper.get_attribute_value(a)) for a in proto.attribute}

    def attribute(self, name: str, default: T) -> T:
        """Return an attribute as Python value (int, float, str, list or TensorProto), or the default."""
        return cast(T, self._attributes.get(name, default))

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> torch.Tensor:
        """Return an input as tensor at run time."""
        value = self.inputs[index] if self.has(index) else None
        if value is None:
            raise self.error(f"input {index} is missing; check the model with onnx.checker")
        return self.builder.tensor(value)

    def optional(self, index: int) -> torch.Tensor | None:
        """Return an input as tensor at run time, or None if it isn't given."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[torch.Tensor]:
        """Return all inputs as tensors at run time."""
        return [self.tensor(index) for index in range(len(self.inputs))]

    def constant(self, index: int) -> np.ndarray | None:
        """Return an input's array if it is given and known while importing, else None."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, Constant):
            return value.array
        if isinstance(value, Integers) and value.known:
            return np.array(value.items[0] if value.scalar else value.items, np.int64)
        return None

    def scalar(self, index: int, default: float | None) -> float | None:
        """Return an optional input of one element as float; it must be known while importing."""
        if not self.has(index):
            return default
        array = self.constant(index)
        if array is None:
            raise self.unknown(f"input {index} is computed at run time")
        if array.size > 1:
            raise self.error(f"input {index} has {array.size} elements, not one; check the model with onnx.checker")
        return float(array.item()) if array.size else default

    def integers(self, index: int) -> Integers | None:
        """Return an input as a list of ints if it is one (int64, rank 0 or 1), else None."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, Integers):
            return value
        array = self.constant(index)
        if array is None or array.dtype != np.int64 or array.ndim > 1 or array.size > _LONGEST_INTEGERS:
            return None
        return Integers(tuple(array.reshape(-1).tolist()), array.ndim == 0)

    def holds_integers(self) -> bool:
        """Whether an input is computed from sizes while importing."""
        return any(isinstance(value, Integers) for value in self.inputs)

    def integer_list(self, name: str, index: int) -> list[int] | None:
        """Return a list that is an attribute in old opsets and an input in new ones; None if it isn't given."""
        empty: list[int] = []
        if name in self._attributes:
            return list(self.attribute(name, empty))
        if not self.has(index):
            return None
        array, integers = self.constant(index), self.integers(index)
        if array is not None and array.dtype.kind == "i":
            return [int(item) for item in array.reshape(-1)]
        if integers is None:
            raise self.unknown(f"{name} is computed at run time")
        return list(integers.items)

    def shape(self, index: int) -> list[int | None] | None:
        """Return an input's shape, None for a size that isn't known; None if not even the rank is."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, Constant):
            return list(value.array.shape)
        shape = self._infos[index].shape if index < len(self._infos) else None
        return None if shape is None else list(shape)

    def dtype(self, index: int) -> torch.dtype:
        """Return an input's element type."""
        value = self.inputs[index] if self.has(index) else None
        if isinstance(value, Constant):
            return to_tensor(value.array.reshape(-1)[:0]).dtype
        if isinstance(value, Integers):
            return torch.int64
        element = self._infos[index].dtype
        if element is None or element not in DTYPES:
            raise self.unknown(f"the element type of {self.input_names[index]!r} is unknown")
        return DTYPES[element]

    def is_float(self, index: int) -> bool:
        """Whether an input is of a floating type."""
        return self.dtype(index).is_floating_point

    def rank(self, index: int) -> int | None:
        """Return an input's rank, None if it isn't known."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def known_rank(self, index: int) -> int:
        """Return an input's rank; an error if it isn't known."""
        rank = self.rank(index)
        if rank is None:
            raise self.unknown(f"the rank of {self.input_names[index]!r} is unknown")
        return rank

    def size(self, index: int, axis: int) -> int:
        """Return a size as int if it is known, otherwise as a proxy.

        The first axis is always read at run time, so that a model with a fixed batch takes any batch.
        """
        shape, constant = self.shape(index), isinstance(self.inputs[index], Constant)
        known = shape[axis] if shape is not None and (axis > 0 or constant) else None
        return self.tensor(index).size(axis) if known is None else known

    def call(self, function: Callable[..., object], *args: object, **kwargs: object) -> torch.Tensor:
        """Enter a call of a module-level function as it is, without looking into it."""
        return self.builder.emit(function, args, kwargs)

    def module(self, module: nn.Module, *args: object) -> torch.Tensor:
        """Enter a call of a module; for operators that differ in training."""
        return self.builder.module(module, args)

    @property
    def title(self) -> str:
        """The node's name and operator, for messages."""
        return f"node {self.name!r} ({self.op_type})"

    def error(self, reason: str) -> OnnxpartError:
        """Return an error that names this node."""
        return OnnxpartError(f"{self.title}: {reason}")

    def unknown(self, reason: str) -> Unknown:
        """Return the error that lets this node be interpreted at run time."""
        return Unknown(f"{self.title}: {reason}; fold the model's constants before importing")


def _decode(value: object) -> object:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value
