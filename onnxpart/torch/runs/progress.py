"""News of a training run: bars or lines on stderr, a file of JSON lines, TensorBoard where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from onnxpart.errors import ModelError
from onnxpart.storage.atomic import check_plain
from onnxpart.torch.training.events import Epoch, EpochEnd, Event, Note, OnEvent, Steps

PARTS = "parts"
"""The stage in which parts are trained."""
METRICS = "metrics.jsonl"
"""The file of a run's news."""


class RunProgress:
    """Shows and records the stages of a run, as a context manager; `train` calls what `stage` returns with its news.

    A terminal shows a bar for each group of parts; anything else gets a line for each epoch. `folder` gets
    `tensorboard/`, and `metrics.jsonl`, which a resumed run appends to.
    """

    def __init__(self, folder: Path, console: Console, *, resume: bool = False) -> None:
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = BarColumn(20), TimeRemainingColumn(), TextColumn("{task.description}", table_column=rest)
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self.folder, self.console, self.resume = folder, console, resume
        self.file: IO[str] | None = None
        self.board: Any = None

    def __enter__(self) -> RunProgress:
        """Start the display; the file is opened with the first news, so that a run that can't start leaves none."""
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display, and close the files."""
        self.progress.stop()
        for opened in (self.file, self.board):
            if opened is not None:
                opened.close()

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

    def draw(self, name: str, value: float | None, step: int) -> None:
        """Draw a point of a curve in TensorBoard."""
        if self.board is not None and value is not None:
            self.board.add_scalar(name, value, step)

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_plain(self.folder / METRICS)
            self.file = (self.folder / METRICS).open("a" if self.resume else "w", encoding="utf-8")
        except OSError as error:
            raise ModelError(f"{self.folder} can't be written ({error.strerror}); choose another folder.") from None
        writer = _summary_writer()
        self.board = writer(str(self.folder / "tensorboard")) if writer else None


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
            self.run.draw(f"{self.name}/{part}/batch loss", loss, event.epoch * event.batches + event.batch)
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
        for name, value in values.items():
            self.run.draw(f"{self.name}/{event.part}/{name}", value, event.epoch + 1)
        words = told(found, self.metric)
        self.judged[event.part] = words.rpartition(", ")[2]
        if self.run.progress.disable:
            self.run.console.print(f"{self._title(event)}: {words}")

    def _title(self, event: Steps | EpochEnd) -> str:
        part = f"part {event.part}" if isinstance(event, EpochEnd) and self.name == PARTS else self.name
        return f"epoch {event.epoch + 1}/{self.epochs.stop}, {part}"


def told(epoch: Epoch, metric: str) -> str:
    """Return an epoch's figures in words; `metric` is the name of the last."""
    values = {"loss in training": epoch.train_loss, "loss in test": epoch.loss, metric: epoch.metric}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


def _summary_writer() -> Callable[[str], Any] | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    result: Callable[[str], Any] = SummaryWriter
    return result
