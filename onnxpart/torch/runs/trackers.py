"""Where the curves of a run are drawn as well: TensorBoard, Weights & Biases or MLflow, by one interface.

Lightning's loggers have one, too, but they need Lightning, and in W&B they draw all networks over one count of steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from onnxpart.errors import OnnxpartError, UsageError, reason
from onnxpart.storage.outputs import EVENTS

TrackerKind = Literal["tensorboard", "wandb", "mlflow"]
_PROJECT = "onnxpart"
"""The project, or experiment, of runs for which the tracker's own variable names none."""


class Tracker(Protocol):
    """What a tracker does for one run; it raises errors of its own."""

    @property
    def run(self) -> str | None:
        """By what the tracker knows the run, if a resumed one needs it."""

    def draw(self, network: str, values: Mapping[str, float], axis: str, step: int) -> None:
        """Draw a point of some curves of a network, over its own count of batches or epochs: `axis` names it."""

    def close(self, failed: bool) -> None:
        """End the run."""


class _TensorBoard:
    """Event files in the folder of the run."""

    run = None

    def __init__(self, package: Any, folder: Path, options: Mapping[str, Any], run: str | None) -> None:
        self.writer = package.SummaryWriter(str(folder / EVENTS))
        if run is None:
            self.writer.add_text("options", "\n".join(f"* {name}: {value}" for name, value in options.items()))

    def draw(self, network: str, values: Mapping[str, float], axis: str, step: int) -> None:  # noqa: ARG002
        for name, value in values.items():
            self.writer.add_scalar(f"{network}/{name}", value, step)

    def close(self, failed: bool) -> None:  # noqa: ARG002
        self.writer.close()


class _WandB:
    """A run of Weights & Biases; its own variables (`WANDB_MODE`, `WANDB_PROJECT`, ..) hold."""

    def __init__(self, package: Any, folder: Path, options: Mapping[str, Any], run: str | None) -> None:
        project, quiet = os.environ.get("WANDB_PROJECT", _PROJECT), package.Settings(console="off")
        again = {} if run is None else {"id": run, "resume": "allow"}
        self.board = package.init(
            project=project, name=folder.resolve().name, config=dict(options), settings=quiet, **again
        )
        self.run = str(self.board.id)
        self.defined: set[str] = set()

    def draw(self, network: str, values: Mapping[str, float], axis: str, step: int) -> None:
        named, over = {f"{network}/{name}": value for name, value in values.items()}, f"{network}/{axis}"
        for name in sorted(named.keys() - self.defined):
            self.board.define_metric(name, step_metric=over)
        self.defined |= named.keys()
        self.board.log({**named, over: step})

    def close(self, failed: bool) -> None:
        self.board.finish(exit_code=int(failed))


class _MLflow:
    """A run of MLflow; its own variables (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, ..) hold."""

    def __init__(self, package: Any, folder: Path, options: Mapping[str, Any], run: str | None) -> None:
        self.package = package
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            package.set_experiment(_PROJECT)
        self.run = str(package.start_run(run_id=run, run_name=folder.resolve().name).info.run_id)
        if run is None:
            package.log_params(dict(options))

    def draw(self, network: str, values: Mapping[str, float], axis: str, step: int) -> None:  # noqa: ARG002
        self.package.log_metrics({f"{network}/{name}": value for name, value in values.items()}, step=step)

    def close(self, failed: bool) -> None:
        self.package.end_run("FAILED" if failed else "FINISHED")


_KINDS: dict[TrackerKind, tuple[str, Any]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _WandB),
    "mlflow": ("mlflow", _MLflow),
}
"""Kind -> its module, and what starts a run with that, the folder, the options and the run that goes on."""


def check(kind: TrackerKind) -> None:
    """Check that a tracker is installed.

    :raises UsageError: when it isn't.
    """
    try:
        import_module(_KINDS[kind][0])
    except ImportError:
        raise UsageError(f"--log-to {kind} needs the package {kind}; install it with `pip install {kind}`.") from None


def started(kind: TrackerKind, folder: Path, options: Mapping[str, Any], run: str | None = None) -> Tracker:
    """Start a run in a tracker that is installed, under the name of the folder, or go on with one.

    :param options: the hyperparameters by name. :param run: what goes on, by the tracker's word.
    :raises OnnxpartError: when the tracker can't.
    """
    module, start = _KINDS[kind]
    try:
        found: Tracker = start(import_module(module), folder, options, run)
    except Exception as error:  # each tracker raises errors of its own
        raise OnnxpartError(
            f"{kind} can't begin a run ({reason(error)}); set it up as its guide says, or leave out --log-to."
        ) from None
    return found
