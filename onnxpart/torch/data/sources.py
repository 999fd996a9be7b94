"""What `--data` names: built-in digits, CIFAR-10's files, arrays, images by class, the library datasets, a function."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError, ModelError, UsageError, needs
from onnxpart.storage.remote import Place, contents, place_of, reading
from onnxpart.torch.data import hf_datasets
from onnxpart.torch.data.batch import TARGET, Prepare, Source
from onnxpart.torch.data.images import (
    SUFFIXES,
    Crops,
    ImageFolder,
    Normalize,
    Samples,
    centre,
    cifar10,
    crop_of,
    laid_out,
    mnist5k,
)
from onnxpart.torch.data.loaders import (
    DatasetLoader,
    ForeignLoader,
    Opened,
    StreamLoader,
    TensorLoader,
    length_of,
)
from onnxpart.torch.data.signature import Port, Signature

FORMS = "mnist5k, cifar10:FOLDER, npz:FILE, folder:PATH, hf:NAME_OR_FOLDER or module:function"


@dataclass(frozen=True)
class Data:
    """Training data, and test data if there are any."""

    train: Source
    test: Source | None

    def prepared(self, prepare: Prepare) -> Data:
        """Return the samples that `prepare` makes of these."""
        return Data(self.train.prepared(prepare), None if self.test is None else self.test.prepared(prepare))


@dataclass(frozen=True)
class _Loading:
    """How samples become batches."""

    inputs: Signature
    batch_size: int
    seed: int
    workers: int
    steps_per_epoch: int | None

    def tensors(self, inputs: Sequence[Tensor], target: Tensor, *, train: bool) -> Source:
        return TensorLoader(tuple(inputs), target, self.batch_size, self.seed, shuffle=train)

    def dataset(self, dataset: torch_data.Dataset[Any], *, train: bool) -> Source:
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise DataError("the data hold no samples; give at least one.")
        return DatasetLoader(dataset, self.inputs.names, self.batch_size, self.seed, train, self.workers)


def open_data(
    text: str,
    inputs: Signature,
    *,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    steps_per_epoch: int | None = None,
    normalize: Normalize | None = None,
) -> Data:
    """Return the samples that `text` names, one of `FORMS`, checked against the graph's inputs.

    Data in memory are checked whole. Of other data the first batch is checked now, and every other one when it is read;
    `workers` processes read them. A user's DataLoader keeps its own batch size and workers.

    :param steps_per_epoch: batches in an epoch, for training data without a length. :param normalize: of images.
    :raises UsageError: for a text of another form, a function that can't be imported, or an option that is for other
        data.
    :raises DataError: when the data can't be read, are empty, or don't fit the graph.
    """
    found = _found(text, _Loading(inputs, batch_size, seed, workers, steps_per_epoch))
    if steps_per_epoch is not None and not isinstance(found.train, StreamLoader):
        raise UsageError(f"--data {text!r} has {len(found.train)} batches in an epoch; leave out --steps-per-epoch.")
    found = found.prepared(inputs)
    if normalize is not None:
        if _form(text)[0] not in _IMAGES:
            raise UsageError(
                f"--mean and --std don't apply to the data {text!r}; give {', '.join(_IMAGES)}, or normalise the "
                "data yourself."
            )
        found = found.prepared(normalize)
    for source in (found.train, found.test):
        if source is not None:
            _check_batch(source, inputs, batch_size)
    return found


def _found(text: str, loading: _Loading) -> Data:
    """Return the samples that a text names, unchecked.

    :raises UsageError: for a text of another form. :raises DataError: when they can't be read.
    """
    kind, rest = _form(text)
    try:
        if kind == "mnist5k" and not rest:
            return _mnist5k(loading)
        if kind in _OPENERS and rest:
            return _OPENERS[kind](rest, loading)
        if rest and kind not in _OPENERS:
            return _from_function(text, loading)
    except ModelError as error:  # of a storage
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{error.filename} can't be read ({error.strerror}); check the path.") from None
    raise UsageError(f"--data {text!r} has no known form; give {_likely(text)}.")


def _form(text: str) -> tuple[str, str]:
    """Return what kind of data a text names, and the rest of it; a path that ends in .npz is of the kind npz."""
    kind, _, rest = text.partition(":")
    return ("npz", text) if text.endswith(".npz") and kind not in _OPENERS else (kind, rest)


def _likely(text: str) -> str:
    """Return the likely form of a text that has none, or all forms."""
    path = Path(text)
    if path.suffix == ".npy":
        return (
            f"npz:{path.with_suffix('.npz')}, written with np.savez under the names of the graph's inputs, and {TARGET}"
        )
    if path.is_dir():
        return f"folder:{text} for images by class, or cifar10:{text}"
    return FORMS


def _check_batch(source: Source, inputs: Signature, batch_size: int) -> None:
    """Read the first batch, which checks it, and compare its size with the graph's fixed size."""
    samples, _ = next(source.epoch(0), ((), None))
    if not samples:
        raise DataError("the data hold no samples; give at least one.")
    fixed = inputs.fixed_batch
    if fixed is None:
        return
    if len(samples[0]) != fixed:
        raise DataError(
            f"the graph takes batches of {fixed} samples, but the data come in batches of {len(samples[0])}; export it "
            f"with a symbolic batch, or train with --batch-size {fixed}."
        )
    count = len(source.target) if isinstance(source, TensorLoader) else 0
    if count % batch_size:
        raise DataError(
            f"the graph takes batches of {fixed} samples, and {count} samples leave a smaller last batch; export it "
            "with a symbolic batch, or leave samples out."
        )


# -- images in memory -------------------------------------------------------------------------------------------------
def read_by(text: str) -> list[Path]:
    """The file or folder on this machine that `text` names, if it names one."""
    kind, rest = _form(text)
    place = place_of(rest)
    return [place] if kind in _OPENERS and rest and isinstance(place, Path) else []


def _mnist5k(loading: _Loading) -> Data:
    port = _only_port("mnist5k", loading.inputs)
    train, test = mnist5k()
    return Data(*(_images("mnist5k", samples, port, loading, train=samples is train) for samples in (train, test)))


def _cifar10(folder: str, loading: _Loading) -> Data:
    """For a graph that takes smaller images: random crops, also mirrored, to train; the middle to test."""
    name = f"cifar10:{folder}"
    port = _only_port(name, loading.inputs)
    train, test = cifar10(place_of(folder))
    size = crop_of((3, 32, 32), port)
    if size is None:
        return Data(*(_images(name, samples, port, loading, train=samples is train) for samples in (train, test)))
    crops = Crops(name, torch.from_numpy(train[0]), torch.from_numpy(train[1]), size, port)
    middle = centre(torch.from_numpy(test[0]), size).numpy(), test[1]
    return Data(loading.dataset(crops, train=True), _images(name, middle, port, loading, train=False))


def _images(name: str, samples: Samples, port: Port, loading: _Loading, *, train: bool) -> Source:
    pixels = laid_out(name, torch.from_numpy(samples[0]), port)
    return loading.tensors([pixels], torch.from_numpy(samples[1]), train=train)


def _only_port(name: str, inputs: Signature) -> Port:
    if len(inputs.ports) != 1:
        raise DataError(f"{name} contains only images, but the graph has {len(inputs.ports)} inputs; use npz:FILE.")
    return inputs.ports[0]


# -- arrays -----------------------------------------------------------------------------------------------------------
def _npz(path: str, loading: _Loading) -> Data:
    arrays = _read_npz(path)
    train = _arrays(path, arrays, "", loading.inputs.names)
    test = "test_" + TARGET in arrays
    return Data(
        loading.tensors(*train, train=True),
        loading.tensors(*_arrays(path, arrays, "test_", loading.inputs.names), train=False) if test else None,
    )


def _read_npz(path: str) -> dict[str, NDArray[Any]]:
    """Read the named arrays of a file, on this machine or in a storage (`s3://`, `gs://`, ..).

    :raises DataError: when it isn't a file of such arrays. :raises ModelError: when the storage can't be read.
    """
    try:
        with reading(place_of(path)) as here, here.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise DataError(f"{path} contains one array without a name; write it with np.savez.")
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}); check the path.") from None
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} can't be read as arrays ({error}); write it with np.savez.") from None


def _arrays(
    path: str, arrays: Mapping[str, NDArray[Any]], prefix: str, names: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Return the samples from arrays with the names of the graph's inputs behind a prefix."""
    wanted = [prefix + name for name in (*names, TARGET)]
    for name in wanted:
        if name not in arrays:
            have = ", ".join(map(repr, arrays)) or "none"
            raise DataError(
                f"{path} has no array {name!r} (it has {have}); save {', '.join(names)} and {TARGET}, and the same "
                "with test_ in front for samples to test."
            )
        if arrays[name].dtype.kind not in "biuf" or not arrays[name].ndim:
            raise DataError(
                f"{path}: {name!r} is {arrays[name].dtype} {list(arrays[name].shape)}; save an array of numbers "
                "whose first axis is the samples."
            )
    *inputs, target = (torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in wanted)
    return inputs, target


# -- images on disk ---------------------------------------------------------------------------------------------------
def _folder(name: str, loading: _Loading) -> Data:
    """Return the images of a folder, by class; it may be in a storage."""
    place, port = place_of(name), _only_port(f"folder:{name}", loading.inputs)
    if len(port.dims) != 4 or not {1, 3} & {port.dims[1], port.dims[3]}:
        raise DataError(f"the graph's {port.name!r} is {port}, which isn't images of 1 or 3 channels; use npz:FILE.")
    with needs("a folder of images", "train"):
        import PIL  # noqa: F401
    inside = {folder.name: folder for folder in contents(place)[0]}
    train, test = inside.get("train"), inside.pop("test", None)
    folders = contents(train)[0] if train else [*inside.values()]
    classes = {folder.name: label for label, folder in enumerate(folders)}
    found = [_files(folders, classes), _files(contents(test)[0], classes) if test else []]
    if not found[0]:
        raise DataError(f"{train or place} has no subfolders of images, one for each class; name a folder that has.")
    sources = [loading.dataset(ImageFolder(files, port), train=files is found[0]) if files else None for files in found]
    assert sources[0] is not None
    return Data(sources[0], sources[1])


def _files(folders: Sequence[Place], classes: Mapping[str, int]) -> list[tuple[Place, int]]:
    """Return the images in the folders of classes, and their labels.

    :raises DataError: for a folder that isn't of a class.
    """
    for folder in folders:
        if folder.name not in classes:
            raise DataError(f"{folder} is of the class {folder.name!r}, which the training images lack; remove it.")
    return [
        (path, classes[folder.name])
        for folder in folders
        for path in contents(folder)[1]
        if PurePath(path.name).suffix.lower() in SUFFIXES
    ]


# -- functions --------------------------------------------------------------------------------------------------------
def find_function(text: str, what: str) -> Callable[..., Any]:
    """Return the function that `module:function` names; modules in the current folder are also found.

    :raises UsageError: when it can't be imported.
    """
    module, _, name = text.partition(":")
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise UsageError(
            f"the {what} {text!r} can't be imported ({type(error).__name__}: {error}); name it as module:function."
        ) from None
    if not callable(function):
        raise UsageError(f"the {what} {text!r} is a {type(function).__name__}, not a function; name a function.")
    result: Callable[..., Any] = function
    return result


def _from_function(text: str, loading: _Loading) -> Data:
    """Return the batches of a user's function's result: training data, or a pair of training and test data."""
    function = find_function(text, "data")
    try:
        made = function()
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise DataError(f"{text} fails ({type(error).__name__}: {error}); make it work without arguments.") from None
    return _from_made(text, function, made, loading)


def _hf(name: str, loading: _Loading) -> Data:
    stream = loading.steps_per_epoch is not None
    read = partial(hf_datasets.splits, name, loading.inputs.names, stream)
    return _from_made(f"hf:{name}", read, read(), loading)


def _from_made(text: str, function: Callable[..., Any], made: Any, loading: _Loading) -> Data:
    """Return the batches of a function's result, a pair or training data; for streams the function is called again."""
    pair = isinstance(made, tuple) and len(made) == 2
    train, test = made if pair else (made, None)
    again = partial(_made_again, function, 0 if pair else None, loading.batch_size)
    first = _from_object(text, train, loading, again, train=True)
    again = partial(_made_again, function, 1, loading.batch_size)
    return Data(first, None if test is None else _from_object(text, test, loading, again, train=False))


def _made_again(function: Callable[..., Any], place: int | None, batch_size: int) -> Iterable[Any]:
    """Call a user's function; return the batches of its result, or of the result's element at `place`."""
    made = function()
    return _batches(made if place is None else made[place], batch_size)


def _from_object(
    text: str, found: Any, loading: _Loading, again: Callable[[], Iterable[Any]], *, train: bool
) -> Source:
    """Return the batches of a user's function's result; for streams those of the results of further calls."""
    if hasattr(found, "__getitem__") and not isinstance(found, torch_data.IterableDataset):
        if length_of(found) is None:
            raise DataError(f"{text} gives a {type(found).__name__} without a length; define __len__.")
        return loading.dataset(found, train=train)
    if not isinstance(found, Iterable):
        raise DataError(
            f"{text} gives a {type(found).__name__}; return a Dataset, an iterable of batches (such as a "
            "DataLoader), or a pair of them."
        )
    batches = _batches(found, loading.batch_size)
    if length_of(batches) is not None:
        return _from_loader(batches, loading)
    if not train:
        return ForeignLoader(Opened(again), loading.inputs.names, loading.seed)
    if loading.steps_per_epoch is None:
        raise DataError(f"{text} gives data without a length; set the length of an epoch with --steps-per-epoch.")
    return StreamLoader(Opened(again), loading.inputs.names, loading.steps_per_epoch, loading.seed)


def _batches(found: Any, batch_size: int) -> Iterable[Any]:
    """Return an iterable of batches; samples are collated into batches."""
    batches: Iterable[Any] = found
    if hasattr(found, "iter_torch_batches"):  # a Dataset of Ray Data
        return found.iter_torch_batches(batch_size=batch_size)  # type: ignore[no-any-return]
    if isinstance(found, torch_data.IterableDataset):
        batches = torch_data.DataLoader(found, batch_size=batch_size)
    return batches


def _from_loader(loader: Iterable[Any], loading: _Loading) -> Source:
    """Return the batches of a loader; a plain DataLoader becomes a `DatasetLoader`, which can resume.

    That of torchdata has samplers of its own, whose order depends on what was read before.
    """
    if not isinstance(loader, torch_data.DataLoader):
        return ForeignLoader(loader, loading.inputs.names, loading.seed)
    sampler: Any = loader.sampler
    kinds = [type(each).__name__ for each in (loader.batch_sampler, sampler) if _is_known(each)]
    shuffle = kinds == ["BatchSampler", "RandomSampler"]
    if not shuffle and kinds != ["BatchSampler", "SequentialSampler"]:
        return ForeignLoader(loader, loading.inputs.names, loading.seed)
    if shuffle and (sampler.replacement or sampler.num_samples != length_of(loader.dataset)):
        return ForeignLoader(loader, loading.inputs.names, loading.seed)
    assert loader.batch_size is not None
    return DatasetLoader(
        loader.dataset,
        loading.inputs.names,
        loader.batch_size,
        loading.seed,
        shuffle,
        loader.num_workers,
        loader.collate_fn,
        loader.drop_last,
    )


def _is_known(sampler: object) -> bool:
    """Whether a sampler is torch's or torchdata's own, and not a user's."""
    return type(sampler).__module__.partition(".")[0] in ("torch", "torchdata")


_IMAGES = ("mnist5k", "cifar10", "folder")
"""Kinds of data that are images from 0 to 1."""
_OPENERS: Mapping[str, Callable[[str, _Loading], Data]] = {
    "cifar10": _cifar10,
    "npz": _npz,
    "folder": _folder,
    "hf": _hf,
}
