"""A storage of this process alone, `memory://`, that can fail."""

from __future__ import annotations

from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem


class Killed(BaseException):
    """What ends a run between two calls of the storage."""


def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `memory://` be empty until the test ends."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])


def kill_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let the storage do nothing more when it is to take a file of a name, or to remove files if that is `rm`."""
    dead = False

    def dying(method: Any) -> Any:
        def run(storage: MemoryFileSystem, *args: Any, **named: Any) -> Any:
            nonlocal dead
            dead = dead or method.__name__ == name or str(args[-1]).endswith(f"/{name}")
            if dead:
                raise Killed
            return method(storage, *args, **named)

        return run

    for method in (MemoryFileSystem.put_file, MemoryFileSystem.rm):
        patch.setattr(MemoryFileSystem, method.__name__, dying(method))
