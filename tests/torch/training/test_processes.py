"""Parts in processes of their own: the same result as in one, and what happens when a process ends early."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from onnxpart.errors import Interrupted, OnnxpartError, UsageError
from onnxpart.torch.data.batch import Batch, Loader
from onnxpart.torch.data.loaders import DatasetLoader, TensorLoader
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.loop import SIGNALS
from onnxpart.torch.training.train import EpochEnd, Event, Note, Result, Settings, train
from tests.networks.training import Failing, accuracy, check_equal, kill, parts, small, stripes

torch.set_num_threads(1)
SETTINGS = Settings(epochs=2, lr=0.01, optimizer="adam", device="cpu", seed=3)


def test_parts_in_processes_are_trained_as_in_one(tmp_path: Path) -> None:
    """With a process that is killed in mid-epoch, and the run resumed."""
    one, other = (parts(small(dropout=0.2, norm=True)) for _ in range(2))
    data, test, events = stripes(), stripes(20, 60), list[Event]()
    series = train(one, data, F.cross_entropy, SETTINGS, engine="series", test=test, metric=accuracy)

    def processes(loader: Loader, *, resume: bool) -> list[Result]:
        kept = Checkpoints(tmp_path, every_steps=2, every_minutes=None, resume=resume)
        return train(
            other,
            loader,
            F.cross_entropy,
            SETTINGS,
            engine="processes",
            test=test,
            metric=accuracy,
            checkpoints=kept,
            on_event=events.append,
        )

    with pytest.raises(OnnxpartError, match=r"part [01]: its process ended with code -9; resume from .* to go on"):
        processes(Failing(data, (1, 3), kill), resume=False)
    assert any(checkpoint.steps(Checkpoints(tmp_path), number) for number in (0, 1))
    resumed = processes(data, resume=True)
    check_equal(series, resumed, one, other)
    assert any(isinstance(event, Note) and ": resumed at step" in event.text for event in events)
    assert {event.part for event in events if isinstance(event, EpochEnd)} == {0, 1}
    assert not any(module.training for module in other)


class Noted(TensorDataset):
    """Samples whose reading is noted in a file."""

    def __init__(self, note: Path, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.note = note

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        with self.note.open("a") as file:
            file.write(f"{i}\n")
        return super().__getitem__(i)


def test_processes_read_their_data_once_by_workers_of_one(tmp_path: Path) -> None:
    one, other = (parts(small()) for _ in range(2))
    samples, settings = stripes(), Settings(epochs=1, lr=0.01, device="cpu")
    data, test = (Noted(tmp_path / name, *samples.inputs, samples.target) for name in ("data", "test"))
    tested = DatasetLoader(test, ("x",), 10, shuffle=False)
    loader = DatasetLoader(data, ("x",), 10)
    series = train(one, loader, F.cross_entropy, settings, engine="series", test=tested)
    loader = replace(loader, workers=1)
    apart = train(other, loader, F.cross_entropy, settings, engine="processes", test=tested)
    check_equal(series, apart, one, other)
    for note in (data.note, test.note):
        assert sorted(map(int, note.read_text().split())) == sorted([*range(len(data)), *range(len(data))])


def test_what_cant_be_sent_is_said() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    with pytest.raises(UsageError, match=r"can't be sent to another process .* or use the engine series"):
        train(parts(small()), stripes(), loss, SETTINGS, engine="processes")


def test_an_error_in_a_process_is_the_runs() -> None:
    modules = parts(small())
    with torch.no_grad():
        next(modules[1].parameters()).mul_(torch.nan)
    with pytest.raises(OnnxpartError, match="part 1: the loss is nan at step 0"):
        train(modules, stripes(), F.cross_entropy, SETTINGS, engine="processes")


@dataclass(frozen=True)
class Interrupting:
    """A loader that sends every signal to its process, and one to the run, before a batch of the second epoch."""

    inner: TensorLoader

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for i, batch in enumerate(self.inner.epoch(number, start), start):
            if (number, i) == (1, 3):
                for own in SIGNALS:
                    os.kill(os.getpid(), own)
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(2)  # until word is passed on
            yield batch


def test_interrupting_reaches_processes_by_the_run_alone(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, every_steps=100, every_minutes=None)
    with pytest.raises(Interrupted, match=r"stopped at step 10; resume from .* to go on"):
        train(
            parts(small())[:1],
            Interrupting(stripes()),
            F.cross_entropy,
            SETTINGS,
            engine="processes",
            checkpoints=kept,
        )
    assert checkpoint.steps(kept, 0) == [10]
