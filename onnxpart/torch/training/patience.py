"""What ends the training of a network that no longer becomes better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.metrics import Metric


@dataclass(frozen=True)
class Patience:
    """For how many `epochs` a network is trained on without being better than its best, by what it is judged by.

    That is the metric on the test data, or the loss there (see `Metric.key`). `before`: the epochs that the network
    has behind it. The weights stay those of the last epoch.
    """

    epochs: int
    metric: Metric
    before: Sequence[Epoch] = ()

    def __str__(self) -> str:
        """Why training ends when it is spent."""
        return f"no better for {self.epochs} epoch{'s' * (self.epochs > 1)}"

    def spent(self, curve: Sequence[Epoch]) -> bool:
        """Return whether the last of these further epochs were no better than the best one in front of them.

        An epoch whose value is missing or NaN is no better than any other.
        """
        points = [*self.before, *curve]
        earlier, last = self._values(points[: -self.epochs]), self._values(points[-self.epochs :])
        if not earlier or not last:
            return bool(earlier)
        return self.metric.as_good(self.metric.best(earlier), self.metric.best(last))

    def _values(self, points: Iterable[Epoch]) -> list[float]:
        found = (getattr(point, self.metric.key) for point in points)
        return [value for value in found if value is not None and not isnan(value)]
