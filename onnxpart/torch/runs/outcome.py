"""The results of a run of `fit`: curves, sizes, times and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from onnxpart.inspection.sizes import Sizes
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import Plan
from onnxpart.torch.runs.goal import Goal
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.metrics import Metric

Grow = Literal["merge", "widen"]
"""How the whole begins: K parts merge, or copies of one part fill it (Net2WiderNet)."""
SHORTER, ONE_PART, COPIES = "shorter", "one part", "copies"
"""The controls, which are also stages: other ways to spend about the same time."""


@dataclass(frozen=True)
class Times:
    """Seconds of training: of the parts as they ran, of the whole after them, and the median epoch of the whole."""

    parts: float
    whole: float
    epoch: float | None

    def alone(self, epochs: int) -> float | None:
        """Return the seconds that the whole would take for all epochs, at its median epoch."""
        return None if self.epoch is None else epochs * self.epoch

    def speedup(self, epochs: int) -> float | None:
        """Return the speed-up of the method over that."""
        alone = self.alone(epochs)
        return None if alone is None else alone / (self.parts + self.whole)


@dataclass(frozen=True)
class Traffic:
    """Bytes of gradients, and of sharded weights, that all workers of a cluster send together, by a ring, for a batch.

    `parts`: for a batch of all parts. `whole`: for one of the whole. `data_parallel`: for one if they trained the whole
    from the start. `batches`: the batches of an epoch.
    """

    parts: float
    whole: float
    data_parallel: float
    batches: int


@dataclass(frozen=True)
class Check:
    """Results of the parts' ensemble, the mean of their outputs, on the test data after some epochs."""

    epoch: int
    seconds: float
    loss: float
    metric: float | None


@dataclass(frozen=True)
class Fit:
    """The results: curves of the parts and of the whole, its loss and metric right after merging, sizes, times.

    `rounds`: the epochs of each round of the parts; a merge follows each. `ensemble`: its results, when they were
    measured. `grow`: how the whole began. `blocks`: how many of each stack the parts trained with; None for all.
    `baseline`: the curve of the whole trained alone, if it was asked for. `controls`: then the curves of SHORTER, the
    whole for as many epochs as take the method's time; ONE_PART, a part for K times the parts' epochs; and COPIES, the
    whole that begins as copies of the first part. `note`: where the loss was taken. `deviation`: ONNX Runtime's from
    the trained module (see `trained_file`). `traffic`: of a run on a cluster. `kept`: the initializers that kept their
    cross weights. `goal`: what might have ended the run early. `alone`: how many epochs the whole alone would have.
    `gpu_memory`: the most bytes of a GPU that tensors of a process took while the parts trained, and while the whole
    did.
    """

    file: Path
    partition: Partition
    sizes: Sizes
    rounds: Sequence[range]
    metric: Metric
    note: str
    parts: Sequence[Sequence[Epoch]]
    ensemble: Sequence[Check]
    merged: tuple[float, float | None] | None
    whole: list[Epoch]
    baseline: list[Epoch]
    controls: Mapping[str, list[Epoch]]
    times: Times
    deviation: float
    kept: Sequence[str]
    goal: Goal
    grow: Grow
    blocks: int | None
    alone: int
    traffic: Traffic | None = None
    gpu_memory: tuple[int | None, int | None] = (None, None)

    @property
    def plan(self) -> Plan:
        """The plan of the last merge."""
        return self.partition.plan

    @property
    def merge_at(self) -> int:
        """How many epochs the parts had in all."""
        return self.rounds[-1].stop


def times_of(parts: float, whole: list[Epoch]) -> Times:
    """Return the seconds of both stages; parts that share a process count each other's seconds already."""
    ends = [0.0, *(epoch.seconds for epoch in whole)]
    durations = [after - before for before, after in pairwise(ends)]
    return Times(parts, ends[-1], median(durations) if durations else None)
