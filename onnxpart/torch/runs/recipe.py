"""Recipes of `fit`: the rates and schedules of parts and whole, when the parts merge, and what the merge keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

from onnxpart.errors import UsageError
from onnxpart.torch.training.settings import OptimizerKind, ScheduleKind, Settings

Kind = Literal["auto", "paper"]
_WARMUP = {"parts": 0.02, "whole": 0.05}
"""The share of the steps in which the rate rises."""
_WHOLE = 5
"""After the parts the whole trains for one epoch for so many of theirs."""
SHARE = _WHOLE / (_WHOLE + 1)
"""The parts' share of the epochs of parts and whole together, if a merge is chosen."""
_CHECKS = 20
"""How often the ensemble of parts, or the whole, is evaluated at most."""
_GAIN = 0.03
"""The least share by which the last third of the parts' epochs must lower the ensemble's loss."""


@dataclass(frozen=True)
class Recipe:
    """How parts and whole are trained.

    `auto`: the parts have a constant rate, of Adam K times the whole's (its rate goes with the inverse of the width);
    the whole has the rate of the settings, a schedule of its own, and a state of Adam that starts anew. `paper`: one
    rate and one schedule over all epochs, and the optimizer's state merges (section 3). `parts_lr`: the parts' rate
    instead. `schedule`: of the whole, in `paper` of all; cosine, in `paper` constant, when omitted.

    :raises UsageError: for a value that makes no sense.
    """

    kind: Kind = "auto"
    parts_lr: float | None = None
    schedule: ScheduleKind | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"the recipe {self.kind!r} is unknown; choose one of {', '.join(get_args(Kind))}.")
        if self.parts_lr is not None and not self.parts_lr > 0:
            raise UsageError(f"the parts' rate is {self.parts_lr}; it must be positive.")
        if self.parts_lr is not None and self.kind == "paper":
            raise UsageError("the recipe paper has one rate for parts and whole; leave out --parts-lr, or take auto.")

    @property
    def init(self) -> str:
        """The parts' first weights (see `split`)."""
        return "scaled" if self.kind == "auto" else "slices"

    def merges_state(self, optimizer: OptimizerKind) -> bool:
        """Whether the whole goes on with the state of the parts' optimizers."""
        return self.kind == "paper" or optimizer == "sgd"

    def parts(self, settings: Settings, k: int, epochs: int) -> Settings:
        """Return how K parts are trained, for some epochs."""
        if self.kind == "paper":
            return replace(settings, schedule=self.schedule or "constant")
        rate = settings.lr * (1 if settings.optimizer == "sgd" else k)
        return replace(settings, epochs=epochs, lr=self.parts_lr or rate, schedule="constant", warmup=_WARMUP["parts"])

    def whole(self, settings: Settings, epochs: range) -> Settings:
        """Return how the whole is trained, for the epochs of that number."""
        if self.kind == "paper":
            return replace(settings, schedule=self.schedule or "constant")
        schedule = self.schedule or "cosine"
        return replace(settings, first=epochs.start, epochs=epochs.stop, schedule=schedule, warmup=_WARMUP["whole"])

    def longest(self, epochs: int) -> int:
        """Return how many epochs the parts get at most, where the whole alone would have `epochs`."""
        return max(epochs // 2, 1) if self.kind == "paper" else epochs


def checks(epochs: range) -> list[range]:
    """Return epochs in pieces; the result is evaluated after each piece."""
    step = max(ceil(len(epochs) / _CHECKS), 1)
    return [epochs[start : start + step] for start in range(0, len(epochs), step)]


def enough(losses: Sequence[float]) -> bool:
    """Return whether parts no longer pay: the last third of the checks lowered the ensemble's loss by less than 3%.

    :param losses: of the ensemble on held-out data, at each check; fewer than six say nothing.
    """
    before = len(losses) * 2 // 3
    return len(losses) >= 6 and min(losses[before:]) > (1 - _GAIN) * min(losses[:before])


def epochs_of_parts(epochs: int) -> int:
    """Return the epochs of the parts where parts and whole together have so many, one of each at least."""
    return max(epochs * _WHOLE // (_WHOLE + 1), 1)


def remaining(parts: int) -> int:
    """Return the epochs of the whole behind those of the parts."""
    return ceil(parts / _WHOLE)
