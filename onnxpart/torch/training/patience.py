"""What ends the training of a network that no longer becomes better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.metrics import Metric


@dataclass(frozen=True)
class Patience:
    """For how many `epochs` a network is trained on without being better than its best, by what it is judged by.

    That is the metric on the test data, or the loss there (see `Metric.key`). The weights of the best epoch are kept,
    whether patience is spent or not. It is an `Ending`.
    """

    epochs: int
    metric: Metric

    def __str__(self) -> str:
        """Why training ends when it is spent."""
        return f"no better for {self.epochs} epoch{'s' * (self.epochs > 1)}"

    def why(self, curve: Sequence[Epoch]) -> str:
        """Return in words why training ends after these epochs; empty if it goes on (see `spent`)."""
        return str(self) if self.spent(curve) else ""

    def spent(self, curve: Sequence[Epoch]) -> bool:
        """Return whether so many epochs at the end were no better than the best one in front of them.

        An epoch whose value is missing or NaN is no better than any other.
        """
        return len(curve) - 1 - self.kept(curve) >= self.epochs

    def kept(self, curve: Sequence[Epoch]) -> int:
        """Return the index of the best epoch, whose weights are kept: of several as good the first; if none has a
        value, the last.
        """
        best, index = None, len(curve) - 1
        for i, value in enumerate(map(self._value, curve)):
            if value is not None and (best is None or not self.metric.as_good(best, value)):
                best, index = value, i
        return index

    def _value(self, point: Epoch) -> float | None:
        """What the network is judged by after an epoch; None if it is missing or NaN."""
        value: float | None = getattr(point, self.metric.key)
        return None if value is None or isnan(value) else value
