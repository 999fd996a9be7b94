"""Data sets of Hugging Face's library datasets: from its hub, folders that it saved, and folders of Parquet files.

Folders may be in a storage that fsspec reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils import data as torch_data

from onnxpart.errors import DataError, OnnxpartError, needs, reason
from onnxpart.storage.remote import Remote, cached, exists, place_of
from onnxpart.torch.data.batch import TARGET

_LEARN, _TEST = "train", ("test", "validation")
"""Names of the training split, and of the test split: the first that there is."""


def splits(name: str, inputs: Sequence[str], stream: bool) -> tuple[Any, Any | None]:
    """Return the training split of a data set, and its test split or None: inputs and target as tensors.

    :param name: a folder, also by its URL, or a name on the hub. :param stream: read it from its beginning to its end,
        in its own order.
    :raises UsageError: without the library. :raises DataError: when the data set can't be read, or lacks columns.
    :raises ModelError: when the storage can't be read.
    """
    found = _read(name, inputs, stream)
    if stream:
        return found
    place = place_of(name)
    known = str(place.resolve()) if isinstance(place, Path) and place.is_dir() else name
    again = partial(_read, known, inputs, stream)
    first, second = (None if split is None else Split(split, again, i) for i, split in enumerate(found))
    return first, second


class Split(torch_data.Dataset[Any]):
    """A split that is read by index; each process opens it for itself, since on another machine its files are others.

    :param again: reads the splits. :param place: of this one among them.
    """

    def __init__(self, split: Any, again: Callable[[], Sequence[Any]], place: int) -> None:
        self.again, self.place, self.length = again, place, len(split)
        self._split = split

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, i: int) -> Any:
        """Return a sample: tensors by column."""
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> Any:
        """Return several samples."""
        if self._split is None:
            self._split = self.again()[self.place]
        return self._split.__getitems__(indices)

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process."""
        return {**vars(self), "_split": None}


def _read(name: str, inputs: Sequence[str], stream: bool) -> tuple[Any, Any | None]:
    """Return the library's own splits (see `splits`)."""
    with needs("hf:", "data"):
        import datasets
    try:
        found = _loaded(datasets, name, stream)
    except OnnxpartError:
        raise
    except Exception as error:  # the library passes on errors of the readers of files
        raise DataError(
            f"hf:{name} can't be read ({type(error).__name__}: {reason(error)}); name a folder that datasets saved, "
            "one of Parquet files, or a data set of the hub."
        ) from None
    by_name = found if isinstance(found, dict) else {_LEARN: found}
    if _LEARN not in by_name:
        raise DataError(
            f"hf:{name} has the splits {', '.join(map(repr, by_name))}, but no {_LEARN!r}; give one that name."
        )
    test = next((split for split in _TEST if split in by_name), None)
    first, second = (
        None if split is None else _columns(f"hf:{name}", by_name[split], (*inputs, TARGET)) for split in (_LEARN, test)
    )
    if stream:
        first, second = (
            split.to_iterable_dataset() if isinstance(split, datasets.Dataset) else split for split in (first, second)
        )
    return first, second


def _loaded(datasets: Any, name: str, stream: bool) -> Any:
    """Return a data set as the library gives it; a stream of Parquet files in a storage is read from there."""
    place = place_of(name)
    saved = any(exists(place / file) for file in ("dataset_info.json", "dataset_dict.json"))
    if isinstance(place, Remote) and stream and not saved:
        splits = datasets.data_files.get_data_patterns(str(place))
        files = {split: [str(place / pattern) for pattern in patterns] for split, patterns in splits.items()}
        return datasets.load_dataset("parquet", data_files=files, streaming=True)
    here = cached(place)  # the library itself would miss that files have changed
    if saved:
        return datasets.load_from_disk(str(here))
    # a folder may have the name of a format
    return datasets.load_dataset(str(here.resolve()) if here.is_dir() else name, streaming=stream)


def _columns(name: str, split: Any, wanted: Sequence[str]) -> Any:
    have = split.column_names
    missing = [column for column in wanted if column not in (have or wanted)]
    if missing:
        raise DataError(
            f"{name} has no column {missing[0]!r} (it has {', '.join(map(repr, have))}); name the columns after the "
            f"graph's inputs, and {TARGET}."
        )
    return split.select_columns(list(wanted)).with_format("torch")
