"""Functions of an imported graph that torch doesn't have.

They are at module level, so that an imported module can be pickled and copied.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch.nn import functional as F


def same_pads(sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int], upper: bool) -> list[int]:
    """Return ONNX pads (all begins, then all ends) for auto_pad SAME; `windows` include the dilation."""
    pairs = []
    for size, window, stride in zip(sizes, windows, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        pairs.append((total // 2, total - total // 2) if upper else (total - total // 2, total // 2))
    return [begin for begin, _ in pairs] + [end for _, end in pairs]


def torch_pads(pads: Sequence[int]) -> list[int]:
    """Turn ONNX pads (all begins, then all ends) into torch's: the last axis first, its begin, its end."""
    half = len(pads) // 2
    return list(chain.from_iterable((pads[i], pads[half + i]) for i in reversed(range(half))))


def pad_same(
    x: torch.Tensor, windows: Sequence[int], strides: Sequence[int], upper: bool, value: float
) -> torch.Tensor:
    """Pad x [N, C, ...] by what auto_pad SAME says for its size."""
    return F.pad(x, torch_pads(same_pads(x.shape[2:], windows, strides, upper)), value=value)


def crop_to(x: torch.Tensor, sizes: Sequence[int], upper: bool) -> torch.Tensor:
    """Crop x [N, C, ...] to spatial sizes, the odd element going at the end if `upper`."""
    surplus = [have - want for have, want in zip(x.shape[2:], sizes, strict=True)]
    begins = [total // 2 if upper else total - total // 2 for total in surplus]
    ends = [total - begin for total, begin in zip(surplus, begins, strict=True)]
    return F.pad(x, torch_pads([-pad for pad in begins + ends]))


def ones_like_image(x: torch.Tensor) -> torch.Tensor:
    """Return ones of the spatial shape of x [N, C, ...], as [1, 1, ...]."""
    return x.new_ones((1, 1, *x.shape[2:]))


def local_response_norm(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """ONNX LRN for any size, as a product with a banded matrix, which costs a fraction of a pooling over channels.

    Square roots in place of the power, for `beta` 0.75 and 0.5, are slower as often as faster, with their gradient.
    """
    channel = torch.arange(x.shape[1], device=x.device)
    ahead = channel - channel[:, None]
    band = ((ahead >= -((size - 1) // 2)) & (ahead <= size // 2)).to(x.dtype)
    squares = (band @ x.square().reshape(*x.shape[:2], -1)).reshape(x.shape)
    return x * (squares * (alpha / size) + bias).pow(-beta)


def reshape(x: torch.Tensor, target: torch.Tensor, allow_zero: bool) -> torch.Tensor:
    """Reshape to sizes that are computed at run time; 0 copies a size of x, unless `allow_zero` is set."""
    sizes = target.tolist()
    return x.reshape([x.shape[i] if s == 0 and not allow_zero else s for i, s in enumerate(sizes)])


def expand(x: torch.Tensor, target: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Broadcast x against sizes, both ways."""
    sizes = target.tolist() if isinstance(target, torch.Tensor) else list(target)
    return x.expand(torch.broadcast_shapes(x.shape, sizes))  # type: ignore[no-untyped-call]


def device_of(anchor: torch.Tensor | list[torch.Tensor] | None) -> torch.device | None:
    """Return the device of a graph's input; None, which is torch's default, for an empty sequence."""
    anchor = anchor[0] if isinstance(anchor, list) and anchor else anchor
    return anchor.device if isinstance(anchor, torch.Tensor) else None


def int_tensor(anchor: torch.Tensor, items: Sequence[int], scalar: bool) -> torch.Tensor:
    """Make an int64 tensor of rank 1, or 0, on the anchor's device."""
    return torch.tensor(items[0] if scalar else list(items), dtype=torch.int64, device=device_of(anchor))


def shape_tensor(x: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
    """Return a part of x's shape as int64 tensor."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def reverse_slice(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    """Slice an axis with a negative step."""
    size = x.shape[axis]
    stop = None if end < -size else end
    picked = range(size)[slice(start, stop, step)]
    return x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))


def integer_divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """ONNX Div: integers are divided towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def power(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """ONNX Pow: the result is of the base's type."""
    return torch.pow(base, exponent).to(base.dtype)


def cast_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a value in the type of another, if both are floats and autocast is off; its finite elements stay finite.

    :param value: of any shape. :param other: of any shape.
    """
    if value.dtype == other.dtype or not (value.is_floating_point() and other.is_floating_point()):
        return value
    if torch.is_autocast_enabled(value.device.type):
        return value
    most = torch.finfo(other.dtype).max
    limited = torch.clamp(value, -most, most) if torch.finfo(value.dtype).max > most else value
    return torch.where(value.isinf(), value, limited).to(other.dtype)


def parametric_relu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """ONNX PRelu: the slope is broadcast to x."""
    return torch.where(x < 0, slope * x, x)


def signed(array: np.ndarray) -> np.ndarray:
    """Return unsigned integers as int64."""
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise OverflowError("a number is too large for int64, in which torch computes with uint64")
    return array.astype(np.int64)


def widen(x: torch.Tensor) -> torch.Tensor:
    """Return unsigned integers as int64, in which torch computes with them."""
    if x.dtype != torch.uint64:
        return x.to(torch.int64)
    x = x.view(torch.int64)
    if (x < 0).any():
        raise OverflowError("a number is too large for int64, in which torch computes with uint64")
    return x


def narrow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return int64 as unsigned integers, without their high bits."""
    return x.view(dtype) if dtype == torch.uint64 and x.dtype == torch.int64 else x.to(dtype)
