"""What may be replaced: only what onnxpart wrote, and nothing that was read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from onnxpart.errors import ModelError
from onnxpart.storage.atomic import check_plain, clear, names_in
from onnxpart.storage.json_text import from_json
from onnxpart.storage.onnx_file import data_files, read
from onnxpart.storage.remote import check_local
from onnxpart.storage.safetensors import read_metadata

MARK = {"onnxpart.written": "yes"}
"""Metadata of a file that has no other metadata from onnxpart."""
EVENTS = "tensorboard"
"""In the folder of a training run: the folder of TensorBoard's event files."""
GENERATOR = "<!-- written by onnxpart -->"
"""The beginning of a page, and of a picture beside it."""
_PREFIX, _HEAD = "onnxpart.", 1024
_KNOWN = re.compile(
    r"plan\.json|(part\d+|whole|original|merged|trained)(\.onnx((\.\d+)?\.data)?|\.optimizer\.safetensors|\.training)"
    rf"|training|parts|whole|round\d+|to\d+|baseline|shorter|one part|copies|checkpoints|{EVENTS}"
    r"|part\d+-step\d+\.safetensors|report\.json|report\.md|run\.yaml|metrics\.jsonl|\..*\.onnxpart[a-z-]*"
)
"""Names of what onnxpart writes into the folder of a split, or of a training run, and into those in it."""
_PLANS = ("plan.json", "part0.onnx", "parts/plan.json")
"""Files by which such a folder is recognized."""


def check_file(path: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a file over something that mustn't be replaced.

    :param force: replace a file that onnxpart wrote. :param inputs: files that are read, which are never replaced, nor
        their external data.
    :raises ModelError: when it is an input, a link, or not a file; or when it exists, unless `force` is given and
        onnxpart wrote it.
    """
    check_local(path)
    check_plain(path)
    if not path.exists():
        return
    _check_inputs(path, inputs)
    if not force:
        raise ModelError(f"{path} exists already; give another file, or --force to replace it.")
    if not is_own(path):
        raise ModelError(f"{path} wasn't written by onnxpart and isn't replaced; give another file, or remove it.")


def check_folder(path: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a folder over something that mustn't be replaced.

    :param force: replace a folder that holds nothing, or only what onnxpart wrote. :param inputs: files and folders
        that are read, which are never replaced.
    :raises ModelError: when an input is in it; when it is a link, or not a folder; or when it exists, unless `force` is
        given and onnxpart wrote it.
    """
    check_local(path)
    if not path.exists() and path.parent.is_dir():
        clear(path.parent)
    if path.is_symlink():
        raise ModelError(f"{path} is a symbolic link; name the folder itself, or remove the link.")
    if not path.exists():
        return
    _check_inputs(path, inputs)
    if not path.is_dir():
        raise ModelError(f"{path} isn't a folder; give another name.")
    if not force:
        raise ModelError(f"{path} exists already; give another folder, or --force to replace it.")
    strange = _stranger(path)
    if strange is not None:
        raise ModelError(f"{path} holds {strange}, which onnxpart didn't write; give another folder, or move it.")


def is_mark(key: str) -> bool:
    """Whether a key of metadata is onnxpart's."""
    return key.startswith(_PREFIX)


def is_own(path: Path) -> bool:
    """Whether onnxpart wrote a file, or it is empty."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head or GENERATOR.encode() in head:
        return True
    if path.suffix == ".json":
        return any(f'"{key}"'.encode() in head for key in MARK)
    try:
        if path.suffix == ".safetensors":
            return any(map(is_mark, read_metadata(path)))
        return any(is_mark(entry.key) for entry in read(path).metadata_props)
    except ModelError:
        return False


def _with_data(path: Path) -> list[Path]:
    """A model's file, with those of its external data; the file alone when it isn't ONNX."""
    if not path.is_file() or path.suffix in (".safetensors", ".json"):
        return [path]
    try:
        return [path, *data_files(path)]
    except ModelError:
        return [path]


def _stranger(folder: Path) -> str | None:
    """A file in a folder that onnxpart didn't write; None if it wrote everything."""
    if any(_is_plan(folder / name) for name in _PLANS):
        return _unknown(folder)
    return next(iter(names_in(folder)), None)


def _unknown(folder: Path) -> str | None:
    """The first name in a folder with a plan, or in its subfolders, that isn't one of onnxpart's."""
    strange = []
    for name in names_in(folder):
        path = folder / name
        known = _KNOWN.fullmatch(name) is not None and not path.is_symlink()
        if known and path.is_dir():
            inner = None if name == EVENTS else _unknown(path)
            strange += [f"{name}/{inner}"] if inner else []
        elif not (known and path.is_file()) and not is_own(path):
            strange.append(name)
    if strange:
        models = [folder / name for name in names_in(folder) if is_own(folder / name)]
        data = {file.name for model in models for file in _with_data(model)}
        strange = [name for name in strange if name not in data]
    return strange[0] if strange else None


def _is_plan(path: Path) -> bool:
    """Whether a file holds a plan: as JSON, or in a part."""
    if path.suffix == ".onnx":
        return is_own(path)
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema", "k", "initializers"} <= found.keys()


def _check_inputs(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse to replace what is read.

    :raises ModelError: when an input, or one of the files of its external data, is at `path`, or below it.
    """
    for file in (file for source in inputs for file in _with_data(source)):
        same = _same(path, file)
        if same or path.resolve() in file.resolve().parents:
            what = "is an input of this command" if same else f"holds {file}, which is read"
            raise ModelError(f"{path} {what}; give another name for the output.")


def _same(one: Path, other: Path) -> bool:
    """Whether two names lead to the same file, also through links."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
