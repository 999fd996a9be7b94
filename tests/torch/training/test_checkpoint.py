"""Checkpoints: a killed run goes on to the same result, and what can't be gone on from is said."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import onnxpart.torch
from onnxpart.errors import CheckpointError, Interrupted, ModelError, OnnxpartError
from onnxpart.storage.safetensors import read_metadata
from onnxpart.torch.data.batch import Loader
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training import train as trainer
from onnxpart.torch.training.checkpoint import METADATA, Checkpoints
from onnxpart.torch.training.events import ignore
from onnxpart.torch.training.loop import SIGNALS
from onnxpart.torch.training.train import EngineKind, Event, Note, OnEvent, Result, Settings, Steps, train
from tests.networks.training import Failing, check_equal, parts, small, stripes

torch.set_num_threads(1)
SETTINGS = Settings(epochs=3, lr=0.01, optimizer="adam", schedule="cosine", device="cpu", seed=3)
"""Six batches an epoch."""


def modules() -> list[nn.Module]:
    return parts(small(dropout=0.2, norm=True))


def run(
    mine: list[nn.Module],
    folder: Path,
    settings: Settings = SETTINGS,
    engine: EngineKind = "series",
    loader: Loader | None = None,
    checkpoints: Mapping[str, Any] = MappingProxyType({}),
    on_event: OnEvent = ignore,
) -> list[Result]:
    kept = Checkpoints(folder, **{"every_steps": 2, "every_minutes": None, **checkpoints})
    return train(
        mine,
        loader or stripes(),
        F.cross_entropy,
        settings,
        engine=engine,
        test=stripes(20, 60),
        checkpoints=kept,
        on_event=on_event,
    )


def stop() -> None:
    raise RuntimeError("stopped")


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_a_killed_run_goes_on_bit_for_bit(engine: EngineKind, tmp_path: Path) -> None:
    """The process is killed in mid-epoch with kill -9, between two checkpoints."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.networks.training import *; from tests.torch.training.test_checkpoint import *\n"
        f"run(modules(), Path(sys.argv[1]), engine={engine!r}, loader=Failing(stripes(), (1, 3), kill))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], check=False, env=os.environ | paths)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.steps(Checkpoints(tmp_path / "killed"), 0) == [6, 8]

    one, other = modules(), modules()
    straight = run(one, tmp_path / "straight", engine=engine)
    notes: list[Event] = []
    resumed = run(other, tmp_path / "killed", engine=engine, checkpoints={"resume": True}, on_event=notes.append)
    assert any(isinstance(note, Note) and "parts 0, 1: resumed at step 8" in note.text for note in notes)
    assert sum(len(event.losses) for event in notes if isinstance(event, Steps)) == 10
    check_equal(straight, resumed, one, other)


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_what_torch_exports_is_trained_and_goes_on(engine: EngineKind, tmp_path: Path) -> None:
    """Norms without a count of batches, and constants that are infinite, as those of a causal mask."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(288, 10)
            self.register_buffer("mask", torch.tensor([0.0] * 9 + [-torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu().flatten(1)) + self.mask.softmax(0)  # type: ignore[no-any-return]

    onnxpart.torch.export(Masked(), next(stripes().epoch(0))[0], tmp_path / "masked.onnx", exporter="torchscript")
    first, second = (parts(onnx.load(tmp_path / "masked.onnx")) for _ in range(2))
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in first[0].modules())
    expected = run(first, tmp_path / "whole", engine=engine)
    with pytest.raises(RuntimeError, match="stopped"):
        run(second, tmp_path / "cut", engine=engine, loader=Failing(stripes(), (1, 3), stop))
    check_equal(expected, run(second, tmp_path / "cut", engine=engine, checkpoints={"resume": True}), first, second)


def test_auto_goes_on_with_the_engine_of_the_checkpoint(tmp_path: Path) -> None:
    run(modules(), tmp_path, engine="fused")
    notes: list[Event] = []
    run(modules(), tmp_path, engine="auto", checkpoints={"resume": True}, on_event=notes.append)
    assert any(isinstance(note, Note) and note.text.startswith("engine fused, as in the checkpoint") for note in notes)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    one, other = modules(), modules()
    straight = run(one, tmp_path)
    assert checkpoint.steps(Checkpoints(tmp_path), 1) == [16, 18]
    check_equal(straight, run(other, tmp_path, checkpoints={"resume": True}), one, other)


def test_accumulated_gradients_are_whole_at_a_checkpoint(tmp_path: Path) -> None:
    settings, one, other = replace(SETTINGS, accumulate=4), modules(), modules()
    straight = run(one, tmp_path / "straight", settings)
    loader, broken = Failing(stripes(), (1, 5), stop), tmp_path / "broken"
    with pytest.raises(RuntimeError, match="stopped"):
        run(modules(), broken, settings, loader=loader, checkpoints={"every_steps": 1})
    assert checkpoint.steps(Checkpoints(broken), 0) == [2, 3]
    check_equal(straight, run(other, broken, settings, checkpoints={"resume": True}), one, other)


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    run(modules(), tmp_path, checkpoints={"keep": 3})
    assert checkpoint.steps(Checkpoints(tmp_path), 0) == checkpoint.steps(Checkpoints(tmp_path), 1) == [14, 16, 18]
    assert len(list(tmp_path.iterdir())) == 6


def test_checkpoints_are_written_by_the_clock_too(tmp_path: Path) -> None:
    often = {"every_steps": None, "every_minutes": 1e-9}
    with pytest.raises(RuntimeError, match="stopped"):
        run(modules(), tmp_path / "often", loader=Failing(stripes(), (1, 3), stop), checkpoints=often)
    assert checkpoint.steps(Checkpoints(tmp_path / "often"), 0) == [8, 9]


def test_checkpoints_are_written_at_the_end_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = {"every_steps": None, "every_minutes": 10.0}
    for share, kept in ((0, [6, 12]), (1e9, [6])):  # one that costs nothing, or too much
        monkeypatch.setattr("onnxpart.torch.training.loop._SHARE", share)
        with pytest.raises(RuntimeError, match="stopped"):
            run(modules(), tmp_path / f"{share}", loader=Failing(stripes(), (2, 3), stop), checkpoints=seldom)
        assert checkpoint.steps(Checkpoints(tmp_path / f"{share}"), 0) == kept


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_goes_on_to_more_epochs_than_before(tmp_path: Path, schedule: str) -> None:
    few = replace(SETTINGS, epochs=2, schedule=schedule)
    more, longer = replace(few, epochs=3), range(3)
    one, other = modules(), modules()
    run(modules(), tmp_path / "kept", few)
    straight = run(one, tmp_path / "straight", more)
    resumed = run(other, tmp_path / "kept", more, checkpoints={"resume": True})
    assert [len(result.curve) for result in resumed] == [len(longer)] * 2
    if schedule == "constant":
        check_equal(straight, resumed, one, other)
    with pytest.raises(CheckpointError, match="is of another run: epochs was 3 there and is 2 here"):
        run(modules(), tmp_path / "kept", few, checkpoints={"resume": True})


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        run(modules(), tmp_path, loader=Failing(stripes(), (1, 3), stop))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("onnxpart.storage.safetensors.write_rows", full)
        with pytest.raises(ModelError, match=r"can't be written \(No space left on device"):
            run(modules(), tmp_path, checkpoints={"resume": True})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    one, other = modules(), modules()
    check_equal(run(one, tmp_path, checkpoints={"resume": True}), run(other, tmp_path / "straight"), one, other)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(modules(), tmp_path, checkpoints={"plan": "one"})
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run; resume it, or remove them"):
        run(modules(), tmp_path)
    with pytest.raises(CheckpointError, match="is of another run: plan was 'one' there and is 'two' here"):
        run(modules(), tmp_path, checkpoints={"plan": "two", "resume": True})
    with pytest.raises(CheckpointError, match=r"is of another run: lr was 0.01 there and is 0.5 here"):
        run(modules(), tmp_path, replace(SETTINGS, lr=0.5), checkpoints={"plan": "one", "resume": True})
    others: list[nn.Module] = parts(small(), 2)
    with pytest.raises(CheckpointError, match="is of another model; resume with the parts that it was written for"):
        run(others, tmp_path, checkpoints={"plan": "one", "resume": True})


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(modules(), tmp_path)
    path = checkpoint.path_of(Checkpoints(tmp_path), 1, 18)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-9] + b"\x00" * 9, b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"part1-step000000018.safetensors is damaged; delete it to go on"):
            run(modules(), tmp_path, checkpoints={"resume": True})
    path.write_bytes(content)
    arrays, text = load_file(path), read_metadata(path)[METADATA]
    save_file(arrays, path, {METADATA: text.replace('"taken": 18', '"taken": 17')})
    with pytest.raises(CheckpointError, match="is damaged"):
        run(modules(), tmp_path, checkpoints={"resume": True})
    save_file(arrays, path, {METADATA: text.replace('"version": 3', '"version": 99')})
    with pytest.raises(CheckpointError, match="has format 99, but this version reads 3"):
        run(modules(), tmp_path, checkpoints={"resume": True})
    path.unlink()
    run(modules(), tmp_path, checkpoints={"resume": True})  # from step 16, which both parts have
    assert checkpoint.steps(Checkpoints(tmp_path), 1) == [16, 18]


def test_the_last_good_checkpoint_is_kept_when_the_loss_is_no_number(tmp_path: Path) -> None:
    mine = modules()

    def spoil() -> None:
        with torch.no_grad():
            next(mine[1].parameters()).fill_(torch.nan)

    with pytest.raises(OnnxpartError, match=r"part 1: the loss is nan at step 9; .*part1-step000000008.safetensors"):
        run(mine, tmp_path, loader=Failing(stripes(), (1, 3), spoil))
    assert checkpoint.steps(Checkpoints(tmp_path), 1) == [6, 8]


@pytest.fixture
def hangups() -> Iterator[None]:
    """A hangup ends what it comes to, though `nohup` may have started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupting_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    one, other = modules(), modules()
    before = [signal.getsignal(each) for each in SIGNALS]

    sent: list[int] = []

    def interrupt() -> None:
        sent.append(number)
        os.kill(os.getpid(), number)

    def gone(_: Event) -> None:
        if sent:
            raise OSError(5, "Input/output error")

    with pytest.raises(Interrupted, match=r"stopped at step 10; resume from .*stopped to go on") as caught:
        run(modules(), tmp_path / "stopped", loader=Failing(stripes(), (1, 3), interrupt), on_event=gone)
    assert caught.value.exit_code == 130
    assert [signal.getsignal(each) for each in SIGNALS] == before
    straight = run(one, tmp_path / "straight")
    check_equal(straight, run(other, tmp_path / "stopped", checkpoints={"resume": True}), one, other)


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        loader = Failing(stripes(), (1, 3), lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert all(len(result.curve) == 3 for result in run(modules(), tmp_path, loader=loader))
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("in_tests", [True, False])
def test_out_of_memory_names_part_and_batch(in_tests: bool, tmp_path: Path) -> None:
    def exhaust() -> None:
        torch.empty(2**60)

    class Exhausting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            if self.training != in_tests:
                exhaust()
            result: Tensor = self.inner(x)
            return result

    fine = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    where = "the test" if in_tests else "batch 0"
    with pytest.raises(OnnxpartError, match=f"part 1: out of memory in {where} of epoch 0; take smaller batches"):
        run([fine, Exhausting()], tmp_path)


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_out_of_memory_before_the_first_batch(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(said)

    mine = modules()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "to", full)
        with pytest.raises(OnnxpartError, match="parts 0, 1: out of memory in the set-up; take smaller batches"):
            run(mine, tmp_path)
    monkeypatch.setattr(trainer, "choose", full)
    with pytest.raises(OnnxpartError, match="parts 0, 1: out of memory in the trial of engines; take smaller batches"):
        train(modules(), stripes(), F.cross_entropy, SETTINGS)
