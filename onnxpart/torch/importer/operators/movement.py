"""Operators that move data."""

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.values import Integers, Value, are_known

_FIRST = -(2**63)
"""The start that exporters write for a range from the beginning; torch warns of it."""


@operator("Identity")
def identity(node: Node) -> Value:
    """Pass the value on, so that an initializer stays one tensor under two names."""
    value = node.inputs[0]
    return node.tensor(0) if value is None else value


@operator("Shape")
def shape(node: Node) -> Tensor:
    """Return a shape of unknown rank; other shapes never become tensors."""
    start, end = node.attribute("start", 0), node.attribute("end", sys.maxsize)
    return node.call(runtime.shape_tensor, node.tensor(0), start, end)


@operator("Size")
def size(node: Node) -> Value:
    """Count the elements."""
    return Integers((node.tensor(0).numel(),), scalar=True)


@operator("Reshape", since=5)
def reshape(node: Node) -> Tensor:
    """Reshape to sizes, as far as possible known while importing; 0 copies a size."""
    x, target, allow_zero = node.tensor(0), node.integers(1), bool(node.attribute("allowzero", 0))
    if target is None:
        return node.call(runtime.reshape, x, node.tensor(1), allow_zero)
    copied = [not allow_zero and are_known((item,)) and item == 0 for item in target.items]
    pairs = zip(target.items, copied, strict=True)
    return x.reshape([node.size(0, i) if copy else item for i, (item, copy) in enumerate(pairs)])


@operator("Flatten")
def flatten(node: Node) -> Tensor:
    """Make a matrix of the axes before `axis` and those from it on."""
    x, axis, rank = node.tensor(0), node.attribute("axis", 1), node.rank(0)
    axis = axis if axis >= 0 else axis + node.known_rank(0)
    if axis == 1 and (rank is None or rank > 1):
        return x.flatten(1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.reshape(-1, 1) if axis == rank else x.flatten(0, axis - 1).flatten(1)


@operator("Transpose")
def transpose(node: Node) -> Tensor:
    """Permute the axes; reverse them by default."""
    perm: list[int] | None = node.attribute("perm", None)
    return node.tensor(0).permute(list(reversed(range(node.known_rank(0)))) if perm is None else perm)


@operator("Squeeze")
def squeeze(node: Node) -> Tensor:
    """Remove axes of size 1; all of them where none are given."""
    axes = node.integer_list("axes", 1)
    return node.tensor(0).squeeze() if axes is None else node.tensor(0).squeeze(axes)


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Tensor:
    """Insert axes of size 1, counted in the result."""
    x, axes = node.tensor(0), node.integer_list("axes", 1) or []
    if any(axis < 0 for axis in axes):
        rank = node.known_rank(0) + len(axes)
        axes = [axis % rank for axis in axes]
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat", since=4)
def concat(node: Node) -> Tensor:
    """Join along an axis."""
    return node.call(torch.cat, node.tensors(), node.attribute("axis", 0))


@operator("Split", since=2)
def split(node: Node) -> tuple[Tensor, ...]:
    """Cut along an axis into given sizes, or as evenly as it goes."""
    x, axis, count = node.tensor(0), node.attribute("axis", 0), len(node.outputs)
    sizes = node.integer_list("split", 1)
    whole = 0 if sizes else node.size(0, axis % node.known_rank(0))
    pieces = node.call(torch.split, x, sizes or (whole + count - 1) // count, axis)
    return tuple(pieces[i] for i in range(count))


@operator("Slice")
def slice_(node: Node) -> Tensor:
    """Take ranges of axes: attributes before opset 10."""
    bounds = [node.integer_list(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
    starts, ends = bounds[0] or [], bounds[1] or []
    axes, steps = bounds[2] or list(range(len(starts))), bounds[3] or [1] * len(starts)
    if any(axis < 0 for axis in axes):
        rank = node.known_rank(0)
        axes = [axis % rank for axis in axes]
    x = node.tensor(0)
    index: list[slice] = [slice(None)] * (max(axes, default=-1) + 1)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            x = node.call(runtime.reverse_slice, x, axis, start, end, step)
        else:
            index[axis] = slice(None if are_known([start]) and start == _FIRST else start, end, step)
    return x[tuple(index)] if index else x


@operator("Expand", since=8)
def expand(node: Node) -> Tensor:
    """Broadcast against sizes."""
    sizes = node.integers(1)
    return node.call(runtime.expand, node.tensor(0), node.tensor(1) if sizes is None else list(sizes.items))


@operator("Tile", since=6)
def tile(node: Node) -> Tensor:
    """Repeat along each axis."""
    return node.tensor(0).repeat(node.integer_list("repeats", 1) or [])


_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


@operator("Pad", since=2)
def pad(node: Node) -> Tensor:
    """Pad or crop at both ends of each axis."""
    pads = node.integer_list("pads", 1) or []
    mode, axes = node.attribute("mode", "constant"), node.integer_list("axes", 3)
    if axes is not None:
        rank = node.known_rank(0)
        spread = [0] * 2 * rank
        for i, axis in enumerate(axes):
            spread[axis % rank], spread[axis % rank + rank] = pads[i], pads[i + len(axes)]
        pads = spread
    torch_pads = runtime.torch_pads(pads)
    least = 0 if mode == "constant" else max(len(pads) - 4, 2)
    while len(torch_pads) > least and torch_pads[-2:] == [0, 0]:
        torch_pads = torch_pads[:-2]
    if mode == "constant":
        value = node.scalar(2, node.attribute("value", 0.0))
        return F.pad(node.tensor(0), torch_pads, value=value) if torch_pads else node.tensor(0)
    if len(torch_pads) > least:
        raise node.error(f"mode {mode} pads spatial axes only; transpose them to the end")
    return F.pad(node.tensor(0), torch_pads, mode=_PAD_MODES[mode])


@operator("DepthToSpace", "SpaceToDepth")
def depth_to_space(node: Node) -> Tensor:
    """Move blocks between the channels [N, C, H, W] and the image."""
    x, block = node.tensor(0), node.attribute("blocksize", 1)
    n, c, h, w = (node.size(0, axis) for axis in range(4))
    if node.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block) if node.op_type == "DepthToSpace" else F.pixel_unshuffle(x, block)
    if node.op_type == "SpaceToDepth":
        x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * block**2, h // block, w // block)
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)
