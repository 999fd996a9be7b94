"""torchvision's models for classification, segmentation, video, optical flow and detection, with random weights."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.video.mvit import MViT

KINDS = (models, models.segmentation, models.video, models.optical_flow, models.detection)
SIZE, FLOW_UPDATES = 96, 2
SIZES = {
    "alexnet": 224, "vgg": 224, "maxvit": 224, "inception": 299, "vit_b": 64, "vit_l": 64, "vit_h": 56,
    "ssd300": 300, "ssdlite": 320,
}  # fmt: skip
"""Pixels along a side of a square image, by the beginning of the name, where `SIZE` isn't enough or too much."""
CLIPS = {"s3d": (1, 3, 16, 224, 224)}
CLIP, FRAME, DETECTED, BOXES = (2, 3, 8, 64, 64), (1, 3, 128, 128), 128, 16


class Tensors(nn.Module):
    """A model that returns a tensor or several, taken by `pick` from what it returned before."""

    def __init__(self, model: nn.Module, call: Callable[..., Any], pick: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.call, self.pick = model, call, pick

    def forward(self, *tensors: Tensor) -> Any:
        """What `pick` takes."""
        return self.pick(self.call(self.model, *tensors))


class Stages(nn.Module):
    """A detector of two stages as it is trained: the boxes that the second one looks at come in with the image.

    It returns what its losses take: for places of the image and for boxes how much they are objects of each kind and
    where these end, and their masks or key points.
    """

    def __init__(self, detector: Any, side: int) -> None:
        super().__init__()
        self.detector, self.size = detector, (side, side)

    def forward(self, x: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """For one image [1, 3, side, side] and boxes in it [n, 4]."""
        heads = self.detector.roi_heads
        features = self.detector.backbone(x)
        results = [value for values in self.detector.rpn.head(list(features.values())) for value in values]
        results += heads.box_predictor(heads.box_head(heads.box_roi_pool(features, [boxes], [self.size])))
        if heads.has_mask():
            results.append(heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [boxes], [self.size]))))
        if heads.has_keypoint():
            pooled = heads.keypoint_roi_pool(features, [boxes], [self.size])
            results.append(heads.keypoint_predictor(heads.keypoint_head(pooled)))
        return tuple(results)


def names() -> list[str]:
    """All models, one kind after the other."""
    return [name for kind in KINDS for name in models.list_models(module=kind)]


def family(name: str) -> str:
    """What the model is for, in the words of torchvision's modules."""
    kind = next(kind for kind in KINDS if name in models.list_models(module=kind))
    return "classification" if kind is models else kind.__name__.rsplit(".", 1)[-1]


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model with random weights, and inputs for it by name."""
    kind = family(name)
    if kind == "optical_flow":
        model = models.get_model(name, weights=None)
        images = {image: torch.rand(FRAME) for image in ("image1", "image2")}
        return Tensors(model, lambda m, *x: m(*x, num_flow_updates=FLOW_UPDATES), lambda flows: flows[-1]), images
    if kind == "detection":
        side = next((side for start, side in SIZES.items() if name.startswith(start)), DETECTED)
        detector: Any = models.get_model(name, weights=None, weights_backbone=None)
        if "rcnn" in name:  # each part would look at boxes of its own
            corner = side / 2 * torch.rand(BOXES, 2)
            return Stages(detector, side), _image(1, side) | {"boxes": torch.cat([corner, corner + side / 2], dim=1)}
        # images come in at a size that it takes, and need neither resizing nor padding
        detector.transform.resize = lambda image, target: (image, target)
        detector.transform.batch_images = lambda images, size_divisible: torch.stack(images)
        return Tensors(detector, lambda m, x: m([x[0]]), lambda found: tuple(found[0].values())), _image(1, side)
    if kind == "segmentation":
        model = models.get_model(name, weights=None, weights_backbone=None)
        return Tensors(model, lambda m, x: m(x), lambda masks: masks["out"]), _image(2, SIZE)
    if kind == "video":
        clip = next((shape for start, shape in CLIPS.items() if name.startswith(start)), CLIP)
        with mock.patch("torchvision.models.video.mvit.MViT", _small_mvit):
            model = models.get_model(name, weights=None)
        return model, {"x": torch.randn(clip)}
    side = next((side for start, side in SIZES.items() if name.startswith(start)), SIZE)
    extra: dict[str, Any] = {"image_size": side} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = False  # their own way to draw them takes a minute
    return models.get_model(name, weights=None, **extra), _image(2, side)


def _small_mvit(**settings: Any) -> MViT:
    """An MViT for clips of `CLIP`: the functions that build one have no argument for that."""
    return MViT(**{**settings, "temporal_size": CLIP[2], "spatial_size": CLIP[3:]})


def _image(batch: int, side: int) -> dict[str, Tensor]:
    return {"x": torch.randn(batch, 3, side, side)}
