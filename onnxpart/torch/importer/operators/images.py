"""Operators on images: sampling, patches, regions and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.registry import operator

_SAMPLING = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@operator("GridSample", since=16)
def grid_sample(node: Node) -> Tensor:
    """Sample images at the places of a grid."""
    mode, corners = node.attribute("mode", "linear"), bool(node.attribute("align_corners", 0))
    padding = node.attribute("padding_mode", "zeros")
    if mode not in _SAMPLING or (node.known_rank(0) == 5 and "cubic" in mode):
        raise node.error(f"mode {mode} isn't imported for these axes; use linear or nearest")
    return node.call(F.grid_sample, node.tensor(0), node.tensor(1), _SAMPLING[mode], padding, corners)


def _folded(
    x: Tensor,
    image: Sequence[int],
    block: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Add patches [N, C * block, L] up in images of any number of axes."""
    rank, device = len(image), x.device
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(image)]
    place, channels = torch.zeros(1, 1, dtype=torch.int64, device=device), x.shape[1] // torch.Size(block).numel()
    for i, size in enumerate(padded):
        within = torch.arange(block[i], device=device) * dilations[i]
        starts = torch.arange(0, size - dilations[i] * (block[i] - 1), strides[i], device=device)
        place = place.unsqueeze(1).unsqueeze(3) * size + within.reshape(1, -1, 1, 1) + starts
        place = place.flatten(0, 1).flatten(1, 2)
    patches = x.reshape(x.shape[0], channels, -1)
    result = x.new_zeros((*patches.shape[:2], torch.Size(padded).numel()))
    result = result.scatter_add(2, place.reshape(1, 1, -1).expand_as(patches), patches)
    return F.pad(result.reshape(*patches.shape[:2], *padded), runtime.torch_pads([-pad for pad in pads]))


@operator("Col2Im", since=18)
def fold(node: Node) -> Tensor:
    """Add patches up in an image."""
    image, block = (node.integer_list(name, i) or [] for name, i in (("image_shape", 1), ("block_shape", 2)))
    rank = len(image)
    strides, dilations = (node.attribute(name, [1] * rank) for name in ("strides", "dilations"))
    return node.call(_folded, node.tensor(0), image, block, strides, node.attribute("pads", [0] * 2 * rank), dilations)


def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    sizes: Sequence[int],
    sampling: int,
    scale: float,
    half_pixel: bool,
    greatest: bool,
) -> Tensor:
    """ONNX RoiAlign: mean or maximum of samples in each cell of each region."""
    results = []
    for roi, image in zip(rois * scale - (0.5 if half_pixel else 0.0), batch.tolist(), strict=True):
        (x1, y1), (w, h) = roi[:2].tolist(), (roi[2:] - roi[:2]).tolist()
        w, h = (w, h) if half_pixel else (max(w, 1.0), max(h, 1.0))
        counts = [sampling or max(-int(-length // size), 1) for length, size in zip((h, w), sizes, strict=True)]
        rows = _corners(y1, h / sizes[0], sizes[0], counts[0], x.shape[2], x)
        columns = _corners(x1, w / sizes[1], sizes[1], counts[1], x.shape[3], x)
        shape = (x.shape[1], sizes[0], counts[0], sizes[1], counts[1])
        corners = torch.stack([
            x[image][:, row][:, :, column] * row_weight[:, None] * column_weight
            for row, row_weight in rows for column, column_weight in columns
        ])  # fmt: skip
        samples = (corners.amax(0) if greatest else corners.sum(0)).reshape(shape)
        results.append(samples.amax((2, 4)) if greatest else samples.mean((2, 4)))
    return torch.stack(results) if results else x.new_zeros((0, x.shape[1], *sizes))


def _corners(start: float, bin_size: float, bins: int, count: int, size: int, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return both neighbours of each sample along an axis, and their weights."""
    steps = torch.arange(bins * count, device=x.device, dtype=x.dtype)
    places = start + (steps + 0.5) * (bin_size / count)
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    low = places.floor().to(torch.int64)
    share = (places - low) * inside
    return [(low, inside.to(x.dtype) - share), ((low + 1).clamp(max=size - 1), share)]


@operator("RoiAlign", since=10)
def roi_align(node: Node) -> Tensor:
    """Pool regions of interest into equal sizes; bilinear samples, their mean or maximum."""
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    return node.call(
        _roi_align,
        *node.tensors(),
        [node.attribute(f"output_{name}", 1) for name in ("height", "width")],
        node.attribute("sampling_ratio", 0),
        node.attribute("spatial_scale", 1.0),
        node.attribute("coordinate_transformation_mode", default) == "half_pixel",
        node.attribute("mode", "avg") == "max",
    )


def _suppressed(
    boxes: Tensor, scores: Tensor, most: Tensor | None, limit: Tensor | None, least: Tensor | None, centers: bool
) -> Tensor:
    """ONNX NonMaxSuppression: rows of image, class and box, int64 [kept, 3]."""
    count = 0 if most is None else int(most)
    bound = 0.0 if limit is None else float(limit)
    found = []
    for image in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            order = torch.argsort(scores[image, label], descending=True, stable=True)
            if least is not None:
                order = order[scores[image, label, order] > least]
            kept = _alone(*_ends(boxes[image, order], centers), bound, count)
            found += [(image, label, box) for box in order[kept].tolist()]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _alone(low: Tensor, high: Tensor, bound: float, most: int) -> list[int]:
    """Return the indices of at most `most` boxes; each of these overlaps none of those before it."""
    areas, alive, kept = (high - low).prod(1), torch.ones(len(low), dtype=torch.bool), list[int]()
    for box in range(len(low)):
        if alive[box] and len(kept) < most:
            kept.append(box)
            sides = torch.minimum(high[box], high[box + 1 :]) - torch.maximum(low[box], low[box + 1 :])
            common = sides.clamp(min=0).prod(1)
            union = areas[box] + areas[box + 1 :] - common
            alive[box + 1 :] &= torch.where(union > 0, common / union, torch.zeros_like(union)).cpu() <= bound
    return kept


def _ends(boxes: Tensor, centers: bool) -> tuple[Tensor, Tensor]:
    """Return where each box begins and ends."""
    if centers:
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        return middle - half, middle + half
    return torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])


@operator("NonMaxSuppression", since=10)
def suppress(node: Node) -> Tensor:
    """Pick boxes by score that don't overlap better ones: rows of image, class and box."""
    centers = bool(node.attribute("center_point_box", 0))
    optional = [node.optional(index) for index in (2, 3, 4)]
    return node.call(_suppressed, node.tensor(0), node.tensor(1), *optional, centers)
