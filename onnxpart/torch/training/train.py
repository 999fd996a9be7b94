"""Training: several parts, or one network, on the same batches, by a chosen engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from onnxpart.errors import UsageError
from onnxpart.merging.optimizer_state import OptimizerState
from onnxpart.torch.data.batch import Loader
from onnxpart.torch.training import checkpoint, loop, processes
from onnxpart.torch.training import ray_cluster as clusters
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.choose_engine import ENGINES, choose
from onnxpart.torch.training.engine import device_of, using
from onnxpart.torch.training.events import Epoch, EpochEnd, Event, Note, OnEvent, Steps, ignore
from onnxpart.torch.training.fused import Fused
from onnxpart.torch.training.job import Ending, Job, Result
from onnxpart.torch.training.losses import Criterion
from onnxpart.torch.training.metrics import Meter
from onnxpart.torch.training.ray_cluster import Cluster
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import EngineKind, Settings

__all__ = [
    "Criterion", "EngineKind", "Epoch", "EpochEnd", "Event", "Note", "OnEvent", "Result", "Settings", "Steps",
    "evaluate", "train",
]  # fmt: skip


def train(
    modules: Sequence[nn.Module],
    loader: Loader,
    loss: Criterion,
    settings: Settings,
    *,
    engine: EngineKind = "auto",
    epochs: range | None = None,
    test: Loader | None = None,
    metric: Criterion | Meter | None = None,
    states: Sequence[OptimizerState] | None = None,
    checkpoints: Checkpoints | None = None,
    seconds: float = 0.0,
    ending: Ending | None = None,
    cluster: Cluster = Cluster(),  # noqa: B008
    on_event: OnEvent = ignore,
) -> list[Result]:
    """Train modules in place, side by side on the same batches in the same order; leave them in evaluation mode.

    :param engine: `series`: one part after the other. `fused`: parts of equal shapes as one batched module. `auto`: the
        faster of the two, measured on copies. `processes`: each part in a process of its own, on a GPU of its own where
        there are several; a script that asks for it needs `if __name__ == "__main__":`. `ray`: each part as a task on a
        `cluster`. With the same seed all engines give the same result, but for rounding. Each part draws its dropout
        masks from a generator of its own.
    :param epochs: those to train, by number; all of the settings' when omitted. Schedule, order of samples and dropout
        depend on the number, so that a merged whole goes on where its parts ended.
    :param test: the data for loss and metric after each epoch. :param metric: output and target of a batch -> mean over
        its samples, or a meter, which sees all samples.
    :param states: one for each module, to go on from: of an earlier result, or merged.
    :param seconds: of training so far; the curves count on from there.
    :param ending: what may end the training of a single module before its epochs do, and says which epoch's weights it
        keeps: for example a `Patience`. If there are checkpoints, resume only with those that were written with one.
    :param on_event: called with news: `Steps`, `EpochEnd`, `Note`.
    :returns: for each module its curve and the state of its optimizer.
    :raises OnnxpartError: when the loss is no longer a number, memory runs out, or a state or checkpoint doesn't fit.
    :raises UsageError: when the parts can't be trained as asked.
    """
    scheduled = range(settings.first, settings.epochs)
    epochs = scheduled if epochs is None else epochs
    if not modules or len(loader) == 0:
        raise UsageError(f"there are no {'batches' if modules else 'modules'} to train; give at least one.")
    if epochs.step != 1 or epochs.start < scheduled.start or epochs.stop > scheduled.stop:
        raise UsageError(f"epochs {epochs} aren't among the settings' {scheduled}; ask for some of those.")
    if states is not None and len(states) != len(modules):
        raise UsageError(f"{len(states)} states were given for {len(modules)} modules; give one for each.")
    if ending is not None and len(modules) > 1:
        raise UsageError(
            f"patience ends the training of one network, and these are {len(modules)}; train each alone, or without it."
        )
    numbers = tuple(range(len(modules)))
    job = Job(modules, numbers, loader, loss, settings, epochs, test, metric, states, checkpoints, seconds, ending)
    if engine == "ray":
        return clusters.run(job, cluster, on_event)
    device = device_of(settings.device)
    if engine == "processes":
        return processes.run(job, on_event)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with loop.memory("the trial of engines", lambda: numbers):
            kind, why = _chosen(job, engine, device)
        if why:
            on_event(Note(why))
        return loop.run(job, kind, device, on_event)


def _chosen(job: Job, engine: EngineKind, device: torch.device) -> tuple[type[Series] | type[Fused], str]:
    """Return the engine, and why: the given one, the one that wrote the checkpoints to resume, or the faster one.

    :raises UsageError: when the engine isn't known.
    """
    if engine in ENGINES:
        return ENGINES[engine], ""
    if engine != "auto":
        raise UsageError(f"the engine {engine!r} isn't known; choose one of {', '.join(get_args(EngineKind))}.")
    step = loop.resumable(job.checkpoints, job.numbers) if job.checkpoints else None
    if job.checkpoints is None or step is None:
        return choose(job, device)
    wrote = checkpoint.about(checkpoint.path_of(job.checkpoints, 0, step)).get("engine")
    return ENGINES[str(wrote)], f"engine {wrote}, as in the checkpoint"


def evaluate(
    module: nn.Module,
    loader: Loader,
    loss: Criterion,
    metric: Criterion | Meter | None = None,
    settings: Settings = Settings(0),  # noqa: B008
) -> tuple[float, float | None]:
    """Return a module's mean loss and metric over the samples of a loader; leave it in evaluation mode.

    :param settings: with the device and the precision; the others have no effect.
    """
    job, device = Job([module], (0,), loader, loss, settings, range(0), metric=metric), device_of(settings.device)
    with using(device):
        found = loop.evaluated(Series(job, device), loop.near(loader, device))[0]
    return found[0], found[1] if metric else None
