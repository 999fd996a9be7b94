"""Pooling, and its reverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.operators.window import Window

_CONV: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]
_MAX_POOL: list[Callable[..., Tensor]] = [torch.max_pool1d, torch.max_pool2d, torch.max_pool3d]
_MAX_POOL_PLACES = [F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices]
_AVERAGE_POOL: list[Callable[..., Tensor]] = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


def _places(indices: Tensor, x: Tensor, padded: Tensor, begins: Sequence[int], column_major: bool) -> Tensor:
    """Turn torch's positions in an image of `padded` into ONNX's in all of x."""
    axes: list[Tensor] = []
    rest = indices
    for size in reversed(padded.shape[2:]):
        axes.insert(0, rest % size)
        rest = rest // size
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(axes))
    places = list(zip(axes, begins, x.shape[2:], strict=True))
    result, stride = torch.zeros_like(indices), 1
    for axis, begin, size in places if column_major else reversed(places):
        result, stride = result + (axis - begin) * stride, stride * size
    return result + images * stride


@operator("MaxPool")
def max_pool(node: Node) -> Tensor | tuple[Tensor, ...]:
    """Take the maximum of each window, and its position in the input."""
    window, x = Window(node), node.tensor(0)
    padded, padding = window.pad(x, -torch.inf if node.is_float(0) else torch.iinfo(node.dtype(0)).min, at_most=2)
    args = (window.kernel, window.strides, padding, window.dilations, bool(node.attribute("ceil_mode", 0)))
    if len(node.outputs) == 1:
        return node.call(_MAX_POOL[window.rank - 1], padded, *args)
    result = node.call(_MAX_POOL_PLACES[window.rank - 1], padded, *args)
    begins = [0] * window.rank if padded is x else window.begins
    places = node.call(_places, result[1], x, padded, begins, bool(node.attribute("storage_order", 0)))
    return result[0], places


@operator("AveragePool")
def average_pool(node: Node) -> Tensor:
    """Take the mean of each window, with or without the padding."""
    window, x = Window(node), node.tensor(0)
    ceil, count_padding = (bool(node.attribute(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    if any(dilation != 1 for dilation in window.dilations):
        return node.call(_mean_of_windows, x, *window.sum_settings(ceil), count_padding)
    function = _AVERAGE_POOL[window.rank - 1]
    padded, padding = window.pad(x, 0.0, at_most=2)
    args = (window.kernel, window.strides, padding, ceil, count_padding)
    result = node.call(function, padded, *args)
    if padded is x or count_padding:
        return result
    share, _ = window.pad(node.call(runtime.ones_like_image, x), 0.0, at_most=2)
    return result / node.call(function, share, *args)


def _window_sums(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int], ceil: bool
) -> Tensor:
    """Sum x [N, C, ...] up over windows; the pads are ONNX's."""
    pads, rank = list(pads), len(kernel)
    for axis, size in enumerate(x.shape[2:] if ceil else ()):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        steps = -(-(size + pads[axis] + pads[rank + axis] - span) // strides[axis])
        steps -= steps * strides[axis] >= size + pads[axis]  # a window starts in the image
        pads[rank + axis] += max(0, steps * strides[axis] + span - (size + pads[axis] + pads[rank + axis]))
    padded = F.pad(x, runtime.torch_pads(pads)).flatten(0, 1).unsqueeze(1)
    sums = _CONV[rank - 1](padded, x.new_ones((1, 1, *kernel)), stride=tuple(strides), dilation=tuple(dilations))
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _mean_of_windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
    count_padding: bool,
) -> Tensor:
    """ONNX AveragePool in forms that torch lacks: sums over windows by what each of them counts."""
    counted = runtime.ones_like_image(x)
    sums = _window_sums(x, kernel, strides, pads, dilations, ceil)
    if count_padding:
        counted, pads = F.pad(counted, runtime.torch_pads(pads), value=1.0), [0] * len(pads)
    return sums / _window_sums(counted, kernel, strides, pads, dilations, ceil)


def _lp_pool(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil: bool,
    p: int,
) -> Tensor:
    return _window_sums(x.abs().pow(p), kernel, strides, pads, dilations, ceil).pow(1 / p)


@operator("LpPool", since=2)
def lp_pool(node: Node) -> Tensor:
    """Take the p-norm of each window."""
    window = Window(node)
    settings = window.sum_settings(bool(node.attribute("ceil_mode", 0)))
    return node.call(_lp_pool, node.tensor(0), *settings, node.attribute("p", 2))


def _norm_of_image(x: Tensor, p: int, axes: list[int]) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(x, p, axes, True)
    return result


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", since=2)
@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Tensor:
    """Reduce all spatial axes to size 1."""
    axes = list(range(2, node.known_rank(0)))
    if node.op_type == "GlobalLpPool":
        return node.call(_norm_of_image, node.tensor(0), node.attribute("p", 2), axes)
    function: Callable[..., Tensor] = torch.mean if node.op_type == "GlobalAveragePool" else torch.amax
    return node.call(function, node.tensor(0), axes, True)


def _unpooled(x: Tensor, indices: Tensor, sizes: Sequence[int], target: Tensor | None) -> Tensor:
    inferred = [*x.shape[:2], *sizes]
    flat = x.new_zeros(torch.Size(inferred).numel())
    result = flat.scatter(0, indices.flatten(), x.flatten()).reshape(inferred)
    if target is None:
        return result
    pads = [0] * len(inferred) + [want - have for want, have in zip(target.tolist(), inferred, strict=True)]
    return F.pad(result, runtime.torch_pads(pads))


@operator("MaxUnpool", since=9)
def max_unpool(node: Node) -> Tensor:
    """Put maxima back to their positions, among zeros."""
    window = Window(node)
    sizes = [
        (node.size(0, axis + 2) - 1) * stride + kernel - window.pads[axis] - window.pads[window.rank + axis]
        for axis, (stride, kernel) in enumerate(zip(window.strides, window.kernel, strict=True))
    ]
    return node.call(_unpooled, node.tensor(0), node.tensor(1), sizes, node.optional(2))
