"""What ends a run before its epochs do: a target that is reached, or a budget that is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from onnxpart.errors import UsageError
from onnxpart.torch.runs.recipe import SHARE
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.metrics import Metric
from onnxpart.torch.training.patience import Patience


@dataclass(frozen=True)
class Goal:
    """What ends a run of `fit` before its epochs do.

    `target`: of the metric on the test data, or of the loss if networks are judged by that. `steps`: of the parts and
    then of the whole, in all. `minutes`: of training, without tests and checkpoints; parts that share a process all
    count.

    :raises UsageError: for a value that makes no sense.
    """

    target: float | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None and not isfinite(self.target):
            raise UsageError(f"the target is {self.target}; it must be a number.")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"the budget is {value} {name}; it must be positive.")

    @property
    def watched(self) -> bool:
        """Whether training may end at any epoch."""
        return self.target is not None or self.minutes is not None

    def reached(self, metric: Metric, loss: float | None, value: float | None) -> bool:
        """Return whether a network is as good as the target: by the value of its metric, or else by its loss."""
        found = loss if metric.better is None else value
        return self.target is not None and found is not None and metric.as_good(found, self.target)

    def spent(self, seconds: float) -> bool:
        """Return whether this many seconds use up the budget."""
        return self.minutes is not None and seconds >= 60 * self.minutes

    def spent_on_parts(self, seconds: float) -> bool:
        """Return whether this many seconds use up the parts' share of the budget."""
        return self.spent(seconds / SHARE)

    def epochs(self, most: int, steps: int, seconds: tuple[float, float], share: float) -> int:
        """Return how many epochs of parts and whole together the budget allows.

        :param most: the largest number of them. :param steps: in an epoch. :param seconds: of a step of all parts, and
            of the whole. :param share: the parts' share of the epochs.
        :raises UsageError: when it doesn't suffice for an epoch of each.
        """
        parts, whole = seconds
        mean = share * parts + (1 - share) * whole
        allowed = most
        if self.steps is not None:
            allowed, needed = self.steps // steps, f"{2 * steps} steps"
        elif self.minutes is not None:
            allowed, needed = int(60 * self.minutes / (steps * mean)), f"about {steps * mean / 30:.2g} minutes"
        if allowed < 2 <= most:
            raise UsageError(f"the budget is too small: an epoch of the parts and one of the whole take {needed}.")
        return min(allowed, most)


@dataclass(frozen=True)
class GoalOrPatience:
    """Ends the training of one network when the goal is reached, or the patience with it is spent (see `Ending`).

    `before`: seconds of the budget that are already spent.
    """

    goal: Goal
    metric: Metric
    patience: Patience | None
    before: float = 0.0

    def why(self, curve: Sequence[Epoch]) -> str:
        """Return in words why training ends after these epochs; empty if it goes on."""
        if not curve:
            return ""
        last = curve[-1]
        if self.goal.reached(self.metric, last.loss, last.metric):
            return "the target is reached"
        if self.goal.spent(self.before + last.seconds):
            return "the budget is spent"
        return "" if self.patience is None else self.patience.why(curve)

    def kept(self, curve: Sequence[Epoch]) -> int | None:
        """Return the index of the epoch whose weights are kept; None for the last."""
        return None if self.patience is None else self.patience.kept(curve)
