"""What is to be trained and how, and what comes out: plain data that travels between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from onnxpart.errors import UsageError
from onnxpart.moments import OptimizerState
from onnxpart.torch.checkpoint import Checkpoints
from onnxpart.torch.data import Loader

OptimizerKind = Literal["sgd", "adam", "adamw"]
ScheduleKind = Literal["constant", "cosine", "step", "onecycle"]
EngineKind = Literal["auto", "series", "fused", "processes", "ray"]
Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Output and target of a batch -> mean over its samples, a scalar."""


@dataclass(frozen=True)
class Settings:
    """How to train: everything that has an effect on the result.

    The schedule goes from epoch `first` up to `epochs`, whichever of them a run trains. `schedule`: the rate stays,
    follows half a cosine down to 0, falls to a tenth after each third, or rises from `lr` / 25 to `lr` and falls to
    nearly 0 (`OneCycleLR`). `momentum` is that of SGD; Adam keeps torch's betas. `clip`: largest norm of a part's
    gradient. `accumulate`: batches per step. `amp`: the forward pass in bfloat16. `seed` drives dropout; the loader has
    its own. `device`: auto, cpu, cuda or cuda:i.

    :raises UsageError: for a value that makes no sense.
    """

    epochs: int
    optimizer: OptimizerKind = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleKind = "constant"
    clip: float | None = None
    accumulate: int = 1
    amp: bool = False
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        for name, kinds in (("optimizer", OptimizerKind), ("schedule", ScheduleKind)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise UsageError(f"{name} {getattr(self, name)!r} isn't known; choose one of {known}.")
        for name, least in (
            ("epochs", 0),
            ("momentum", 0),
            ("weight_decay", 0),
            ("accumulate", 1),
            ("seed", 0),
            ("first", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be positive.")


@dataclass(frozen=True)
class Job:
    """Parts to train side by side on the same batches; `numbers` are their places in the split.

    `epochs` are those to train, of the settings' schedule. `states`: one per part, to go on from. `seconds` of training
    lie behind them.
    """

    modules: Sequence[nn.Module]
    numbers: tuple[int, ...]
    loader: Loader
    loss: Criterion
    settings: Settings
    epochs: range
    test: Loader | None = None
    metric: Criterion | None = None
    states: Sequence[OptimizerState] | None = None
    checkpoints: Checkpoints | None = None
    seconds: float = 0.0


def alone(job: Job, i: int) -> Job:
    """Return the job of the i-th part alone."""
    states = None if job.states is None else [job.states[i]]
    return replace(job, modules=[job.modules[i]], numbers=(job.numbers[i],), states=states)


@dataclass(frozen=True)
class Epoch:
    """After an epoch: seconds of training so far, mean loss in training, and loss and metric over the test data.

    Seconds count the training of all parts that share the process, without evaluation and checkpoints.
    """

    seconds: float
    train_loss: float
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Result:
    """Of one part: one `Epoch` per trained epoch, and the optimiser's state by the initializers' names."""

    curve: list[Epoch]
    state: OptimizerState


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
