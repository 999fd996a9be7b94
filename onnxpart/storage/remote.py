"""Files in a storage that fsspec reaches by a URL (`s3://`, `gs://`, ..): each is put there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from onnxpart.errors import ModelError, UsageError, needs, reason

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(?P<twice>/?)")
"""How a URL begins, also where a path has made one slash of two; the letter of a drive is no protocol."""


@dataclass(frozen=True)
class Remote:
    """A file or folder in such a storage. A folder is what the names of files begin with, so that none is ever made.

    `version`: of a listed file, what the storage tells about it: another text when its content is another.
    """

    url: str
    version: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        """Return a file or folder in this folder."""
        return Remote(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last name of the URL."""
        return self.url.rstrip("/").rpartition("/")[2]

    def reached(self) -> tuple[Any, str]:
        """Return the storage as fsspec has it, and the path in it.

        :raises UsageError: without fsspec. Errors of the storage are raised as they are.
        """
        with needs(self.url, "train"):
            import fsspec
        storage, path = fsspec.core.url_to_fs(self.url)
        storage.invalidate_cache()  # another process may have changed what is there
        return storage, path.rstrip("/")

    def files(self) -> list[str]:
        """The names of all files in this folder and below it, in order, as they follow `/`.

        :raises ModelError: when the storage can't be read.
        """
        with _told(self, "read"):
            storage, root = self.reached()
            return sorted(path[len(root) :].lstrip("/") for path in storage.find(root) if path != root)

    def put(self, path: Path) -> None:
        """Copy a file of this machine here, over what is there.

        :raises ModelError: when it can't be written; what is there stays.
        """
        with _told(self, "written"):
            storage, place = self.reached()
            storage.put_file(str(path), place)

    def get(self, path: Path) -> None:
        """Copy this file to a path on this machine.

        :raises ModelError: when it can't be read.
        """
        with _told(self, "read"):
            storage, place = self.reached()
            storage.get_file(place, str(path))


Place: TypeAlias = Path | Remote
"""A file or folder: on this machine, or in a storage."""


def place_of(text: str) -> Place:
    """Return the place that a path or a URL names; `file://` is this machine."""
    found = _URL.match(text)
    if found is None or not found["twice"]:
        return Path(text)
    return Path(text[found.end() :]) if found[1] == "file" else Remote(text)


def check_local(path: Path) -> None:
    """Refuse a URL where a path on this machine is needed.

    :raises UsageError: for one, which as a path has one slash less.
    """
    found = _URL.match(str(path))
    if found:
        raise UsageError(
            f"{found[1]}://{str(path)[found.end() :]} isn't on this machine, and only fit writes elsewhere; write to a "
            "folder here, and copy it there."
        )


def contents(place: Place) -> tuple[list[Place], list[Place]]:
    """Return the folders and the files that are directly in a folder, in the order of their names.

    :raises ModelError: when the storage can't be read. :raises OSError: when the folder on this machine can't.
    """
    if isinstance(place, Path):
        paths = sorted(place.iterdir())
        return [path for path in paths if path.is_dir()], [path for path in paths if path.is_file()]
    folders: list[Place] = []
    files: list[Place] = []
    with _told(place, "read"):
        storage, root = place.reached()
        for found in sorted(storage.ls(root, detail=True), key=lambda each: str(each["name"])):
            path = str(found["name"]).rstrip("/")
            if path != root and found["type"] == "directory":
                folders.append(place / path.rpartition("/")[2])
            elif path != root:
                files.append(Remote(f"{place / path.rpartition('/')[2]}", str(found)))
    return folders, files


def cached(place: Place) -> Path:
    """Return a file or folder itself, or a copy in this machine's cache: one process fetches it for all.

    It is fetched again once the storage tells of another content. The cache is the folder onnxpart in `XDG_CACHE_HOME`,
    or in ~/.cache. Nothing is removed from it.

    :raises ModelError: when it can't be read, or the cache can't be written.
    """
    if isinstance(place, Path):
        return place
    with needs(str(place), "train"):
        from filelock import FileLock
    name = hashlib.sha256(f"{place} {place.version or _version(place)}".encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxpart" / name[:2]
    try:
        if (folder / name).exists():
            return folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / name).exists():
                with tempfile.TemporaryDirectory(dir=folder) as fresh:
                    get = place.get if place.version else partial(_get_all, place)
                    get(Path(fresh) / name)
                    (Path(fresh) / name).replace(folder / name)
    except OSError as error:
        told = f"{folder} can't be written ({error.strerror})"
        raise ModelError(f"{told}; let XDG_CACHE_HOME name another folder.") from None
    return folder / name


def _version(folder: Remote) -> str:
    """Return what the storage tells about the files in a folder."""
    with _told(folder, "read"):
        storage, root = folder.reached()
        found = storage.find(root, detail=True)
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return str(sorted(found.items()))


def _get_all(folder: Remote, path: Path) -> None:
    """Copy the files in a folder to a new folder on this machine."""
    with _told(folder, "read"):
        storage, root = folder.reached()
        storage.get(f"{root}/", f"{path}/", recursive=True)


@contextmanager
def reading(place: Place) -> Iterator[Path]:
    """A file on this machine with the content of a place: itself, or a copy for as long as it is read.

    :raises ModelError: when it can't be copied.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / place.name
        place.get(copy)
        yield copy


@contextmanager
def writing(place: Place) -> Iterator[Path]:
    """A path on this machine to write a file to, which is then at its place.

    :raises ModelError: when it can't be put there.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / place.name
        yield copy
        place.put(copy)


def exists(place: Place) -> bool:
    """Whether there is such a file.

    :raises ModelError: when the storage can't be read.
    """
    if isinstance(place, Path):
        return place.exists()
    with _told(place, "read"):
        storage, path = place.reached()
        return bool(storage.exists(path))


def unlink(places: Sequence[Place]) -> None:
    """Remove files; those in a storage, of which there is one, all at once if it can.

    :raises ModelError: when they can't be removed.
    """
    remote = [place for place in places if isinstance(place, Remote)]
    for place in places:
        if isinstance(place, Path):
            place.unlink(missing_ok=True)
    if remote:
        with _told(remote[0], "removed"):
            storage, _ = remote[0].reached()
            storage.rm([place.reached()[1] for place in remote])


@contextmanager
def _told(place: Remote, done: str) -> Iterator[None]:
    """Let what goes wrong in a storage be one sentence.

    :param done: what the place can't be: read, written or removed. :raises ModelError: for any error of the storage.
    """
    try:
        yield
    except UsageError:
        raise
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or "of its storage"
        raise ModelError(f"{place} needs the package {package}; install it with `pip install {package}`.") from None
    except Exception as error:  # each kind of storage raises errors of its own
        told = getattr(error, "strerror", None) or reason(error)
        raise ModelError(f"{place} can't be {done} ({told}); check the URL, and what you may do there.") from None
