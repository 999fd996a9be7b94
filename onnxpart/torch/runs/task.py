"""A training run as the commands take it: ONNX files in, trained files out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnxpart.errors import CheckpointError, UsageError
from onnxpart.merging.optimizer_state import OptimizerState, found_states, save_trained, state_file
from onnxpart.storage.atomic import check_plain, clear
from onnxpart.storage.outputs import check_file
from onnxpart.storage.remote import Place
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.images import Normalize
from onnxpart.torch.data.signature import signature
from onnxpart.torch.data.sources import Data, open_data
from onnxpart.torch.importer.import_onnx import import_onnx
from onnxpart.torch.importer.module import ImportedModule
from onnxpart.torch.runs.trained_file import deviation, read_whole, with_weights
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.engine import device_of
from onnxpart.torch.training.events import Epoch, Note, OnEvent
from onnxpart.torch.training.job import Ending, Result
from onnxpart.torch.training.losses import Loss
from onnxpart.torch.training.metrics import Metric, find_metric, metric_of
from onnxpart.torch.training.objective import Objective, find_objective
from onnxpart.torch.training.patience import Patience
from onnxpart.torch.training.ray_cluster import Cluster
from onnxpart.torch.training.settings import EngineKind, Settings
from onnxpart.torch.training.train import train


@dataclass(frozen=True)
class RunOptions:
    """How to train, in texts and numbers: `data` (see `sources.FORMS`), `loss` (see `objective.FORMS`), and more.

    Checkpoints are written at intervals of steps or minutes, `keep` of each part; `resume` goes on from them.
    `steps_per_epoch` is for data without a length, `normalize` for images, `label_smoothing` and `class_weights` for
    the loss cross_entropy. `metric`: see `metrics.FORMS`; None for the loss's own. `patience`: for how many epochs a
    network that is neither a part nor a control is trained without being better (see `Patience`); None for all.
    """

    data: str
    loss: str
    settings: Settings
    engine: EngineKind = "auto"
    cluster: Cluster = field(default_factory=Cluster)
    batch_size: int = 100
    workers: int = 0
    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 2
    resume: bool = False
    steps_per_epoch: int | None = None
    normalize: Normalize | None = None
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    metric: str | None = None
    patience: int | None = None

    def patience_by(self, metric: Metric) -> Patience | None:
        """Return the patience with a network that is judged by a metric."""
        return None if self.patience is None else Patience(self.patience, metric)


@dataclass(frozen=True)
class Task:
    """Networks of the same inputs and output, as modules, with the data, the loss and the metric that fit them."""

    modules: Sequence[ImportedModule]
    objective: Objective
    loss: Loss
    data: Data
    metric: Metric

    def build(self, model: onnx.ModelProto) -> ImportedModule:
        """Return another network of the same inputs and output as a module."""
        return import_onnx(self.objective.cut(model))

    def batch(self) -> Batch:
        """Return a batch of the test data, or else of the training data."""
        return next((self.data.train if self.data.test is None else self.data.test).epoch(0))


@dataclass(frozen=True)
class Trained:
    """A file that was written: its curve, and ONNX Runtime's deviation from the module (see `trained_file`).

    `epoch`: that whose weights it has: the last, or with patience the best. `gpu_memory`: see `Result`.
    """

    file: Path
    curve: list[Epoch]
    epoch: int
    metric: str
    deviation: float
    gpu_memory: int | None


def opened(model: onnx.ModelProto, options: RunOptions) -> Data:
    """Return the data, checked against the inputs of the model and of its parts.

    :raises OnnxpartError: when they can't be read, or don't fit.
    """
    return open_data(
        options.data,
        signature(model.graph),
        batch_size=options.batch_size,
        seed=options.settings.seed,
        workers=options.workers,
        steps_per_epoch=options.steps_per_epoch,
        normalize=options.normalize,
    )


def prepare(models: Sequence[onnx.ModelProto], options: RunOptions, data: Data | None = None) -> Task:
    """Return models of one split, or a single one, ready to be trained.

    :param data: the data, if they are `opened` already. :raises OnnxpartError: when data or loss don't fit, or a model
        can't be imported.
    """
    if options.engine != "ray":
        device_of(options.settings.device)  # before anything is written
    objective = find_objective(options.loss, models[0])
    data = opened(models[0], options) if data is None else data
    modules = [import_onnx(objective.cut(model)) for model in models]
    loss, data = objective.bind(modules[0], data, options.label_smoothing, options.class_weights)
    check_test(data, "--patience", options.patience)
    check_test(data, "--metric", options.metric)
    metric = metric_of(loss) if options.metric is None else find_metric(options.metric, loss)
    return Task(modules, objective, loss, data, metric)


def check_test(data: Data, name: str, given: object) -> None:
    """Check that there are test data if an option that needs them is given.

    :param name: of the option. :param given: its value; None if it was omitted. :raises UsageError: without test data.
    """
    if given is not None and data.test is None:
        raise UsageError(f"{name} needs test data, and there are none; add them to the data.")


def learn(
    task: Task,
    options: RunOptions,
    epochs: range,
    folder: Place,
    on_event: OnEvent,
    *,
    plan: str = "",
    states: Sequence[OptimizerState] | None = None,
    seconds: float = 0.0,
    ending: Ending | None = None,
) -> list[Result]:
    """Train a task's modules in place for some epochs, with checkpoints in a folder (see `train.train`)."""
    every = options.every_steps, options.every_minutes
    return train(
        task.modules,
        task.data.train,
        task.loss,
        options.settings,
        engine=options.engine,
        epochs=epochs,
        test=task.data.test,
        metric=task.metric.measure,
        states=states,
        checkpoints=Checkpoints(folder, *every, options.keep, options.resume, plan, _given(options)),
        seconds=seconds,
        ending=ending,
        cluster=options.cluster,
        on_event=on_event,
    )


def _given(options: RunOptions) -> dict[str, Any]:
    """The options that change what is learnt or measured and aren't settings, by the names that they are given with."""
    normalize = options.normalize
    return {
        "loss": options.loss,
        "metric": options.metric,
        "label_smoothing": options.label_smoothing,
        "class_weights": options.class_weights,
        "batch_size": options.batch_size,
        "patience": options.patience is not None,  # its best weights are in all checkpoints, or in none
        "mean": normalize and normalize.mean,
        "std": normalize and normalize.std,
    }


def train_files(
    files: Sequence[Path],
    options: RunOptions,
    checkpoints: Path,
    progress: Callable[[Task], OnEvent],
    *,
    plan: str = "",
) -> list[Trained]:
    """Train the models in files, which are replaced by the trained ones; ONNX Runtime then runs them.

    Training goes on from the optimizers' states beside the files, if there are some, and leaves them there (see
    `optimizer_state`).

    :param files: of the parts of one split, or a single one. :param checkpoints: a folder, which is removed at the end.
        :param progress: gives what receives the news of a task. :param plan: digest of the split's plan.
    :raises OnnxpartError: when something doesn't fit or fails; the files are then as they were.
    """
    clear(files[0].parent)
    for path in files:
        check_plain(path)
        check_file(state_file(path), True)
    if options.resume and not checkpoint.all_in(checkpoints):
        raise CheckpointError(f"{checkpoints} contains nothing to resume; leave out --resume to train from the files.")
    task = prepare([read_whole(path) for path in files], options)
    told = progress(task)
    states = _states(files, options, told)
    patience, epochs = options.patience_by(task.metric), range(options.settings.epochs)
    try:
        results = learn(task, options, epochs, checkpoints, told, plan=plan, states=states, ending=patience)
    finally:
        checkpoint.remove_empty(checkpoints)
    kept = None if patience is None else patience.kept(results[0].curve) + 1
    if patience is not None and len(results[0].curve) < len(epochs):
        told(Note(f"{files[0].stem} ends after epoch {len(results[0].curve)}: {patience}"))
    done = zip(files, task.modules, results, strict=True)
    save_trained(files, ((with_weights(module, path), result.state) for path, module, result in done))
    checkpoint.remove(checkpoints)
    return [
        Trained(
            path,
            result.curve,
            kept or len(result.curve),
            task.metric.name,
            deviation(module, task.objective, path, task.batch()),
            result.gpu_memory,
        )
        for path, module, result in zip(files, task.modules, results, strict=True)
    ]


def _states(files: Sequence[Path], options: RunOptions, told: OnEvent) -> list[OptimizerState] | None:
    """Return the states that earlier training left beside the files, if they are of the same optimizer."""
    found, wanted = found_states(files), options.settings.optimizer
    if not found:
        return None
    if any(state.kind != wanted for state in found):
        told(Note(f"{wanted} starts without state: {state_file(files[0])} was written by {found[0].kind}"))
        return None
    told(Note(f"{wanted} goes on from {', '.join(str(state_file(path)) for path in files)}"))
    return found
