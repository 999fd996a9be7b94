"""Arrays that are never in memory as a whole: read, made and written a few rows at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxpart.errors import ModelError

Array = NDArray[Any]
RowIndex: TypeAlias = tuple[()] | tuple[slice]
"""Which rows of an array, counted along axis 0; the empty tuple for an array without axes."""
CHUNK = 1 << 24
"""Bytes in memory at a time."""
ALL = 1 << 62
"""More bytes than any array has."""


class Rows(Protocol):
    """Anything whose rows can be read: an array in memory, or one in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""

    def __getitem__(self, rows: RowIndex, /) -> Array:
        """The rows."""


@dataclass(frozen=True)
class Stored:
    """An array in a file. Only the rows that are asked for are mapped, and only as long as they are used."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __getitem__(self, rows: RowIndex) -> Array:
        start, stop, _ = rows[0].indices(self.shape[0]) if rows else (0, 1, 1)
        shape = (stop - start, *self.shape[1:]) if rows else self.shape
        size, row = prod(shape) * self.dtype.itemsize, prod(self.shape[1:]) * self.dtype.itemsize
        if not size:
            return np.zeros(shape, self.dtype)
        try:
            flat = _bytes(self.path, self.offset + start * row, size)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.path} can't be read ({error}); leave it where it is until the command has ended."
            ) from None
        return flat.view(np.ndarray).view(self.dtype).reshape(shape)


def _bytes(path: Path, offset: int, size: int) -> NDArray[np.uint8]:
    """Return bytes of a file: mapped, or on Windows read, since a mapped file can't be replaced there.

    :raises OSError, ValueError: when it is shorter, or can't be read.
    """
    if sys.platform == "win32":
        read = np.fromfile(path, np.uint8, size, offset=offset)
        if len(read) < size:
            raise ValueError(f"it ends after {len(read)} of {size} bytes")
        return read
    return np.memmap(path, np.uint8, mode="r", offset=offset, shape=(size,))


@dataclass(frozen=True)
class Cast:
    """An array in another type; a number that is too large for it becomes infinite."""

    rows: Rows
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.rows.shape

    def __getitem__(self, rows: RowIndex) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(self.rows[rows]).astype(self.dtype)


@dataclass(frozen=True)
class Stream:
    """An array that is made a few rows at a time, from the first to the last.

    `chunks` takes a number of bytes, and gives consecutive rows in pieces of about that size; the values don't depend
    on it. `rows`: the source of the rows, if they exist already.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Callable[[int], Iterator[Array]]
    rows: Rows | None = None

    def __getitem__(self, rows: RowIndex) -> Array:
        return (self.array() if self.rows is None else self.rows)[rows]

    def array(self) -> Array:
        """The whole array."""
        pieces = list(self.chunks(ALL))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(self.shape, self.dtype)


def stream(rows: Rows) -> Stream:
    """All rows of an array as a stream; a stream is returned as it is."""
    return rows if isinstance(rows, Stream) else Stream(rows.shape, rows.dtype, partial(_chunks, rows), rows)


def _chunks(rows: Rows, size: int) -> Iterator[Array]:
    for start, stop in windows(rows.shape, rows.dtype, size):
        yield np.asarray(rows[(slice(start, stop),) if rows.shape else ()])


def windows(shape: Sequence[int], dtype: np.dtype[Any], size: int) -> Iterator[tuple[int, int]]:
    """First row and end row of consecutive pieces of about `size` bytes.

    An array without axes counts as one row.
    """
    count = shape[0] if shape else 1
    step = max(1, size // max(1, prod(shape[1:]) * dtype.itemsize))
    for start in range(0, count, step):
        yield start, min(start + step, count)


def rows_shape(shape: tuple[int, ...], start: int, stop: int) -> tuple[int, ...]:
    """Shape of some rows of an array."""
    return (stop - start, *shape[1:]) if shape else ()


def write_rows(source: Stream, file: BinaryIO) -> int:
    """Write an array row by row; returns how many bytes it has."""
    length = 0
    for chunk in source.chunks(CHUNK):
        length += file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    return length
