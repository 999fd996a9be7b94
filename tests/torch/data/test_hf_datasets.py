"""Data sets of the library datasets: from folders that it saved and from Parquet files, whole or as streams."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from onnxpart.errors import DataError, UsageError
from onnxpart.torch.data.loaders import DatasetLoader, StreamLoader
from onnxpart.torch.data.signature import Signature, signature
from onnxpart.torch.data.sources import Data, open_data
from tests.networks.storage import empty_memory

X = np.random.default_rng(0).normal(size=(25, 2, 4)).astype(np.float32)

FOLDERS = ("alone", "saved", "parquet")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples saved by the library, with and without splits, and in Parquet files: here and in a storage."""
    empty_memory(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    columns = {"target": list(range(25)), "x": X.tolist(), "words": ["some"] * 25}
    train = datasets.Dataset.from_dict(columns)
    test = train.select(range(5))
    train.save_to_disk("alone")
    datasets.DatasetDict({"train": train, "validation": test}).save_to_disk("saved")
    datasets.DatasetDict({"validation": test}).save_to_disk("untaught")
    Path("parquet").mkdir()
    train.select(range(12)).to_parquet("parquet/train-0.parquet")
    train.select(range(12, 25)).to_parquet("parquet/train-1.parquet")
    test.to_parquet("parquet/test.parquet")
    storage = fsspec.filesystem("memory")
    for folder in FOLDERS:
        storage.put(folder, f"memory://bucket/{folder}", recursive=True)


def inputs(name: str = "x") -> Signature:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2, 4])
    return signature(helper.make_graph([], "g", [value], []))


def opened(folder: str, steps: int | None = None) -> Data:
    return open_data(f"hf:{folder}", inputs(), batch_size=4, steps_per_epoch=steps)


def targets(loader: DatasetLoader | StreamLoader, *epochs: int) -> list[int]:
    return torch.cat([target for number in epochs for _, target in loader.epoch(number)]).tolist()


@pytest.mark.parametrize("folder", [*FOLDERS, *(f"memory://bucket/{folder}" for folder in FOLDERS), "file://{}/saved"])
def test_a_data_set_is_read_by_index(folder: str) -> None:
    data = opened(folder.format(Path.cwd()))
    assert isinstance(data.train, DatasetLoader)
    assert sorted(targets(data.train, 0)) == list(range(25))
    assert targets(data.train, 0) != targets(data.train, 1)
    x: Tensor
    for (x,), target in data.train.epoch(0):
        assert torch.equal(x, torch.from_numpy(X)[target])
    if folder.endswith("alone"):
        assert data.test is None
    else:
        assert isinstance(data.test, DatasetLoader)
        assert targets(data.test, 0) == list(range(5))


@pytest.mark.parametrize("folder", ["saved", "parquet", "memory://bucket/parquet"])
@pytest.mark.parametrize("read", [2, 6, 8, 13])
def test_a_stream_goes_on_from_its_state(folder: str, read: int) -> None:
    first, resumed = opened(folder, 4).train, opened(folder, 4).train
    assert isinstance(first, StreamLoader)
    assert isinstance(resumed, StreamLoader)
    assert targets(first, *range(5)) == [*range(25), *range(25), *range(24)]
    batches = (target.tolist() for number in range(5) for _, target in first.epoch(number))
    for _ in range(read):
        next(batches)
    state = first.state()
    assert state is not None
    assert resumed.restore(state)
    rest = [target.tolist() for _, target in resumed.epoch(read // 4, read % 4)]
    rest += [target.tolist() for number in range(read // 4 + 1, 5) for _, target in resumed.epoch(number)]
    assert rest == list(batches)


def test_another_machine_opens_a_data_set_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("saved", "memory://bucket/parquet"):
        data = opened(folder)
        assert isinstance(data.train, DatasetLoader)
        sent, wanted = pickle.dumps(data), targets(data.train, 0)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        monkeypatch.chdir("/")
        there = pickle.loads(sent).train
        assert targets(there, 0) == wanted
        assert torch.equal(there.dataset[3]["x"], torch.from_numpy(X)[3])
        monkeypatch.chdir(tmp_path)


def test_a_data_set_in_a_storage_is_read_again_when_it_has_changed() -> None:
    opened("memory://bucket/parquet")
    other = datasets.Dataset.from_dict({"target": [7] * 8, "x": X[:8].tolist()})
    other.to_parquet("other.parquet")
    fsspec.filesystem("memory").put_file("other.parquet", "memory://bucket/parquet/train-1.parquet")
    data = opened("memory://bucket/parquet").train
    assert isinstance(data, DatasetLoader)
    assert sorted(targets(data, 0)) == sorted([*range(12), *[7] * 8])


def test_data_sets_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"hf:saved has no column 'y' .it has 'target', 'x', 'words'.; name the columns after"
    ):
        open_data("hf:saved", inputs("y"), batch_size=4)
    with pytest.raises(DataError, match="hf:untaught has the splits 'validation', but no 'train'; give one"):
        opened("untaught")
    Path("empty").mkdir()
    for name in ("empty", str(Path("nothing").resolve())):
        with pytest.raises(
            DataError, match=rf"hf:{name} can't be read \(.*\); name a folder that datasets saved, one of"
        ):
            opened(name)
    with pytest.raises(DataError, match=r"memory://none can't be read \(No such file or directory\); check the URL"):
        opened("memory://none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UsageError, match=r"hf: needs the package datasets; install it from a checkout with `pip install '..data.'`"
    ):
        opened("saved")
