"""Resize, in every form that ONNX has: by torch's own if it has that form, otherwise axis by axis with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator

Floats = NDArray[np.float64]
_TORCH = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized: from a size to another, by a scale, within a region of interest."""

    number: int
    size: int
    target: int
    scale: float
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Form:
    """The attributes of Resize."""

    mode: str
    places: str
    rounding: str
    cubic: float
    outside: bool
    extrapolation: float
    antialias: bool


class Resize(torch.nn.Module):
    """A Resize of some axes by scales or sizes; a size may be an int that is known only at run time."""

    def __init__(self, form: Form, axes: Sequence[int], policy: str, roi: Sequence[float]) -> None:
        super().__init__()
        self.form, self.axes, self.policy, self.roi = form, list(axes), policy, list(roi)

    def forward(self, x: Tensor, scales: Sequence[float] | None, sizes: Sequence[int] | None) -> Tensor:
        """Resize x to sizes, or by scales."""
        axes = self._axes(x, scales, sizes)
        fast = _by_torch(self.form, x, axes)
        if fast is not None:
            return fast
        for axis in axes:
            x = _resized(self.form, x, axis)
        return x

    def _axes(self, x: Tensor, scales: Sequence[float] | None, sizes: Sequence[int] | None) -> list[Axis]:
        """Return each axis with its sizes, its factor and its region."""
        have, count = [x.shape[axis] for axis in self.axes], len(self.axes)
        rois = list(zip(self.roi[:count], self.roi[count:], strict=True)) if self.roi else [(0.0, 1.0)] * count
        if sizes is not None:
            factors = [want / size for want, size in zip(sizes, have, strict=True)]
            if self.policy != "stretch":
                factor = min(factors) if self.policy == "not_larger" else max(factors)
                factors = [factor] * count
                sizes = [int(factor * size + 0.5) for size in have]
            targets = list(sizes)
        else:
            assert scales is not None
            factors = list(scales)
            spans = [end - start if self.form.places == "tf_crop_and_resize" else 1.0 for start, end in rois]
            targets = [
                int(size * span * factor + 1e-9) for size, span, factor in zip(have, spans, factors, strict=True)
            ]
        columns = zip(self.axes, have, targets, factors, rois, strict=True)
        return [Axis(number, size, target, factor, *roi) for number, size, target, factor, roi in columns]


def _by_torch(form: Form, x: Tensor, axes: Sequence[Axis]) -> Tensor | None:
    """Resize the spatial axes by torch's own operator, if it does the same."""
    inner = sorted((axis for axis in axes if axis.number > 1), key=lambda axis: axis.number)
    if len(inner) != x.dim() - 2 or any(a.scale != 1 for a in axes if a.number <= 1) or form.antialias or form.outside:
        return None
    if not x.is_floating_point():
        return None
    if form.mode == "nearest":
        whole = all(axis.target % axis.size == 0 and axis.target == axis.size * axis.scale for axis in inner)
        if not whole or form.places not in ("asymmetric", "half_pixel") or x.dim() > 5:
            return None
        if (form.rounding == "floor") != (form.places == "asymmetric") or form.rounding == "ceil":
            return None
        return F.interpolate(x, size=[axis.target for axis in inner], mode="nearest")
    exact = all(abs(axis.target - axis.size * axis.scale) < 1e-4 for axis in inner)
    mode = _TORCH.get((form.mode, x.dim()))
    several = all(axis.target > 1 for axis in inner)
    if mode is None or not exact or (form.mode == "cubic" and form.cubic != -0.75) or not several:
        return None
    if form.places not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    corners = form.places == "align_corners"
    return F.interpolate(x, size=[axis.target for axis in inner], mode=mode, align_corners=corners)


def _resized(form: Form, x: Tensor, axis: Axis) -> Tensor:
    """Resize along one axis: by an index for nearest, otherwise by a product with a matrix."""
    places = _places(form.places, axis)
    if axis.target == axis.size and axis.scale == 1 and form.places != "tf_crop_and_resize":
        return x
    if form.mode == "nearest":
        nearest = np.clip(_rounded(places, form.rounding), 0, axis.size - 1).astype(np.int64)
        result = x.index_select(axis.number, torch.from_numpy(nearest).to(x.device))
    else:
        matrix = torch.from_numpy(_matrix(form, places, axis)).to(x.device, x.dtype)
        result = torch.tensordot(x, matrix, dims=([axis.number], [1])).movedim(-1, axis.number)
    if form.places != "tf_crop_and_resize":
        return result
    shape = [-1 if i == axis.number else 1 for i in range(x.dim())]
    outside = torch.from_numpy((places < 0) | (places > axis.size - 1)).to(x.device).reshape(shape)
    return torch.where(outside, torch.full_like(result, form.extrapolation), result)


def _places(kind: str, axis: Axis) -> Floats:
    """Return where in the input each element of the output lies."""
    x, size, target = np.arange(axis.target, dtype=np.float64), axis.size, axis.target
    if kind == "asymmetric":
        return x / axis.scale
    if kind == "tf_half_pixel_for_nn":
        return (x + 0.5) / axis.scale
    if kind == "align_corners":
        return x * (size - 1) / (target - 1) if target > 1 else np.zeros(1)
    if kind == "tf_crop_and_resize":
        if target > 1:
            return axis.start * (size - 1) + x * (axis.end - axis.start) * (size - 1) / (target - 1)
        return np.full(target, 0.5 * (axis.start + axis.end) * (size - 1))
    if kind == "pytorch_half_pixel" and target <= 1:
        return np.zeros(target)
    places = (x + 0.5) / axis.scale - 0.5
    if kind == "half_pixel_symmetric":
        places = places + size / 2 * (1 - target / (axis.scale * size))
    return places


def _rounded(places: Floats, rounding: str) -> Floats:
    if rounding == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(places + 0.5)
    return np.ceil(places) if rounding == "ceil" else np.floor(places)


def _matrix(form: Form, places: Floats, axis: Axis) -> Floats:
    """Return the weight [target, size] of each element of the input."""
    scale = min(axis.scale, 1.0) if form.antialias else 1.0
    reach = 1 if form.mode == "linear" else 2
    first = int(np.floor(-reach / scale)) + 1
    taps = np.arange(first, 2 - first)
    base = np.floor(places)
    distance = np.abs(taps - (places - base)[:, None]) * scale
    weights = np.maximum(1 - distance, 0) if form.mode == "linear" else _cubic(distance, form.cubic)
    indices = base[:, None].astype(np.int64) + taps
    if form.outside:
        weights = np.where((indices < 0) | (indices >= axis.size), 0, weights)
    if form.outside or form.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    result = np.zeros((len(places), axis.size))
    np.add.at(result, (np.arange(len(places))[:, None], np.clip(indices, 0, axis.size - 1)), weights)
    return result


def _cubic(x: Floats, a: float) -> Floats:
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


@operator("Resize", since=11)
def resize(node: Node) -> Tensor:
    """Resize some axes by scales or to sizes, nearest, linear or cubic."""
    rank = node.known_rank(0)
    axes = [axis % rank for axis in node.attribute("axes", list(range(rank)))]
    form = Form(
        mode=node.attribute("mode", "nearest"),
        places=node.attribute("coordinate_transformation_mode", "half_pixel"),
        rounding=node.attribute("nearest_mode", "round_prefer_floor"),
        cubic=node.attribute("cubic_coeff_a", -0.75),
        outside=bool(node.attribute("exclude_outside", 0)),
        extrapolation=node.attribute("extrapolation_value", 0.0),
        antialias=bool(node.attribute("antialias", 0)),
    )
    roi = _floats(node, 1) if form.places == "tf_crop_and_resize" else None
    module = Resize(form, axes, node.attribute("keep_aspect_ratio_policy", "stretch"), roi or [])
    if node.has(3) and (node.constant(3) is None or node.constant(3).size):  # type: ignore[union-attr]
        sizes = node.integers(3)
        if sizes is None:
            raise node.unknown("the sizes are computed at run time")
        return node.module(module, node.tensor(0), None, list(sizes.items))
    return node.module(module, node.tensor(0), _floats(node, 2), None)


def _floats(node: Node, index: int) -> list[float] | None:
    array = node.constant(index)
    if array is None:
        if node.has(index):
            raise node.unknown(f"input {index} is computed at run time")
        return None
    return [float(value) for value in array.reshape(-1)]


@operator("Resize", "Upsample", since=7)
def upsample(node: Node) -> Tensor:
    """Resize by scales, which are an attribute at first and then an input; positions as before opset 11."""
    given: list[float] | None = node.attribute("scales", None)
    scales = given or _floats(node, 1)
    if scales is None:
        raise node.error("the scales are missing; check the model with onnx.checker")
    form = Form(node.attribute("mode", "nearest"), "asymmetric", "floor", -0.75, False, 0.0, False)
    return node.module(Resize(form, range(len(scales)), "stretch", []), node.tensor(0), scales, None)
