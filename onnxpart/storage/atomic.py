"""Files and folders that appear whole or not at all, also when the process is killed; what killed ones left is cleared.

What is under way has a name that says whose it is: `.NAME.HOST-PID-TOKEN.KIND`, where the kind is `onnxpart` (not ready
yet, or no longer needed), `onnxpart-old` (a folder set aside until the new one is in its place), or `onnxpart-data`
(names of external data, see `onnx_file`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxpart.errors import ModelError

NEW, OLD, NOTE = "onnxpart", "onnxpart-old", "onnxpart-data"
"""Kinds of what is under way."""
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_NAME = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-\w{8}\.(onnxpart(?:-old|-data)?)", re.DOTALL)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    :raises ModelError: when it can't be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which becomes `path` at the end, or vanishes when something goes wrong.

    :raises ModelError: when it can't be written, or something else than a file is there.
    """
    check_plain(path)
    clear(path.parent)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path.name), suffix=f".{NEW}")
    except OSError as error:
        raise _unwritable(path, error, "choose another place") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error, "free space or choose another place") from None
        raise


@contextmanager
def withdrawn(path: Path) -> Iterator[None]:
    """Take a file away that is no longer true when this ends; it is put back when something goes wrong."""
    aside = path.with_name(f"{_prefix(path.name)}withdraw.{NEW}")
    if not path.is_file():
        yield
        return
    path.rename(aside)
    try:
        yield
    except BaseException:
        aside.replace(path)
        raise
    aside.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which becomes `folder` at the end, or vanishes when something goes wrong.

    What is there before is set aside by one rename, the new one put in its place by another, and only then removed.

    :raises ModelError: when it can't be written; a file in it that can't be is named as it would be called.
    """
    target = folder if folder.name not in ("", "..") else folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear(target.parent)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target.name), suffix=f".{NEW}"))
    except OSError as error:
        raise _unwritable(folder, error, "choose another folder") from None
    try:
        yield fresh
        fresh.chmod(0o755)
        _exchange(fresh, target)
    except OSError as error:
        raise _unwritable(folder, error, "choose another folder") from None
    except ModelError as error:
        raise ModelError(str(error).replace(str(fresh), str(folder))) from None
    finally:
        _remove(fresh)


def _exchange(fresh: Path, target: Path) -> None:
    """Put a folder in another's place; `fresh` is then the other one."""
    aside = fresh.with_suffix(f".{OLD}")
    if target.exists():
        target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    if aside.exists():
        aside.rename(fresh)


def check_plain(path: Path) -> None:
    """Refuse to write where something else than a file is.

    :raises ModelError: for a folder, a symbolic link, a device, a pipe or a socket.
    """
    if path.is_symlink():
        raise ModelError(f"{path} is a symbolic link; name the file itself, or remove the link.")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file to write.")
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is no file but a device, a pipe or a socket; name a file to write.")


def clear(folder: Path) -> None:
    """Remove what writers that were killed left in a folder, and put back what one had set aside."""
    for path, name, kind in left(folder):
        target = folder / name
        if kind == OLD and not os.path.lexists(target):
            path.rename(target)
        elif kind != NOTE:
            _remove(path)


def left(folder: Path) -> list[tuple[Path, str, str]]:
    """What writers on this machine that are no more left in a folder: path, name of what was written, kind."""
    found = []
    for name in names_in(folder):
        match = _NAME.fullmatch(name)
        if match and match[2] == _HOST and not _lives(int(match[3])):
            found.append((folder / name, match[1], match[4]))
    return found


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in order; none where there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def note(path: Path, text: str) -> Path:
    """Leave a note beside a file on what its writer does.

    :returns: the note, to be removed when it is done. :raises ModelError: when it can't be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path.name), suffix=f".{NOTE}")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error, "choose another place") from None
    return Path(name)


def _unwritable(path: Path, error: OSError, advice: str) -> ModelError:
    return ModelError(f"{path} can't be written ({error.strerror}); {advice}.")


def _prefix(name: str) -> str:
    return f".{name}.{_HOST}-{os.getpid()}-"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
