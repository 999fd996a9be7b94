"""Parts in processes of their own: the same result as in one, and what happens when a process ends early."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training import Failing, accuracy, check_equal, kill, parts, small, stripes

from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch import checkpoint
from onnxpart.torch.checkpoint import Checkpoints
from onnxpart.torch.data import Loader
from onnxpart.torch.train import EpochEnd, Event, Note, Result, Settings, train

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
