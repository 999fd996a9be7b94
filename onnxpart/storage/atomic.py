"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxpart.errors import ModelError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    :raises ModelError: when it can't be written.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which becomes `path` at the end, or vanishes when something goes wrong.

    :raises ModelError: when it can't be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ModelError(f"{path} can't be written ({error.strerror}); choose another place.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ModelError(
                f"{path} can't be written ({error.strerror}); free space or choose another place."
            ) from None
        raise
