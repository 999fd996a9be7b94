"""Random networks over the whole rule table: valid, bounded, from a source of small numbers.

The numbers come from hypothesis in the tests and from a seeded generator in `scripts/fuzz`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.networks.net import Attribute, Net

Draw = Callable[[int], int]
"""A number from 0 up to, but not including, the one given."""
Dim = int | str
Dims = tuple[Dim, ...]
T = TypeVar("T")

OPSETS = (17, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 18, 19, 20, 21, 22, 23, 24, 25, 26)
WIDTHS = (6, 4, 8, 12, 1, 2, 3, 5, 7, 9)
LARGEST = 4096
"""A value has at most this many elements for each sample."""


@dataclass(frozen=True)
class Value:
    """A float tensor of the network; `tame` if its elements are small enough for an exponential."""

    name: str
    dims: Dims
    tame: bool = True

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def sizes(self) -> list[int]:
        """Sizes with the symbolic batch as 1."""
        return [1 if isinstance(d, str) else d for d in self.dims]

    def fixed(self, axis: int) -> bool:
        """Whether the size of an axis is a number."""
        return not isinstance(self.dims[axis], str)

    def axes(self, least: int = 1) -> list[int]:
        """Axes of a fixed size of at least `least`."""
        return [a for a, d in enumerate(self.dims) if not isinstance(d, str) and d >= least]


class Growing:
    """A network in the making: the values so far, and the weights that may serve again."""

    def __init__(self, net: Net, draw: Draw) -> None:
        self.net = net
        self.draw = draw
        self.values: list[Value] = []
        self.weights: dict[tuple[int, ...], list[str]] = {}

    # -- choices ------------------------------------------------------------------------------------------------

    def chance(self, n: int) -> bool:
        """True once in `n` times."""
        return self.draw(n) == n - 1

    def of(self, options: Sequence[T]) -> T:
        return options[self.draw(len(options))]

    def width(self) -> int:
        return self.of(WIDTHS)

    def pick(self, fits: Callable[[Value], bool] = lambda _: True) -> Value | None:
        """A value that fits, most often the newest."""
        found = [v for v in self.values if fits(v)]
        if not found:
            return None
        return self.of(found) if self.chance(3) else found[-1]

    # -- nodes --------------------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        return self.net.opset

    def put(self, name: str, dims: Sequence[Dim], tame: bool = True) -> Value:
        """Add a value to those that further steps start from."""
        value = Value(name, tuple(dims), tame)
        if prod(value.sizes) <= LARGEST:
            self.values.append(value)
        return value

    def tamed(self, v: Value) -> str:
        """Name of the value, or of its tanh if its elements may be large."""
        return v.name if v.tame else self.net.op("Tanh", v.name)

    def with_ints(self, op_type: str, x: str, name: str, values: Sequence[int], since: int, **rest: Attribute) -> str:
        """A node with a list of integers that is an attribute before opset `since` and its second input from there."""
        if self.opset >= since:
            return self.net.op(op_type, x, self.net.ints(*values), **rest)
        return self.net.op(op_type, x, **{**rest, name: list(values)})

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        return self.with_ints("Unsqueeze", x, "axes", axes, 13)

    def squeeze(self, x: str, axes: Sequence[int]) -> str:
        return self.with_ints("Squeeze", x, "axes", axes, 13)

    def reduce(self, op_type: str, x: str, axes: Sequence[int], keepdims: int) -> str:
        since = 13 if op_type == "ReduceSum" else 18
        return self.with_ints(op_type, x, "axes", axes, since, keepdims=keepdims)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        if self.opset >= 10:
            ints = [self.net.ints(v) for v in (start, end, axis, step)]
            return self.net.op("Slice", x, *ints)
        return self.net.op("Slice", x, starts=[start], ends=[end], axes=[axis])

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        count = len(sizes)
        if self.opset >= 13:
            return self.net.ops("Split", x, self.net.ints(*sizes), count=count, axis=axis)
        return self.net.ops("Split", x, count=count, axis=axis, split=list(sizes))

    def cast(self, x: str, to: int) -> str:
        return self.net.op("Cast", x, to=to)

    def target(self, v: Value, dims: Sequence[Dim], zeros: bool = True) -> str:
        """A Reshape's target for `v`: numbers, zeros and a -1, or computed from the shape of `v`.

        `zeros`: it is `v` itself that is reshaped, so that 0 may stand for a size that stays.
        """
        net = self.net
        dynamic = [a for a, d in enumerate(dims) if isinstance(d, str)]
        fixed = [d for d in dims if not isinstance(d, str)]
        sizes: list[int] = [d if isinstance(d, int) else -1 for d in dims]
        if zeros and dynamic and dynamic[0] < v.rank and v.dims[dynamic[0]] == dims[dynamic[0]] and self.draw(2):
            sizes[dynamic[0]] = 0
        if not dynamic and self.chance(3):
            sizes[self.draw(len(sizes))] = -1
        if dynamic and self.opset >= 11 and self.chance(3):
            at = net.array("at", np.asarray(v.dims.index("N")))
            batch = self.unsqueeze(net.op("Gather", net.op("Shape", v.name), at, axis=0), [0])
            before, after = fixed[: dynamic[0]], fixed[dynamic[0] :]
            pieces = [*([net.ints(*before)] if before else []), batch, *([net.ints(*after)] if after else [])]
            return net.op("Concat", *pieces, axis=0)
        return net.ints(*sizes)

    def reshape(self, v: Value, dims: Sequence[Dim]) -> str:
        return self.net.op("Reshape", v.name, self.target(v, dims))

    # -- layers -------------------------------------------------------------------------------------------------

    def weight(self, *shape: int, fan_in: int) -> str:
        """A weight: an initializer, one that serves elsewhere too, or one that is computed from some."""
        net, spread = self.net, float((1.5 / fan_in) ** 0.5)
        known = self.weights.setdefault(shape, [])
        if known and self.chance(5):
            return self.of(known)
        form = self.draw(24) if len(shape) == 2 else 0
        if form == 23:
            return net.op("Transpose", net.random("weight", *shape[::-1], spread=spread), perm=[1, 0])
        if form == 22:
            return net.op("Mul", net.random("weight", *shape, spread=spread), net.positive("gain", shape[-1]))
        if form == 21:
            return net.op("Mul", net.positive("gain", shape[0], 1), net.random("weight", *shape, spread=spread))
        if form == 20:
            flat = net.random("weight", prod(shape), spread=spread)
            return net.op("Reshape", flat, net.ints(*shape))
        if form == 19 and shape[0] > 1:
            pieces = (net.random("weight", n, shape[1], spread=spread) for n in (1, shape[0] - 1))
            return net.op("Concat", *pieces, axis=0)
        if form == 18:
            return self.slice(net.random("weight", shape[0], shape[1] + 2, spread=spread), 1, shape[1] + 1, 1)
        known.append(net.random("weight", *shape, spread=spread))
        return known[-1]

    def dense(self, v: Value, width: int) -> Value:
        """A layer along the last axis of `v`, as one of the operators that can be one."""
        net, i = self.net, v.sizes[-1]
        dims = (*v.dims[:-1], width)
        form = self.draw(6)
        if v.rank == 2 and form < 3:
            turned = self.draw(2)
            w = self.weight(width, i, fan_in=i) if turned else self.weight(i, width, fan_in=i)
            bias = [net.random("bias", *self.of([(width,), (1, width)]))] if self.opset < 11 or self.draw(4) else []
            return self.put(net.op("Gemm", v.name, w, *bias, transB=turned), dims)
        if form == 3 and self.opset >= 12:
            w = self.weight(width, i, fan_in=i)
            letters = "abcdef"[: v.rank - 1]
            equation = self.of([f"{letters}i,oi->{letters}o", "...i,oi->...o"])
            name = net.op("Einsum", v.name, w, equation=equation)
        elif form == 4 and v.rank == 2 and v.fixed(0):
            turned_value = net.op("Transpose", v.name, perm=[1, 0])
            product = net.op("MatMul", self.weight(width, i, fan_in=i), turned_value)
            name = net.op("Transpose", product, perm=[1, 0])
        else:
            name = net.op("MatMul", v.name, self.weight(i, width, fan_in=i))
        if self.draw(2):
            operands = [name, net.random("bias", width)]
            name = net.op("Add", *(operands[::-1] if self.draw(2) else operands))
        return self.put(name, dims)

    def like(self, v: Value) -> Value:
        """A second value of the same sizes, made by another layer or found."""
        other = self.pick(lambda o: o.dims == v.dims and o.name != v.name)
        if other is not None and self.draw(3):
            return other
        return self.dense(v, v.sizes[-1]) if v.fixed(-1) else v


@dataclass
class Recipe:
    """What a network is made of: the steps, in order, are looked up in `steps.STEPS`."""

    draw: Draw
    steps: Sequence[Callable[[Growing], None]]
    longest: int = 12
    outputs: dict[str, Dims] = field(default_factory=dict)

    def network(self) -> ModelProto:
        """A network of up to `longest` steps, with one to three outputs."""
        g = self._start()
        for _ in range(1 + self.draw(self.longest)):
            g.of(self.steps)(g)
        for _ in range(1 + (self.draw(3) if self.draw(2) else 0)):
            self._finish(g)
        return g.net.model(*self.outputs, shape=self.outputs)

    def _start(self) -> Growing:
        opset = OPSETS[self.draw(len(OPSETS))]
        batch: Dim = "N" if self.draw(3) else 2
        places = ((), (4, 4), (5,), (3, 6))[self.draw(4)]
        channels = (2, 3, 6)[self.draw(3)]
        dims: Dims = (batch, channels, *places) if self.draw(3) else (batch, *places, channels)
        inputs: list[tuple[str, Dims]] = [("x", dims)]
        if self.draw(4) == 3:
            inputs.append(("z", (batch, 3)))
        net = Net(*inputs, opset=opset)
        g = Growing(net, self.draw)
        if self.draw(5) == 4:
            net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, (batch, 3)))
            g.put(net.op("Gather", net.random("table", 7, 6), "ids", axis=0), (batch, 3, 6))
        for name, shape in inputs[::-1]:
            g.put(name, shape)
            g.dense(g.values[-1], g.width())
        return g

    def _finish(self, g: Growing) -> None:
        """One output: a layer over what there is, its mean over places, or the bare value."""
        v = g.pick(lambda v: v.fixed(-1) and v.name not in ("x", "z"))
        if v is None:
            return
        if g.chance(8):
            self.outputs[v.name] = v.dims
            return
        places = v.axes()[:-1]
        if places and g.draw(2):
            left = tuple(d for a, d in enumerate(v.dims) if a not in places)
            v = Value(g.reduce("ReduceMean", v.name, places, 0), left)
        v = g.dense(v, 1 + g.draw(3))
        if g.chance(3):
            axis: dict[str, Attribute] = (
                {"axis": v.rank - 1} if (op_type := g.of(("Softmax", "Sigmoid", "LogSoftmax"))) != "Sigmoid" else {}
            )
            v = Value(g.net.op(op_type, v.name, **axis), v.dims)
        self.outputs[v.name] = v.dims
