"""News of a training run: bars or lines on stderr, a file of JSON lines, and the curves in a tracker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from onnxpart.errors import ModelError, UsageError, reason
from onnxpart.storage.atomic import check_plain
from onnxpart.storage.json_text import from_json
from onnxpart.torch.runs import trackers
from onnxpart.torch.runs.trackers import Tracker, TrackerKind
from onnxpart.torch.training.events import Epoch, EpochEnd, Event, Note, OnEvent, Steps

PARTS = "parts"
"""The stage in which parts are trained."""
METRICS = "metrics.jsonl"
"""The file of a run's news."""


class RunProgress:
    """Shows and records the stages of a run, as a context manager; `train` calls what `stage` returns with its news.

    A terminal shows a bar for each group of parts; anything else gets a line for each epoch. `folder` gets
    `metrics.jsonl`, which a resumed run appends to; it goes on with the same run of the tracker.

    :param log_to: the tracker; when omitted TensorBoard, if it is installed. :param options: the hyperparameters that
        the tracker shows. :raises UsageError: when a tracker that is asked for isn't installed.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        *,
        resume: bool = False,
        log_to: TrackerKind | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = BarColumn(20), TimeRemainingColumn(), TextColumn("{task.description}", table_column=rest)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self.folder, self.console, self.resume = folder, console, resume
        self.file: IO[str] | None = None
        self.log_to, self.options = log_to or _default(), options
        if log_to:
            trackers.check(log_to)
        self.tracker: Tracker | None = None

    def __enter__(self) -> RunProgress:
        """Start the display; the file is opened with the first news, so that a run that can't start leaves none."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display, and close the files."""
        self.progress.stop()
        if self.file is not None:
            self.file.close()
        with self._tracking() as tracker:
            if tracker is not None:
                tracker.close(kind is not None)

    def note(self, text: str) -> None:
        """Show a sentence."""
        if text:
            self.console.print(f"note: {text}")

    def stage(self, name: str, epochs: range, metric: str) -> OnEvent:
        """Return the function that receives the news of a stage.

        :param name: the name of the stage: `parts`, or a network. :param metric: the name of its metric.
        """
        return _Stage(self, name, epochs, metric)

    def record(self, line: dict[str, Any]) -> None:
        """Append a line to the file."""
        if self.file is None:
            self._open()
        assert self.file is not None
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def draw(self, network: str, values: Mapping[str, float | None], axis: str, step: int) -> None:
        """Draw a point of each curve of a network in the tracker; `axis`: what its steps are, batches or epochs."""
        with self._tracking() as tracker:
            if tracker is not None:
                found = {name: value for name, value in values.items() if value is not None}
                tracker.draw(network, found, axis, step)

    @contextmanager
    def _tracking(self) -> Iterator[Tracker | None]:
        """The tracker, if there is one; one that fails isn't asked again."""
        try:
            yield self.tracker
        except Exception as error:  # each tracker raises errors of its own
            self.tracker = None
            self.note(f"{self.log_to} takes no more news ({reason(error)}); the run goes on without it")

    def _open(self) -> None:
        """Open the file, and start the tracker; the file keeps by what that knows the run."""
        before = self._tracked() if self.resume else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_plain(self.folder / METRICS)
            self.file = (self.folder / METRICS).open("a" if self.resume else "w", encoding="utf-8")
        except OSError as error:
            raise ModelError(f"{self.folder} can't be written ({error.strerror}); choose another folder.") from None
        if self.log_to is None:
            return
        self.tracker = trackers.started(self.log_to, self.folder, self.options, before)
        if self.tracker.run != before:
            self.record({"tracker": self.log_to, "run": self.tracker.run})

    def _tracked(self) -> str | None:
        """Return by what the tracker knows the run that goes on; None if it doesn't know it."""
        path = self.folder / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = [from_json(line) for line in lines if line.startswith('{"tracker"')]
        return next((line["run"] for line in reversed(found) if line["tracker"] == self.log_to), None)


class _Stage:
    def __init__(self, run: RunProgress, name: str, epochs: range, metric: str) -> None:
        self.run, self.name, self.epochs, self.metric = run, name, epochs, metric
        self.bars: dict[tuple[int, ...], TaskID] = {}
        self.before: dict[tuple[int, ...], tuple[int, int, float]] = {}
        self.judged: dict[int, str] = {}

    def __call__(self, event: Event) -> None:
        """Show and record an event."""
        if isinstance(event, Note):
            self.run.note(event.text)
        elif isinstance(event, Steps):
            self._steps(event)
        else:
            self._epoch(event)

    def _steps(self, event: Steps) -> None:
        """Record some steps, and move the bar of their parts on."""
        losses = [sum(column) / len(column) for column in zip(*event.losses, strict=True)]
        rate, parts = self._rate(event), event.parts
        self.run.record({"stage": self.name, "epoch": event.epoch, "batch": event.batch, "parts": parts,
                           "loss": losses, "samples_per_second": rate, "seconds": event.seconds})  # fmt: skip
        done = (event.epoch - self.epochs.start) * event.batches + event.batch
        for part, loss in zip(parts, losses, strict=True):
            step = event.epoch * event.batches + event.batch
            self.run.draw(self._network(part), {"loss of batches": loss}, "batch", step)
        shown = [", ".join(f"{loss:.4g}" for loss in losses), *(self.judged[p] for p in parts if p in self.judged)]
        text = f"{self._title(event)}: loss {'; '.join(shown)}; {rate:,.0f} samples/s"
        total = len(self.epochs) * event.batches
        if parts not in self.bars:
            self.bars[parts] = self.run.progress.add_task(text, total=total)
        self.run.progress.update(self.bars[parts], description=text, completed=done)

    def _rate(self, event: Steps) -> float:
        """Return the samples per second since the last news of these parts."""
        epoch, samples, seconds = self.before.get(event.parts, (event.epoch, 0, 0.0))
        self.before[event.parts] = event.epoch, event.samples, event.seconds
        seen = event.samples - (samples if epoch == event.epoch else 0)
        return seen / max(event.seconds - seconds, 1e-9)

    def _epoch(self, event: EpochEnd) -> None:
        """Record the end of an epoch, and show it."""
        found = event.result
        values = {"train_loss": found.train_loss, "loss": found.loss, "metric": found.metric}
        self.run.record({"stage": self.name, "epoch": event.epoch, "part": event.part, **values,
                           "seconds": found.seconds})  # fmt: skip
        self.run.draw(self._network(event.part), _figures(found, self.metric), "epoch", event.epoch + 1)
        words = told(found, self.metric)
        self.judged[event.part] = words.rpartition(", ")[2]
        if self.run.progress.disable:
            self.run.console.print(f"{self._title(event)}: {words}")

    def _network(self, part: int) -> str:
        """Return the name of a network for a tracker."""
        return f"part {part}" if self.name == PARTS else self.name

    def _title(self, event: Steps | EpochEnd) -> str:
        network = self._network(event.part) if isinstance(event, EpochEnd) else self.name
        return f"epoch {event.epoch + 1}/{self.epochs.stop}, {network}"


def told(epoch: Epoch, metric: str) -> str:
    """Return an epoch's figures in words; `metric` is the name of the last."""
    return ", ".join(f"{name} {value:.4g}" for name, value in _figures(epoch, metric).items() if value is not None)


def _figures(epoch: Epoch, metric: str) -> dict[str, float | None]:
    """Return an epoch's figures by name."""
    return {"loss in training": epoch.train_loss, "loss in test": epoch.loss, metric: epoch.metric}


def _default() -> TrackerKind | None:
    """Return the tracker of a run that asks for none: TensorBoard, if it is installed."""
    try:
        trackers.check("tensorboard")
    except UsageError:
        return None
    return "tensorboard"
