"""How to train, checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from onnxpart.errors import UsageError

OptimizerKind = Literal["sgd", "adam", "adamw"]
ScheduleKind = Literal["constant", "cosine", "step", "onecycle", "wsd"]
AmpDtype = Literal["bfloat16", "float16"]
EngineKind = Literal["auto", "series", "fused", "processes", "ray"]


@dataclass(frozen=True)
class Settings:
    """How to train: everything that has an effect on the result.

    The schedule goes from epoch `first` up to `epochs`, whichever of them a run trains. `schedule`: the rate stays
    constant, follows half a cosine down to 0, falls to a tenth after each third, rises from `lr` / 25 to `lr` and falls
    to nearly 0 (`OneCycleLR`), or stays constant and falls linearly to 0 over the last fifth (warm-up, stable, decay).
    `warmup`: the share of the steps in which the rate first rises linearly. `momentum` is that of SGD; Adam keeps
    torch's betas. `weight_decay` is for parameters of two axes or more; norms and biases have none. `clip`: largest
    norm of a part's gradient. `accumulate`: batches per step. `amp`: the forward pass in `amp_dtype`, in tests, too;
    for float16 each part has a gradient scaler of its own, and skips a step if its gradients overflow.
    `seed` drives dropout; the loader has its own. `device`: auto, cpu, cuda, cuda:i or mps.

    :raises UsageError: for a value that makes no sense.
    """

    epochs: int
    optimizer: OptimizerKind = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleKind = "constant"
    warmup: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    amp: bool = False
    amp_dtype: AmpDtype = "bfloat16"
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        named = (("optimizer", OptimizerKind), ("schedule", ScheduleKind), ("amp_dtype", AmpDtype))
        for name, kinds in named:
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise UsageError(f"{name} {getattr(self, name)!r} isn't known; choose one of {known}.")
        if self.amp_dtype != "bfloat16" and not self.amp:
            raise UsageError(f"amp_dtype is {self.amp_dtype}, but amp is off; turn it on, or leave the type out.")
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
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to 1.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be positive.")

    @property
    def scaled(self) -> bool:
        """Whether gradients are scaled so that those in float16 don't vanish."""
        return self.amp and self.amp_dtype == "float16"

    def steps(self, batches: int) -> int:
        """Return the steps of an epoch with so many batches."""
        return ceil(batches / self.accumulate)
