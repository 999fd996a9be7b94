"""Concrete shapes and known values of a model's tensors.

Symbolic dimensions are given trial values, and the whole graph's shapes follow from ONNX's own shape inference (the
bytes of the weights are left out of what it is given, which makes it fast). Integer arithmetic on shapes is folded
here. A second set of trial values tells which dimensions and values depend on a symbol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxpart.ir.arrays import array_of
from onnxpart.ir.model import Model
from onnxpart.ir.protos import all_graphs
from onnxpart.storage.rows import Array

Shape = tuple[int, ...]
NDBool = np.ndarray[Any, np.dtype[np.bool_]]
SELECTIONS = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))
"""Operators whose results have a size that depends on the data."""


@dataclass(frozen=True)
class Trial:
    """The numbers in place of those that are known only at run time.

    Sizes of symbols: along axis 0, along other axes, and along images' height and width. `iterations`: how often a Loop
    is repeated. `iteration`: the one that is looked at. `found`: how many elements are chosen by their values.
    """

    batch: int
    length: int
    image: int
    iterations: int
    iteration: int
    found: int


TRIALS = (Trial(2, 16, 224, 16, 0, 5), Trial(3, 24, 256, 24, 1, 7), Trial(2, 16, 224, 16, 0, 7))
"""The trials. What differs in the second depends on sizes; what differs in the third depends on data."""
OTHER_SIZES = (((4, 56), (6, 64)), ((3, 28), (2, 32)), ((1024, 224), (1536, 256)))
"""Lengths and images' sizes to try, in the first trial and in the second, where a network can't run at those above.

A table of positions may be shorter, and a window longer.
"""


@dataclass
class Shapes:
    """Shape, element type and (where known) value of every tensor, under one set of trial values.

    `guessed`: values that hold for one iteration of a loop; they tell shapes, and nothing else. `refused`: the outputs
    of nodes that can't run at these sizes. `other`: the same at other sizes of the symbols. `by_data`: the same at
    these sizes, if operators that select by value find another number of elements.
    """

    model: Model
    shape: dict[str, Shape] = field(default_factory=dict)
    dtype: dict[str, int] = field(default_factory=dict)
    folded: dict[str, Array] = field(default_factory=dict)
    guessed: dict[str, Array] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    other: Shapes | None = None
    by_data: Shapes | None = None

    def value(self, name: str) -> Array | None:
        """The value of a tensor that doesn't depend on the inputs' data, or None."""
        if name in self.folded:
            return self.folded[name]
        if name in self.model.initializers:
            return array_of(self.model, name)
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

    def sized_by_data(self, name: str) -> bool:
        """Whether the size of a tensor depends on the values of others, and not only on their sizes."""
        mine, other = self.shape.get(name), self.by_data and self.by_data.shape.get(name)
        return mine is not None and other is not None and mine != other


def declared_values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """What is declared about values in a graph and in those inside it."""
    for inner in all_graphs(graph):
        yield from (*inner.value_info, *inner.output)


def record(shapes: Shapes, name: str, type_: onnx.TypeProto, unknown: int | None = None) -> None:
    """Enter the element type and, if it is known, the shape of a value; `unknown` stands for unknown sizes."""
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


def type_of(shapes: Shapes, name: str) -> onnx.TypeProto:
    """The type of a tensor as ONNX's inference takes it."""
    return helper.make_tensor_type_proto(shapes.dtype[name], shapes.shape.get(name))
