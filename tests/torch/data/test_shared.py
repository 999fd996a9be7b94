"""Batches that processes read once: the same for all, whoever reads, and whoever ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.torch.data import shared as module
from onnxpart.torch.data.batch import Batch, Loader
from onnxpart.torch.data.loaders import DatasetLoader, ForeignLoader, Opened, StreamLoader, TensorLoader
from onnxpart.torch.data.shared import Shared, SharedStream, folder_name, shared

COUNT, SIZE = 12, 3


class Counted(torch_data.Dataset[Any]):
    """Samples with noise of their own, which notes what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.read.append(i)
        return torch.rand(2), i


class Batches:
    """Batches as views of one tensor, in their order, over and over; they can tell where they are."""

    def __init__(self, samples: Counted) -> None:
        self.samples, self.at, self.begins = samples, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        begins, self.begins = self.begins, 0
        everything = torch.arange(COUNT * 2.0).reshape(COUNT, 2)
        for self.at in range(begins + 1, COUNT // SIZE + 1):
            rows = slice((self.at - 1) * SIZE, self.at * SIZE)
            yield everything[rows], torch.tensor([self.samples[i][1] for i in range(COUNT)[rows]])

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begins = state["at"]


def by_index(samples: Counted) -> Loader:
    return DatasetLoader(samples, ("x",), SIZE)


def in_its_order(samples: Counted) -> Loader:
    return ForeignLoader(Opened(lambda: Batches(samples)), ("x",))


def streamed(samples: Counted) -> StreamLoader:
    return StreamLoader(Opened(lambda: Batches(samples)), ("x",), 3)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one[0][0], other[0][0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("make", [by_index, in_its_order, streamed])
def test_each_batch_is_read_once_and_the_same_for_all(make: Any, tmp_path: Path) -> None:
    """One process is two epochs ahead when it ends, and another one reads on."""
    samples = Counted()
    wanted = [list(make(Counted()).epoch(number)) for number in range(3)]
    with shared(tmp_path / "both", make(samples), None) as (first, _):
        ahead = [batch for number in range(2) for batch in first.epoch(number)]
        with shared(tmp_path / "both", make(samples), None) as (second, _):
            found = list(second.epoch(0))
            first.close()  # type: ignore[attr-defined]
            found += [batch for number in (1, 2) for batch in second.epoch(number)]
        assert (tmp_path / "both").exists()
    assert not (tmp_path / "both").exists()
    flat = [batch for epoch in wanted for batch in epoch]
    assert len(found) == len(flat)
    assert all(map(equal, found, flat))
    assert all(map(equal, ahead, flat))
    assert len(samples.read) == sum(len(target) for _, target in flat)


def test_who_is_far_behind_reads_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    samples = Counted()
    first, second = (Shared(by_index(samples), tmp_path) for _ in range(2))
    wanted = list(first.epoch(0))
    assert all(map(equal, list(second.epoch(0)), wanted))
    assert len(samples.read) == 2 * COUNT
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_without_space_each_reads_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    samples = Counted()
    first, second = (Shared(by_index(samples), tmp_path) for _ in range(2))
    assert all(equal(one, other) for one, other in zip(first.epoch(0), second.epoch(0), strict=True))
    assert len(samples.read) == 2 * COUNT


def test_each_process_knows_where_a_stream_is(tmp_path: Path) -> None:
    samples = Counted()
    first, second = (SharedStream(streamed(samples), tmp_path) for _ in range(2))
    list(first.epoch(0))
    reading = second.epoch(0)
    next(reading), next(reading)
    state = second.state()
    assert state is not None
    resumed = streamed(Counted())
    assert resumed.restore(state)
    rest, wanted = list(resumed.epoch(0, 2)), list(streamed(Counted()).epoch(0))
    assert all(map(equal, rest, wanted[2:]))
    list(first.epoch(1))
    list(second.epoch(1))
    assert second.passes == first.passes == [4]


def test_only_a_batch_is_left_and_not_what_it_is_a_view_of(tmp_path: Path) -> None:
    large = torch.zeros(1 << 20)
    next(Shared(ForeignLoader([(large[:3], large[:3])], ("x",)), tmp_path).epoch(0))
    assert (tmp_path / "0-0.pt").stat().st_size < large.nbytes / 100


def test_the_next_run_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    """A copy of a folder in use has the same files, and nobody holds its locks."""
    alive, killed, own = (tmp_path / folder_name() for _ in range(3))
    (tmp_path / "another").mkdir()
    with shared(alive, by_index(Counted()), None) as (first, _):
        list(first.epoch(0))
        shutil.copytree(alive, killed)
        with shared(own, by_index(Counted()), None):
            assert not killed.exists()
            assert list(alive.glob("train/*.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_data_in_memory_are_not_shared(tmp_path: Path) -> None:
    loader = TensorLoader((torch.zeros(4, 2),), torch.zeros(4), 2)
    with shared(tmp_path / "none", loader, loader) as found:
        assert found == (loader, loader)
    assert not (tmp_path / "none").exists()
