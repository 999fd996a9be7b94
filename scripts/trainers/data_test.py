"""Data of libraries that people have: their batches are the samples, and an epoch is the same entered at any batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from onnx import TensorProto, helper
from PIL import Image

from onnxpart.torch.data.batch import Source
from onnxpart.torch.data.images import Normalize
from onnxpart.torch.data.loaders import DatasetLoader, StreamLoader
from onnxpart.torch.data.signature import Signature, signature
from onnxpart.torch.data.sources import open_data
from tests.networks.command import equal, run

SAMPLES = """
import os, signal
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

with np.load("data.npz") as file:
    X, Y = torch.from_numpy(file["x"]), torch.from_numpy(file["target"])
read = 0

def sample(i):
    global read
    read += 1
    if read == int(os.environ.get("STOP", -1)):
        os.kill(os.getpid(), signal.SIGINT)
    return X[i], Y[i]

class Map(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return sample(i)

class Stream(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (sample(i) for i in range(first, len(X), step))

class Stateful(Stream):
    at = begins = 0

    def __iter__(self):
        begins, self.begins = self.begins, 0
        for self.at in range(begins + 1, len(X) + 1):
            yield sample(self.at - 1)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.begins = state["at"]

def shuffled(): return StatefulDataLoader(Map(), batch_size=10, shuffle=True)
def dropping(): return StatefulDataLoader(Map(), batch_size=10, shuffle=True, drop_last=True)
def stream(): return StatefulDataLoader(Stream(), batch_size=10)
def by_workers(): return StatefulDataLoader(Stream(), batch_size=10, num_workers=2)
def stateful(): return StatefulDataLoader(Stateful(), batch_size=10)

def pictures():
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    same = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5, 0.25, 0.1), (0.5, 0.25, 0.2))]
    drawn = [v2.RandomResizedCrop(8), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)]
    return ImageFolder("images/train", v2.Compose([*drawn, *same])), ImageFolder("images/test", v2.Compose(same))

def tar():
    import webdataset
    return webdataset.WebDataset("data.tar", shardshuffle=False).decode().to_tuple("x.npy", "target.cls")
"""
WARNINGS = ("'set_vital' is deprecated", "unclosed file", "Exception ignored in")
"""Of torchdata, and of webdataset, which leaves closing its files to Python."""
pytestmark = pytest.mark.filterwarnings(*(f"ignore:{text}" for text in WARNINGS))


@pytest.fixture(autouse=True)
def _module(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module `own`, and the samples in a tar file, too."""
    (here / "own.py").write_text(SAMPLES)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with np.load("data.npz") as file, webdataset.TarWriter("data.tar") as tar:
        for i, (x, y) in enumerate(zip(file["x"], file["target"], strict=True)):
            tar.write({"__key__": f"{i:03d}", "x.npy": x, "target.cls": int(y)})


def taking(*dims: int) -> Signature:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *dims])
    return signature(helper.make_graph([], "g", [value], []))


INPUTS = taking(2, 4, 4)


def opened(name: str, steps: int | None = None) -> Source:
    return open_data(f"own:{name}", INPUTS, batch_size=10, steps_per_epoch=steps).train


def batches(source: Source, first: int = 0) -> list[torch.Tensor]:
    """Those of four epochs from one on, counted through all."""
    size = len(source)
    epochs = ((number, first % size if number == first // size else 0) for number in range(first // size, 4))
    return [x for number, start in epochs for (x,), _ in source.epoch(number, start)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize(("name", "count"), [("shuffled", 45), ("dropping", 40)])
def test_torchdatas_loader_of_a_dataset_can_be_entered_anywhere(name: str, count: int) -> None:
    first, again = opened(name), opened(name)
    assert isinstance(first, DatasetLoader)
    wanted = batches(first)
    assert sum(map(len, wanted)) == 4 * count
    assert not torch.equal(wanted[0], wanted[len(first)])
    assert same(batches(again, 7), wanted[7:])


@pytest.mark.parametrize("read", [1, 5, 8])
@pytest.mark.parametrize(("name", "told"), [("stream", True), ("by_workers", True), ("stateful", True), ("tar", False)])
def test_a_stream_goes_on_where_it_was(name: str, told: bool, read: int) -> None:
    """In the first pass, at its end, and in the second; without a state the data are read again."""
    first, before, again = opened(name, 3), opened(name, 3), opened(name, 3)
    assert isinstance(before, StreamLoader)
    assert isinstance(again, StreamLoader)
    wanted = batches(first)
    with np.load("data.npz") as file:
        seen = torch.cat(wanted)[:45].flatten(1).numpy()
        assert {x.tobytes() for x in seen} == {x.tobytes() for x in file["x"].reshape(45, -1)}
    reading = (x for number in range(4) for x, _ in before.epoch(number))
    for _ in range(read):
        next(reading)
    state = before.state()
    assert (state is not None) == told
    assert state is None or again.restore(state)
    assert same(batches(again, read), wanted[read:])


def test_torchvisions_transforms_draw_the_same_for_all(here: Path) -> None:
    """In whichever process, and from any batch on; each epoch anew. What isn't drawn is as `folder:` has it.

    `.venv-trainers` has no torchvision: it must be of the same build as torch.
    """
    pytest.importorskip("torchvision")
    rng = np.random.default_rng(0)
    for i in range(18):
        place = here / "images" / ("test" if i > 11 else "train") / ("dog" if i % 2 else "cat") / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place)
    first, again = (open_data("own:pictures", taking(3, 8, 8), batch_size=5, workers=workers) for workers in (0, 2))
    wanted = batches(first.train)
    assert all(image.isfinite().all() for image in wanted)
    assert same(batches(again.train, 4), wanted[4:])
    seen = torch.cat(wanted)
    assert len(torch.unique(seen, dim=0)) == len(seen) == 4 * 12
    by_name = Normalize((0.5, 0.25, 0.1), (0.5, 0.25, 0.2))
    folder = open_data("folder:images", taking(3, 8, 8), batch_size=5, normalize=by_name)
    assert first.test is not None
    assert folder.test is not None
    for (own, label), (other, target) in zip(first.test.epoch(0), folder.test.epoch(0), strict=True):
        torch.testing.assert_close(own, other)
        assert torch.equal(label, target)


def test_fit_goes_on_with_torchdatas_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--steps-per-epoch", 3, "--epochs", 4, "--merge-at", 3, "--engine", "series", "--lr", 0.05)
    fit = ("fit", "chain.onnx", "--data", "own:stateful", *options)
    run(*fit, "-o", "straight")
    monkeypatch.delitem(sys.modules, "own")
    monkeypatch.setenv("STOP", "95")
    run(*fit, "-o", "out", code=130)
    monkeypatch.delenv("STOP")
    resumed = run(*fit, "-o", "out", "--resume")
    assert "resumed at step" in resumed.stderr
    assert "read again" not in resumed.stderr
    assert equal("out/trained.onnx", "straight/trained.onnx")
