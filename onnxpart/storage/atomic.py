"""Files and folders that appear whole or not at all, even if the process is killed; its remains are cleared later.

While a file or folder is being written, its name says whose it is: `.NAME.HOST-PID-TOKEN.KIND`, where the kind is
`onnxpart` (not ready yet, or no longer needed), `onnxpart-old` (the old folder, set aside until the new one is in its
place), or `onnxpart-ready` (files that belong together, complete, on the way to their places).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxpart.errors import ModelError

NEW, OLD, READY = "onnxpart", "onnxpart-old", "onnxpart-ready"
"""Kinds of files and folders that are being written."""
_OUTDATED = f".outdated.{NEW}"
"""A file beside those that are ready: names of what is removed when they are in their places."""
_SYNCHRONIZE = 0x00100000
"""The right to wait for a process; on Windows every process of the same user has it."""
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_NAME = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-\w{8}\.(onnxpart(?:-old|-ready)?)", re.DOTALL)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    :raises ModelError: when it can't be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which becomes `path` at the end, or vanishes when something goes wrong.

    :raises ModelError: when it can't be written, or something other than a file is there.
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
def replacing_files(path: Path, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """A folder for `path` and files beside it: at the end all take their places at once, or on an error all vanish.

    When the folder is complete, it gets a name that says so. From then on, if the writer is killed, the next process
    (see `clear`) moves the files into place. A file takes its place after the files whose names begin with its own: a
    model after its external data.

    :param outdated: names of other files beside `path` that are removed then, unless they are replaced.
    :raises ModelError: when they can't be written, or something other than a file is there.
    """
    folder = path.parent
    clear(folder)
    try:
        fresh = Path(tempfile.mkdtemp(dir=folder, prefix=_prefix(path.name), suffix=f".{NEW}"))
    except OSError as error:
        raise _unwritable(path, error, "choose another place") from None
    try:
        yield fresh
        names = names_in(fresh)
        for name in names:
            check_plain(folder / name)
        (fresh / _OUTDATED).write_text(json.dumps(sorted(set(outdated).difference(names))), encoding="utf-8")
        ready = fresh.rename(fresh.with_suffix(f".{READY}"))
        _settle(ready, folder)
    except OSError as error:
        raise _unwritable(path, error, "free space or choose another place") from None
    except ModelError as error:
        raise ModelError(str(error).replace(str(fresh), str(folder))) from None
    finally:
        _remove(fresh)


def _settle(ready: Path, folder: Path) -> None:
    """Put files in their places, and then remove what is outdated; another process may do some of it first."""
    try:
        outdated = json.loads((ready / _OUTDATED).read_text(encoding="utf-8"))
    except FileNotFoundError:  # only this is left to do
        with suppress(OSError):
            ready.rmdir()
        return
    for name in sorted(set(names_in(ready)) - {_OUTDATED}, reverse=True):
        with suppress(FileNotFoundError):
            (ready / name).replace(folder / name)
    for name in outdated:
        (folder / Path(name).name).unlink(missing_ok=True)
    _remove(ready)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder under a temporary name, which becomes `folder` at the end, or vanishes when something goes wrong.

    One rename sets the old folder aside, another one puts the new one in its place, and then the old one is removed.

    :raises ModelError: when it can't be written; the error gives a file in it the name that it would have got.
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
    """Refuse to write where something other than a file is.

    :raises ModelError: for a folder, a symbolic link, a device, a pipe or a socket.
    """
    if path.is_symlink():
        raise ModelError(f"{path} is a symbolic link; name the file itself, or remove the link.")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name a file to write.")
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is a device, a pipe or a socket, not a file; name a file to write.")


def clear(folder: Path) -> None:
    """Clear up after killed writers in a folder: finish what was ready, put back what was set aside, remove the rest.

    :raises ModelError: when what is ready can't be put in its place.
    """
    for path, name, kind in left(folder):
        target = folder / name
        try:
            if kind == READY:
                _settle(path, folder)
            elif kind == OLD and not os.path.lexists(target):
                path.rename(target)
            else:
                _remove(path)
        except OSError as error:
            raise _unwritable(folder, error, f"{path.name} in it is ready but can't be moved to its place") from None


def left(folder: Path) -> list[tuple[Path, str, str]]:
    """What killed writers left in a folder: path, name of what was written, kind.

    Ready files always count. Others count if their process ran on this machine and has ended.
    """
    found = []
    for name in names_in(folder):
        match = _NAME.fullmatch(name)
        if match and (match[4] == READY or (match[2] == _HOST and not _lives(int(match[3])))):
            found.append((folder / name, match[1], match[4]))
    return found


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in order; none if there is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _unwritable(path: Path, error: OSError, advice: str) -> ModelError:
    return ModelError(f"{path} can't be written ({error.strerror}); {advice}.")


def _prefix(name: str) -> str:
    return f".{name}.{_HOST}-{os.getpid()}-"


def _lives(pid: int) -> bool:
    """Return whether a process of this machine is there."""
    if sys.platform == "win32":  # os.kill would send it Ctrl-C there
        handle = ctypes.windll.kernel32.OpenProcess(_SYNCHRONIZE, False, pid)
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; of a link the link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
