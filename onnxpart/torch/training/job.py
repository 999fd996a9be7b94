"""What is to be trained and how, and what comes out: plain data that travels between processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import nn

from onnxpart.merging.optimizer_state import OptimizerState
from onnxpart.torch.data.batch import Loader
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.losses import Criterion
from onnxpart.torch.training.metrics import Meter
from onnxpart.torch.training.settings import Settings


class Ending(Protocol):
    """What may end the training of a single network before its epochs do, and which weights it then has."""

    def why(self, curve: Sequence[Epoch]) -> str:
        """Return in words why training ends after these epochs; empty if it goes on."""
        ...

    def kept(self, curve: Sequence[Epoch]) -> int | None:
        """Return the index of the epoch whose weights are kept; None if they are always the last."""
        ...


@dataclass(frozen=True)
class Job:
    """Parts to train side by side on the same batches; `numbers` are their places in the split.

    `epochs`: those of the settings' schedule to train. `states`: one per part, to go on from. `seconds`: of training
    before. `ending`: of a single part.
    """

    modules: Sequence[nn.Module]
    numbers: tuple[int, ...]
    loader: Loader
    loss: Criterion
    settings: Settings
    epochs: range
    test: Loader | None = None
    metric: Criterion | Meter | None = None
    states: Sequence[OptimizerState] | None = None
    checkpoints: Checkpoints | None = None
    seconds: float = 0.0
    ending: Ending | None = None


def alone(job: Job, i: int) -> Job:
    """Return the job of the i-th part alone."""
    states = None if job.states is None else [job.states[i]]
    return replace(job, modules=[job.modules[i]], numbers=(job.numbers[i],), states=states)


@dataclass(frozen=True)
class Result:
    """The result of one part: an `Epoch` per trained epoch, the optimizer's state by initializer name, the engine.

    `gpu_memory`: the most bytes that tensors of its process took on the GPU meanwhile; None without a GPU.
    """

    curve: list[Epoch]
    state: OptimizerState
    engine: Literal["series", "fused"] = "series"
    gpu_memory: int | None = None
