"""How a node is adapted to a part: whatever carries a size or a position is recomputed from the kept indices.

Invariant: integers that are computed from shapes keep the values that they have in the whole network. `Shape` restores
them, and each consumer (Reshape, Expand, Slice, ...) turns them into the part's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxpart.analysis.op import Op
from onnxpart.errors import PartitionError
from onnxpart.storage.rows import Array

Indices = NDArray[np.int64]
Kept = tuple[Indices | None, ...]
"""For each axis of a tensor the indices that a part keeps, ascending; None where it keeps all."""


class Rewrite:
    """One node on its way into a part.

    `op` is the operator in the whole network, `node` the copy that may be changed, `kept` tells the indices that the
    part keeps of a tensor, `before` and `after` are nodes to put in front and behind, `constants` new initializers.
    """

    def __init__(self, op: Op, node: onnx.NodeProto, kept: Callable[[str], Kept], unique: Callable[[str], str]) -> None:
        self.op = op
        self.node = node
        self.kept = kept
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._unique = unique

    def kept_in(self, i: int) -> Kept:
        """Kept indices of input `i`."""
        return self.kept(self.op.inputs[i])

    def kept_out(self, j: int = 0) -> Kept:
        """Kept indices of output `j`."""
        return self.kept(self.op.outputs[j])

    def name(self, hint: str) -> str:
        """A name not in use."""
        return self._unique(f"{self.node.name or self.node.output[0]}__{hint}")

    def constant(self, value: Any, hint: str, dtype: Any = np.int64) -> str:
        """Name of a new initializer."""
        name = self.name(hint)
        self.constants[name] = np.asarray(value, dtype)
        return name

    def add(self, op_type: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """Put a node in front; returns its output's name."""
        out = self.name(hint)
        self.before.append(helper.make_node(op_type, list(inputs), [out], name=out, **attributes))
        return out

    def set(self, attribute: str, value: Any) -> None:
        """Set an attribute."""
        for a in list(self.node.attribute):
            if a.name == attribute:
                self.node.attribute.remove(a)
        self.node.attribute.append(helper.make_attribute(attribute, value))

    def set_ints(self, i: int, attribute: str, values: Sequence[int], since: int) -> None:
        """Set a list of integers that is an attribute before opset `since` and input `i` from there on."""
        if self.op.opset < since:
            self.set(attribute, [int(v) for v in values])
            return
        while len(self.node.input) <= i:
            self.node.input.append("")
        self.node.input[i] = self.constant(list(values), attribute)

    def gather(self, name: str, axis: int, positions: Indices) -> str:
        """Put a selection of `positions` along `axis` of the value `name` in front; returns the result's name."""
        if len(positions) and np.array_equal(positions, np.arange(positions[0], positions[0] + len(positions))):
            start, stop = int(positions[0]), int(positions[0]) + len(positions)
            if self.op.state.model.opsets.get("", 1) < 10:
                return self.add("Slice", [name], "slice", starts=[start], ends=[stop], axes=[axis])
            inputs = [self.constant([v], h) for v, h in ((start, "start"), (stop, "end"), (axis, "axis"))]
            return self.add("Slice", [name, *inputs], "slice")
        return self.add("Gather", [name, self.constant(positions, "index")], "gather", axis=axis)

    def narrow(self, i: int, want: Kept) -> None:
        """Make input `i` hold the indices `want`, by nodes in front that select them.

        :raises PartitionError: when it lacks some of them.
        """
        have = self.kept_in(i)
        for axis, (h, w) in enumerate(zip(have, want, strict=True)):
            if w is None or (h is not None and len(h) == len(w) and (h == w).all()):
                continue
            if h is not None and not np.isin(w, h).all():
                raise PartitionError(f"{self.op.title}: input {i} lacks indices of axis {axis} that the part needs.")
            positions = w if h is None else np.searchsorted(h, w)
            have_sizes = sizes(have, self.op.shape(i))
            self.node.input[i] = self.select(self.node.input[i], self.op.inputs[i], axis, positions, have_sizes)

    def narrow_broadcast(self, i: int, want: Kept) -> None:
        """`narrow` where input `i` broadcasts to a tensor that holds the indices `want`: axes of size 1 stay."""
        shape = self.op.shape(i)
        aligned = want[len(want) - len(shape) :]
        self.narrow(i, tuple(w if size > 1 else None for w, size in zip(aligned, shape, strict=True)))

    def narrow_channels(self, i: int) -> None:
        """`narrow` of input `i`, if it is there, of shape [C], to the output's channels along axis 1."""
        if self.op.has(i):
            self.narrow(i, (self.kept_out()[1],))

    def select(self, value: str, tensor: str, axis: int, positions: Indices, shape: Sequence[int]) -> str:
        """`gather` from a value that holds a block of a tensor of the whole network.

        Where the axis' length is known at run time only, the pattern of what is selected is repeated.

        :param value: its name in the part. :param tensor: the tensor's in the whole network.
        :param axis: along which to select. :param positions: of what is selected, in the block.
        :param shape: the block's, at trial sizes.
        :returns: the name of what is selected.
        :raises PartitionError: when the axis' length isn't known and nothing repeats.
        """
        dynamic = self.op.state.shapes.dynamic_dims(tensor)
        if not dynamic[axis]:
            return self.gather(value, axis, positions)
        mask = np.isin(np.arange(shape[axis]), positions)
        period = repeats_after(mask)
        if period == len(mask) or any(dynamic[axis + 1 :]):
            raise PartitionError(
                f"{self.op.title}: units lie along axis {axis} of {tensor!r}, whose length isn't known; "
                "give the model's inputs fixed sizes."
            )
        behind = list(shape[axis + 1 :])
        apart = self.constant([0] * axis + [-1, period, *behind], "apart")
        chosen = np.flatnonzero(mask[:period])
        value = self.gather(self.add("Reshape", [value, apart], "apart"), axis + 1, chosen)
        return self.add("Reshape", [value, self.constant([0] * axis + [-1, *behind], "joined")], "joined")


def repeats_after(values: NDArray[Any]) -> int:
    """The least number of values after which a list is the same over and over."""
    size = len(values)
    return next(p for p in range(1, size + 1) if size % p == 0 and (values.reshape(-1, p) == values[:p]).all())


def sizes(kept: Kept, shape: Sequence[int]) -> list[int]:
    """Shape of the kept block."""
    return [size if k is None else len(k) for k, size in zip(kept, shape, strict=True)]


def dims(r: Rewrite, i: int) -> None:
    """Input `i` holds the shape of output 0: put the part's sizes where they are known."""
    op = r.op
    kept, shape = r.kept_out(), op.out_shape()
    if all(k is None for k in kept) and all(k is None for k in r.kept_in(0)):
        return
    out = op.outputs[0]
    dynamic = op.state.shapes.dynamic_dims(out)
    part = sizes(kept, shape)
    name = op.inputs[i]
    known = op.trial(i)
    if name in op.state.model.initializers and known is not None:
        raw = [int(v) for v in known.value]
        target = [v if d else s for v, d, s in zip(raw, dynamic, part, strict=True)] if len(raw) == len(part) else part
        r.node.input[i] = r.constant(target, "shape")
        return
    if not any(dynamic):
        r.node.input[i] = r.constant(part, "shape")
        return
    value = r.node.input[i]
    scaled = [
        d and k is not None and not (known is not None and known.value[a] == -1)
        for a, (d, k) in enumerate(zip(dynamic, kept, strict=True))
    ]
    if any(scaled):
        up = [s if f else 1 for s, f in zip(part, scaled, strict=True)]
        down = [s if f else 1 for s, f in zip(shape, scaled, strict=True)]
        value = r.add("Mul", [value, r.constant(up, "kept")], "scaled")
        value = r.add("Div", [value, r.constant(down, "all")], "scaled")
    static = [not d for d in dynamic]
    r.before.extend(put(r, static, part, value))
    r.node.input[i] = r.before[-1].output[0]


def put(r: Rewrite, static: Sequence[bool], values: Sequence[int], value: str, out: str = "") -> list[onnx.NodeProto]:
    """Nodes that put numbers in some places of integers that are computed at run time.

    :param static: for each place, whether a number is put there. :param values: the numbers, read in those places only.
    :param value: name of the integers, int64 [n]. :param out: name of the result; empty for a new one.
    :returns: the nodes, of which the last gives the result.
    """
    if r.op.opset >= 9:
        inputs = [r.constant(static, "static", bool), r.constant(values, "shape"), value]
        name = r.name("where" if out else "shape")
        return [helper.make_node("Where", inputs, [out or name], name=name)]
    rest = r.name("rest")
    keep = helper.make_node("Mul", [value, r.constant(np.logical_not(static), "dynamic")], [rest], name=rest)
    fixed, name = r.constant(np.where(static, values, 0), "shape"), r.name("put")
    return [keep, helper.make_node("Add", [rest, fixed], [out or name], name=name)]
