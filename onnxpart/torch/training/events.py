"""News of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch: seconds of training so far, mean loss in training, and loss and metric on test data.

    The seconds count all parts that share the process, without evaluation and checkpoints.
    """

    seconds: float
    train_loss: float
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Steps:
    """News of some steps of some parts: `losses` [step][part], `samples` seen in this epoch, of `batches` in all."""

    parts: tuple[int, ...]
    epoch: int
    batch: int
    batches: int
    samples: int
    losses: list[list[float]]
    seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """News of one part: an epoch is over."""

    part: int
    epoch: int
    result: Epoch


@dataclass(frozen=True)
class Note:
    """News in words: which engine was chosen, which checkpoint a run goes on from."""

    text: str


Event: TypeAlias = Steps | EpochEnd | Note
OnEvent: TypeAlias = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Take no notice of an event."""
