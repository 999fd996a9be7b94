"""Checkpoints: one file per part and step, each written whole or not at all, from which a run goes on."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import torch
from torch import Tensor

from onnxpart.errors import CheckpointError, ModelError
from onnxpart.storage.atomic import names_in
from onnxpart.storage.json_text import from_json
from onnxpart.storage.remote import Place, Remote, reading, unlink, writing
from onnxpart.storage.rows import Array
from onnxpart.storage.safetensors import read_metadata, read_safetensors, save_arrays
from onnxpart.torch.tensors import to_tensor
from onnxpart.torch.training.optim import Slots

VERSION = 3
METADATA = "onnxpart.checkpoint"
"""Key under which a file carries what isn't a tensor."""
_TENSORS, _SLOTS, _BEST = "module/", "optimizer/", "best/"
_FILE = re.compile(r"part(\d+)-step(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints go, and how often: at intervals of steps, of minutes, or both; `keep` of each part.

    With intervals of minutes there is also one at the end of each epoch, unless that would take much of the time.

    `resume`: go on from the newest, if there is one. `plan`: the split that the parts come from. `given`: options by
    name that a run must have in common with it to go on, besides its settings. `written`: whether
    this process writes them; otherwise another one does, which trains the same parts.
    """

    folder: Place
    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep: int = 2
    resume: bool = False
    plan: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    written: bool = True


@dataclass(frozen=True)
class PartState:
    """All that training changes in a part: tensors by the module's keys, the optimizer's slots, and its steps.

    `scaler`: the state of the gradient scaler, if there is one. `best`: the state after the best epoch, where that is
    to be kept.
    """

    tensors: dict[str, Tensor]
    slots: Slots
    taken: int
    scaler: Mapping[str, Any] = field(default_factory=dict)
    best: PartState | None = None

    def copied(self) -> PartState:
        """Return a copy in this machine's memory, which doesn't change with the next step."""

        def copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}

        slots = {key: copy(found) for key, found in self.slots.items()}
        return PartState(copy(self.tensors), slots, self.taken, self.scaler)


def prepare(checkpoints: Checkpoints) -> None:
    """Make the folder, if it is on this machine.

    :raises CheckpointError: when it can't be made.
    """
    if isinstance(checkpoints.folder, Remote):
        return
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{checkpoints.folder} can't be made ({error.strerror})"
        raise CheckpointError(f"{reason}; choose another folder for checkpoints.") from None


def steps(checkpoints: Checkpoints, number: int) -> list[int]:
    """Return the steps at which a part has checkpoints, ascending."""
    folder = checkpoints.folder
    names = folder.files() if isinstance(folder, Remote) else names_in(folder)
    found = map(_FILE.fullmatch, names)
    return sorted(int(match[2]) for match in found if match and int(match[1]) == number)


def path_of(checkpoints: Checkpoints, number: int, step: int) -> Place:
    """Return the file of a part's checkpoint."""
    return checkpoints.folder / f"part{number}-step{step:09d}.safetensors"


def save(checkpoints: Checkpoints, number: int, step: int, state: PartState, beside: Mapping[str, Any]) -> Place:
    """Write a part's checkpoint.

    :raises ModelError: when it can't be written; older checkpoints stay as they were.
    """
    arrays, said = _arrays(state), {"version": VERSION, **_numbers(state), **beside}
    if state.best is not None:
        arrays |= {_BEST + key: array for key, array in _arrays(state.best).items()}
        said["best"] = _numbers(state.best)
    path, said = path_of(checkpoints, number, step), json.loads(json.dumps(said))
    with writing(path) as file:
        save_arrays(arrays, file, {METADATA: json.dumps({**said, "checksum": _checksum(said, arrays)})})
    return path


def prune(checkpoints: Checkpoints, number: int) -> None:
    """Remove all but the newest checkpoints of a part."""
    unlink([path_of(checkpoints, number, step) for step in steps(checkpoints, number)[: -checkpoints.keep]])


def all_in(folder: Place) -> list[Place]:
    """Return all checkpoints in a folder and in its subfolders, in order."""
    if isinstance(folder, Path):
        return [path for path in sorted(folder.rglob("part*")) if _FILE.fullmatch(path.name)]
    return [folder / name for name in folder.files() if _FILE.fullmatch(name.rpartition("/")[2])]


def remove(folder: Place) -> None:
    """Remove the checkpoints in a folder and in its subfolders, and then the empty folders."""
    if isinstance(folder, Remote):
        unlink(all_in(folder))
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            remove(path)
        elif _FILE.fullmatch(path.name):
            path.unlink()
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder if there is nothing in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def about(path: Place) -> dict[str, Any]:
    """Return the data that a checkpoint has beside its tensors.

    :raises CheckpointError: when it is damaged, or of another version.
    """
    with reading(path) as file:
        return _about(path, file)


def _about(path: Place, file: Path) -> dict[str, Any]:
    """Return the same of a checkpoint that is in a file of this machine."""
    try:
        found = from_json(read_metadata(file).get(METADATA, ""))
    except (ModelError, ValueError):
        raise _damaged(path) from None
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format {found.get('version')}, but this version reads {VERSION}; resume with the version "
            "that wrote it."
        )
    return dict(found)


def load(path: Place, identity: Mapping[str, Any]) -> tuple[PartState, dict[str, Any]]:
    """Read a checkpoint; return the state, and the data beside it.

    :param identity: data that must be equal to the given ones, such as plan and settings.
    :raises CheckpointError: when it is damaged, or of another version, plan or run.
    """
    with reading(path) as file:
        found = _about(path, file)
        stored = read_safetensors(file)
        arrays = {key: array[(slice(None),) if array.shape else ()] for key, array in stored.items()}
    for key, value in json.loads(json.dumps(identity)).items():
        _compare(path, key, value, found.get(key))
    if found.pop("checksum", None) != _checksum(found, arrays):
        raise _damaged(path)
    state = _state(arrays, found)
    if "best" in found:
        best = {key.removeprefix(_BEST): array for key, array in arrays.items() if key.startswith(_BEST)}
        state = replace(state, best=_state(best, found["best"]))
    return state, found


def _arrays(state: PartState) -> dict[str, Array]:
    arrays = {_TENSORS + key: _to_array(tensor) for key, tensor in state.tensors.items()}
    for key, found in state.slots.items():
        arrays |= {f"{_SLOTS}{slot}/{key}": _to_array(tensor) for slot, tensor in found.items()}
    return arrays


def _numbers(state: PartState) -> dict[str, Any]:
    return {"taken": state.taken, "scaler": state.scaler}


def _state(arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> PartState:
    """Return the state of arrays and numbers."""
    tensors = {key.removeprefix(_TENSORS): to_tensor(a) for key, a in arrays.items() if key.startswith(_TENSORS)}
    slots: Slots = {}
    for name, array in arrays.items():
        if name.startswith(_SLOTS):
            slot, _, key = name.removeprefix(_SLOTS).partition("/")
            slots.setdefault(key, {})[slot] = to_tensor(array)
    return PartState(tensors, slots, int(numbers["taken"]), numbers.get("scaler", {}))


def _damaged(path: Place) -> CheckpointError:
    return CheckpointError(f"{path} is damaged; delete it to go on from the one before.")


def _checksum(said: Mapping[str, Any], arrays: Mapping[str, Array]) -> int:
    result = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for name in sorted(arrays):
        result = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), result))
    return result


def _compare(path: Place, key: str, mine: Any, theirs: Any) -> None:
    """Check that a checkpoint is of this run."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for inner in mine:
            _compare(path, inner, mine[inner], theirs.get(inner))
    elif mine != theirs:
        raise CheckpointError(
            f"{path} is of another run: {key} was {theirs!r} there and is {mine!r} here; use the same, or start again."
        )


def _to_array(tensor: Tensor) -> Array:
    """Return a tensor as an array of its own type, which shares its memory if possible."""
    tensor = tensor.detach().cpu().contiguous()
    half = tensor.dtype == torch.bfloat16
    array: Array = (tensor.view(torch.int16) if half else tensor).numpy()
    return array.view(ml_dtypes.bfloat16) if half else array
