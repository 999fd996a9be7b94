"""A batch, and the protocols of what gives batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

Batch = tuple[tuple[Tensor, ...], Tensor]
"""The graph's inputs in its order, and the target; the first axis of each is the samples."""
TARGET = "target"
"""The name of the target in data that have names."""
Prepare = Callable[[Batch], Batch]
"""Checks samples and converts them for training; raises DataError. It may get a batch or all samples."""


class Loader(Protocol):
    """Batches of one set of samples, epoch by epoch."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on; each call gives the same ones."""
        ...


@runtime_checkable
class Stream(Loader, Protocol):
    """A loader of data without a length, which may know their position.

    `passes`: for each time that the data ended, the number of batches that were read until then.
    """

    passes: list[int]

    def state(self) -> str | None:
        """Return the position after the last batch, for `restore`; None if the data can't tell it."""
        ...

    def restore(self, state: str) -> bool:
        """Let the data go on from a position; return whether they can."""
        ...


class Source(Loader, Protocol):
    """A loader whose samples can be checked and converted."""

    def prepared(self, prepare: Prepare) -> Source:
        """Return a loader of the samples that `prepare` makes of these."""
        ...
