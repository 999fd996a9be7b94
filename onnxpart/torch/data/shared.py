"""Batches that the processes of one machine read once: one of them reads, the others take what it leaves in a folder.

A process that ends, or is killed, is followed by another one that reads on. One that is far behind reads for itself.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from onnxpart.torch.data.batch import Batch, Loader, Stream
from onnxpart.torch.data.loaders import TensorLoader

_ROOM, _MOST = 1 << 30, 1000
"""Bytes, and number, of the newest batches that stay for processes that are behind."""
_NAME = "onnxpart-batches-"
"""How the names of the folders of all runs begin."""
_PATIENCE = 0.002
"""Seconds between two looks for a batch."""
_Read: TypeAlias = tuple[Batch | None, str | None, list[int]]
"""A batch, None at the end of an epoch; and the position of a stream after it, and its passes."""


class Shared:
    """The batches of a loader, each read by one of the processes that have one with this folder."""

    def __init__(self, loader: Loader, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.loader, self.folder = loader, folder
        self._reads = FileLock(folder / "lock")  # held by the process that reads for all
        self._left: deque[tuple[Path, int]] = deque()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""
        own: Iterator[Batch] | None = None
        for i in count(start):
            found = self._taken(number, i) if own is None else None
            if found is None:
                own = self._begun(number, i) if own is None else own
                found = self._read(own)
                self._leave(number, i, found)
            self._know(found)
            if found[0] is None:
                return
            yield found[0]

    def close(self) -> None:
        """Let another process read on."""
        self._reads.release()

    def _begun(self, number: int, i: int) -> Iterator[Batch]:
        return self.loader.epoch(number, i)

    def _read(self, own: Iterator[Batch]) -> _Read:
        return next(own, None), None, []

    def _know(self, found: _Read) -> None:
        """Note where the data are after a batch."""

    def _taken(self, number: int, i: int) -> _Read | None:
        """Return a batch that another process has read; None if this one is to read it, for all or for itself."""
        path = self._path(number, i)
        while True:
            try:
                found: _Read = torch.load(path, weights_only=True, mmap=True)
                return found
            except OSError:
                if self._reads.is_locked or self._newest() >= (number, i):
                    return None
            try:
                self._reads.acquire(timeout=0)
            except Timeout:
                time.sleep(_PATIENCE)

    def _leave(self, number: int, i: int, found: _Read) -> None:
        """Leave a batch to the others, if this process reads for all, and remove old ones; without space end that."""
        if not self._reads.is_locked:
            return
        path, fresh = self._path(number, i), self.folder / "fresh"
        try:
            torch.save((_alone(found[0]), *found[1:]), fresh)
            self._left.append((path, fresh.stat().st_size))
            fresh.replace(path)
            (self.folder / "newest").write_text(f"{number} {i}", encoding="utf-8")
            while len(self._left) > _MOST or sum(size for _, size in self._left) > _ROOM:
                self._left.popleft()[0].unlink(missing_ok=True)
        except (OSError, RuntimeError):  # torch's own when it can't write
            self._reads.release()

    def _newest(self) -> tuple[int, ...]:
        """Return epoch and number of the last batch that was left; nothing if there is none."""
        try:
            return tuple(map(int, (self.folder / "newest").read_text(encoding="utf-8").split()))
        except OSError:
            return ()

    def _path(self, number: int, i: int) -> Path:
        return self.folder / f"{number}-{i}.pt"


class SharedStream(Shared):
    """The same for data that can tell their position: each process knows it, so each can read on and be resumed."""

    def __init__(self, loader: Stream, folder: Path) -> None:
        super().__init__(loader, folder)
        self.stream = loader
        self.passes: list[int] = []
        self._state: str | None = None  # after the last batch
        self._own: str | None = None  # where this process's own stream is

    def state(self) -> str | None:
        """Return the position after the last batch (see `StreamLoader.state`)."""
        return self._state

    def restore(self, state: str) -> bool:
        """Let the data go on from a position; return whether they can."""
        self._state = self._own = state
        return self.stream.restore(state)

    def _begun(self, number: int, i: int) -> Iterator[Batch]:
        if self._state is not None and self._state is not self._own:
            self.stream.restore(self._state)
        return super()._begun(number, i)

    def _read(self, own: Iterator[Batch]) -> _Read:
        batch = next(own, None)
        self._own = self.stream.state()
        return batch, self._own, self.stream.passes

    def _know(self, found: _Read) -> None:
        _, self._state, self.passes = found


def _alone(batch: Batch | None) -> Batch | None:
    """Return a batch without what its tensors are views of, which would be written as well."""
    if batch is None:
        return None
    *inputs, target = (x if x.untyped_storage().nbytes() == x.nbytes else x.clone() for x in (*batch[0], batch[1]))
    return tuple(inputs), target


@contextmanager
def shared(folder: Path, loader: Loader, test: Loader | None) -> Iterator[tuple[Loader, Loader | None]]:
    """Two loaders whose batches the processes that share a folder read once; data in memory stay as they are.

    The last of the processes removes the folder, and the first of a later run those of processes that were all killed.
    """
    if all(found is None or isinstance(found, TensorLoader) for found in (loader, test)):
        yield loader, test
        return
    for other in folder.parent.glob(f"{_NAME}*"):
        if other != folder:
            _remove_unused(other)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = FileLock(folder / f"{uuid4().hex}.user")
    here.acquire()
    first, second = _sharing(loader, folder / "train"), None if test is None else _sharing(test, folder / "test")
    try:
        yield first, second
    finally:
        for found in (first, second):
            if isinstance(found, Shared):
                found.close()
        here.release()
        _remove_unused(folder)


def folder_name() -> str:
    """Return a name for the folder of a new run's batches, by which a later run finds it."""
    return _NAME + uuid4().hex


def _remove_unused(folder: Path) -> None:
    """Remove a folder that processes used, unless one still does."""
    users = list(folder.glob("*.user"))  # none yet where another run begins just now
    if users and not any(map(_held, users)):
        shutil.rmtree(folder, ignore_errors=True)


def _sharing(loader: Loader, folder: Path) -> Loader:
    if isinstance(loader, TensorLoader):
        return loader
    return SharedStream(loader, folder) if isinstance(loader, Stream) else Shared(loader, folder)


def _held(lock: Path) -> bool:
    """Whether a process holds a lock, or may: that of another user can't be tried."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except OSError:
        return True
