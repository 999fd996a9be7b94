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

from onnxpart.errors import PartitionError
from onnxpart.files import Array
from onnxpart.rules import equation, movement
from onnxpart.rules.context import Op

Indices = NDArray[np.int64]
Kept = tuple[Indices | None, ...]
"""For each axis of a tensor the indices that a part keeps, ascending; None where it keeps all."""


class Rewrite:
    """One node on its way into a part.

    `op` is the operator in the whole network, `node` the copy that may be changed, `before` nodes to put in front,
    `constants` new initializers.
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
        """Make input `i` hold the indices `want`, of which it holds at least these."""
        have = self.kept_in(i)
        for axis, (h, w) in enumerate(zip(have, want, strict=True)):
            if w is None or (h is not None and np.array_equal(h, w)):
                continue
            if h is not None and not np.isin(w, h).all():
                raise PartitionError(f"{self.op.title}: input {i} lacks indices of axis {axis} that the part needs.")
            positions = w if h is None else np.searchsorted(h, w)
            have_sizes = sizes(have, self.op.shape(i))
            self.node.input[i] = self.select(self.node.input[i], self.op.inputs[i], axis, positions, have_sizes)

    def select(self, value: str, tensor: str, axis: int, positions: Indices, shape: Sequence[int]) -> str:
        """`gather` from a value that holds a block, of size `shape`, of the whole network's `tensor`.

        Where the axis' length is known at run time only, the pattern of what is selected is repeated.
        """
        dynamic = self.op.state.shapes.dynamic_dims(tensor)
        if not dynamic[axis]:
            return self.gather(value, axis, positions)
        mask = np.isin(np.arange(shape[axis]), positions)
        period = next(p for p in range(1, len(mask) + 1) if len(mask) % p == 0 and _repeats(mask, p))
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


def _repeats(mask: NDArray[np.bool_], period: int) -> bool:
    return bool((mask.reshape(-1, period) == mask[:period]).all())


def sizes(kept: Kept, shape: Sequence[int]) -> list[int]:
    """Shape of the kept block."""
    return [size if k is None else len(k) for k, size in zip(kept, shape, strict=True)]


def operands(r: Rewrite) -> None:
    """Broadcasting: operands that are shared along a divided axis are cut to the part's share of it."""
    out = r.kept_out()
    for i, name in enumerate(r.op.inputs):
        if not name:
            continue
        shape = r.op.shape(i)
        aligned = out[len(out) - len(shape) :]
        r.narrow(i, tuple(k if size > 1 else None for k, size in zip(aligned, shape, strict=True)))


def contraction(r: Rewrite) -> None:
    """Gemm, MatMul, Einsum: an operand that is shared along the summed axis is cut to the other's share of it."""
    op = r.op
    letters, out = equation.letters(op)
    if len(letters) < 2:
        return
    want: dict[str, Indices | None] = dict(zip(out, r.kept_out(), strict=True))
    for i in (0, 1):
        for letter, kept in zip(letters[i], r.kept_in(i), strict=True):
            if letter not in out and kept is not None:
                before = want.get(letter)
                want[letter] = kept if before is None or len(kept) < len(before) else before
    for i in (0, 1):
        shape = op.shape(i)
        r.narrow(i, tuple(want.get(c) if n > 1 else None for c, n in zip(letters[i], shape, strict=True)))
    if op.op_type == "Gemm" and op.has(2):
        aligned = r.kept_out()[2 - len(op.shape(2)) :]
        r.narrow(2, tuple(k if n > 1 else None for k, n in zip(aligned, op.shape(2), strict=True)))


def conv(r: Rewrite) -> None:
    """Conv, ConvTranspose: `group` becomes the number of groups that the part keeps."""
    op = r.op
    group = int(op.attributes.get("group", 1))
    if group == 1:
        return
    channels, units = op.shape(0)[1], op.out_shape()[1]
    kept_in, kept_out = r.kept_in(0)[1], r.kept_out()[1]
    if kept_in is None and kept_out is None:
        return
    ins = np.arange(channels) if kept_in is None else kept_in
    outs = np.arange(units) if kept_out is None else kept_out
    out_groups, counts = np.unique(outs // (units // group), return_counts=True)
    wanted = ins[np.isin(ins // (channels // group), out_groups)]
    in_groups, in_counts = np.unique(wanted // (channels // group), return_counts=True)
    if len(set(counts)) != 1 or len(set(in_counts)) != 1 or not np.array_equal(in_groups, out_groups):
        raise PartitionError(f"{op.title}: the part's groups differ in size; try another order or K.")
    r.narrow(0, (None, wanted, *[None] * (len(op.shape(0)) - 2)))
    r.set("group", len(out_groups))


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
    known = op.value(i)
    if name in op.state.model.initializers and known is not None:
        raw = [int(v) for v in known]
        target = [v if d else s for v, d, s in zip(raw, dynamic, part, strict=True)] if len(raw) == len(part) else part
        r.node.input[i] = r.constant(target, "shape")
        return
    if not any(dynamic):
        r.node.input[i] = r.constant(part, "shape")
        return
    value = r.node.input[i]
    scaled = [
        d and k is not None and not (known is not None and known[a] == -1)
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
    """Nodes that put `values` in the `static` places of the integers `value`; the last gives `out`, or a new name."""
    if r.op.opset >= 9:
        inputs = [r.constant(static, "static", bool), r.constant(values, "shape"), value]
        name = r.name("where" if out else "shape")
        return [helper.make_node("Where", inputs, [out or name], name=name)]
    rest = r.name("rest")
    keep = helper.make_node("Mul", [value, r.constant(np.logical_not(static), "dynamic")], [rest], name=rest)
    fixed, name = r.constant(np.where(static, values, 0), "shape"), r.name("put")
    return [keep, helper.make_node("Add", [rest, fixed], [out or name], name=name)]


def quantize(r: Rewrite) -> None:
    """QuantizeLinear, DequantizeLinear: scales and zero points that are one to a channel."""
    kept = r.kept_out()
    for i in range(1, len(r.op.inputs)):
        if r.op.has(i) and len(r.op.shape(i)) == 1 and r.op.shape(i) != (1,):
            r.narrow(i, (kept[r.op.axis(1)],))


def center_crop_pad(r: Rewrite) -> None:
    """CenterCropPad: the divided positions of its target."""
    if "axes" not in r.op.attributes:
        dims(r, 1)


def reshape(r: Rewrite) -> None:
    """Reshape: the divided positions of its target."""
    dims(r, 1)


def expand(r: Rewrite) -> None:
    """Expand: the divided positions of its target."""
    rank = len(r.op.out_shape())
    if r.op.state.shapes.shape[r.op.inputs[1]] == (rank,):
        dims(r, 1)


def resize(r: Rewrite) -> None:
    """Resize: `sizes` names all axes."""
    if r.op.has(3) and "axes" not in r.op.attributes:
        dims(r, 3)


def tile(r: Rewrite) -> None:
    """Tile: copies of what the part keeps; nothing to adapt unless the order within copies were lost."""
    a, b = r.op.shape(0), r.op.out_shape()
    for axis, (kept_in, kept_out) in enumerate(zip(r.kept_in(0), r.kept_out(), strict=True)):
        if kept_in is None:
            continue
        copies = np.concatenate([kept_in + n * a[axis] for n in range(b[axis] // a[axis])])
        if kept_out is None or not np.array_equal(copies, kept_out):
            raise PartitionError(f"{r.op.title}: the copies of a unit are in different parts.")


def concat(r: Rewrite) -> None:
    """Concat: operands that are shared along another, divided axis are cut."""
    out = list(r.kept_out())
    axis = r.op.axis(1, len(out))
    for i in range(len(r.op.inputs)):
        want = list(out)
        want[axis] = None
        shape = r.op.shape(i)
        r.narrow(i, tuple(w if n > 1 else None for w, n in zip(want, shape, strict=True)))


def split(r: Rewrite) -> None:
    """Split: the sizes of what is kept of each piece."""
    op = r.op
    axis = op.axis(0)
    if r.kept_in(0)[axis] is None:
        return
    lengths = [sizes(r.kept_out(j), op.out_shape(j))[axis] for j in range(len(op.outputs))]
    for a in list(r.node.attribute):
        if a.name == "num_outputs":
            r.node.attribute.remove(a)
    r.set_ints(1, "split", lengths, since=13)


def slice_(r: Rewrite) -> None:
    """Slice: the positions, among those kept, of what it selects; bounds along other axes stay what they are."""
    op = r.op
    ranges = movement.slice_ranges(op)
    if ranges is None or not any(r.kept_in(0)[axis] is not None for axis in ranges):
        return
    for axis, positions in ranges.items():
        kept = r.kept_in(0)[axis]
        if kept is not None:
            wanted = np.asarray(positions, np.int64)
            out = r.kept_out()[axis]
            place = np.searchsorted(kept, wanted if out is None else wanted[out])
            r.node.input[0] = r.gather(r.node.input[0], axis, place)
    rest = [i for i, axis in enumerate(ranges) if r.kept_in(0)[axis] is None]
    if not rest:
        _identity(r)
        return
    axes = [list(ranges)[i] for i in rest]
    if op.opset < 10:
        for name in ("starts", "ends"):
            r.set(name, [op.attributes[name][i] for i in rest])
        r.set("axes", axes)
        return
    bounds = [_some(r, i, rest, hint) for i, hint in ((1, "starts"), (2, "ends"), (4, "steps")) if op.has(i)]
    known = op.value(1)
    assert known is not None
    bounds.insert(2, r.constant(axes, "axes", known.dtype))
    del r.node.input[1:]
    r.node.input.extend(bounds)


def _some(r: Rewrite, i: int, places: Sequence[int], hint: str) -> str:
    """Some of the integers of input `i`, whose value is known, if only for trial sizes."""
    known = r.op.value(i)
    if known is None or r.op.inputs[i] not in r.op.state.model.initializers:
        return r.add("Gather", [r.node.input[i], r.constant(places, "places")], hint, axis=0)
    return r.constant(np.ravel(known)[list(places)], hint, known.dtype)


def _identity(r: Rewrite) -> None:
    data, out, name = r.node.input[0], list(r.node.output), r.node.name
    r.node.Clear()
    r.node.CopyFrom(helper.make_node("Identity", [data], out, name=name))


def gather(r: Rewrite) -> None:
    """Gather with constant indices: their positions among those kept."""
    op = r.op
    axis = op.axis(0)
    kept = r.kept_in(0)[axis]
    index = op.value(1)
    if kept is None or index is None:
        return
    index = np.where(index < 0, index + op.shape(0)[axis], index)
    rank = index.ndim
    chosen = r.kept_out()[axis : axis + rank]
    block = index[np.ix_(*[np.arange(n) if c is None else c for c, n in zip(chosen, index.shape, strict=True)])]
    place = np.searchsorted(kept, block)
    if op.outputs[0] in op.state.shaped:
        place = place.clip(max=len(kept) - 1)
    r.node.input[1] = r.constant(place, "index")


def pad(r: Rewrite) -> None:
    """Pad: how much of the padding along a divided axis is the part's."""
    op = r.op
    amounts = movement.pad_amounts(op)
    if amounts is None or all(k is None for k in r.kept_out()):
        return
    front, behind = [], []
    for axis, (before, after) in enumerate(amounts):
        kept = r.kept_out()[axis]
        size = op.shape(0)[axis]
        front.append(before if kept is None else int((kept < before).sum()))
        behind.append(after if kept is None else int((kept >= before + size).sum()))
    if len(r.node.input) > 3:
        r.node.input[3] = ""
    r.set_ints(1, "pads", [*front, *behind], since=11)


def layer_norm(r: Rewrite) -> None:
    """LayerNormalization: parameters that are shared along a divided axis are cut."""
    out = r.kept_out()
    for i in range(1, len(r.op.inputs)):
        if r.op.has(i):
            shape = r.op.shape(i)
            aligned = out[len(out) - len(shape) :]
            r.narrow(i, tuple(k if n > 1 else None for k, n in zip(aligned, shape, strict=True)))


def group_norm(r: Rewrite) -> None:
    """GroupNormalization: as many groups as the part keeps some of."""
    op = r.op
    kept = r.kept_out()[1]
    if kept is None:
        return
    channels, groups = op.shape(0)[1], int(op.attributes["num_groups"])
    held, counts = np.unique(kept // (channels // groups), return_counts=True)
    if len(set(counts)) != 1:
        raise PartitionError(f"{op.title}: the part's groups differ in size; try another order or K.")
    r.set("num_groups", len(held))
    for i in (1, 2):
        r.narrow(i, (kept,))


def shape(r: Rewrite) -> None:
    """Shape, Size: the sizes of the whole network's tensor."""
    op = r.op
    kept = r.kept_in(0)
    if all(k is None for k in kept):
        return
    whole = np.asarray(op.shape(0), np.int64)
    dynamic = np.asarray(op.state.shapes.dynamic_dims(op.inputs[0]))
    part = np.asarray(sizes(kept, op.shape(0)), np.int64)
    if op.op_type == "Size":
        _scaled_size(r, whole, part, bool(dynamic.any()))
        return
    window = slice(op.attributes.get("start", 0), op.attributes.get("end", len(whole)))
    whole, dynamic, part = whole[window], dynamic[window], part[window]
    out = r.node.output[0]
    if not dynamic.any():
        r.node.CopyFrom(helper.make_node("Identity", [r.constant(whole, "shape")], [out], name=r.node.name))
        return
    raw = r.name("shape")
    r.node.output[0] = raw
    value = raw
    grow = dynamic & (whole != part)
    after: list[onnx.NodeProto] = []
    if grow.any():
        for op_type, factor in (("Mul", np.where(grow, whole, 1)), ("Div", np.where(grow, part, 1))):
            name = r.name("scaled")
            after.append(helper.make_node(op_type, [value, r.constant(factor, "factor")], [name], name=name))
            value = name
    r.after.extend([*after, *put(r, (~dynamic).tolist(), whole.tolist(), value, out)])


def _scaled_size(r: Rewrite, whole: Indices, part: Indices, dynamic: bool) -> None:
    out = r.node.output[0]
    if not dynamic:
        constant = r.constant(np.prod(whole), "size")
        r.node.CopyFrom(helper.make_node("Identity", [constant], [out], name=r.node.name))
        return
    raw, scaled = r.name("size"), r.name("scaled")
    r.node.output[0] = raw
    up, down = r.constant(np.prod(whole), "factor"), r.constant(np.prod(part), "factor")
    r.after.append(helper.make_node("Mul", [raw, up], [scaled], name=scaled))
    r.after.append(helper.make_node("Div", [scaled, down], [out], name=r.name("div")))
