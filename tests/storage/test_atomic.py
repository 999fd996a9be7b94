"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpart.errors import ModelError
from onnxpart.storage.atomic import replacing, write_bytes


def test_what_goes_wrong_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="free space"), replacing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="choose another place"):
        write_bytes(tmp_path / "missing" / "file", b"")
