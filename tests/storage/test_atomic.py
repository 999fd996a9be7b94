"""Whenever a command is killed there is the old output or the new one, and the next command clears what was left."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxpart import ModelError, arrays
from onnxpart.merging.folder import read_plan
from onnxpart.storage.atomic import (
    NEW,
    OLD,
    READY,
    clear,
    left,
    replacing,
    replacing_files,
    replacing_folder,
    write_bytes,
)
from onnxpart.storage.onnx_file import data_files, save
from tests.networks.command import run
from tests.networks.killing import killed, left_behind


def network(value: float) -> ModelProto:
    """Two layers with 1024 units between them, all weights the same."""
    weights = {"a": (16, 1024), "b": (1024, 8)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.full(shape, value, np.float32), n) for n, shape in weights.items()]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 16), ("y", 8)))
    return helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def write(value: float, name: str, *, external: bool) -> None:
    options = {"save_as_external_data": True, "location": f"{name}.weights", "size_threshold": 0} if external else {}
    onnx.save_model(network(value), name, **options)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with two networks, and splits of both of them."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, value in (("one", 1.0), ("two", 2.0)):
        write(value, f"{name}.onnx", external=request.param == "external")
        run("split", f"{name}.onnx", "-k", 2, "-o", name)
        run("split", f"{name}.onnx", "-k", 4, "-o", f"{name}_four")
    return folder


def values(model: Path) -> set[float]:
    """Which numbers a whole and valid model's weights are made of."""
    onnx.checker.check_model(model, full_check=True)
    return {float(value) for array in arrays(model).values() for value in np.unique(array)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("start", ["inline", "external"], indirect=True)
def test_a_model_is_the_old_or_the_new_one(start: Path) -> None:
    run("merge", "one", "-o", "m.onnx")
    assert bool(data_files(Path("m.onnx"))) == Path("one.onnx.weights").exists()
    seen = []
    for folder in killed(start, "merge", "two", "-o", "m.onnx", "--force"):
        seen.append(max(values(folder / "m.onnx")))
        run("merge", folder / "two", "-o", folder / "m.onnx", "--force")
        assert max(values(folder / "m.onnx")) == 2
        assert set(folder.glob("m.onnx*")) == {folder / "m.onnx", *data_files(folder / "m.onnx")}
        assert not left_behind(folder)
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


@pytest.mark.parametrize(
    "arguments", [("split", "two.onnx", "-k", 2, "-o", "out", "--force"), ("merge", "two_four", "--to", 2, "-o", "out")]
)
@pytest.mark.parametrize("start", ["external"], indirect=True)
def test_a_folder_is_the_old_or_the_new_one(start: Path, arguments: tuple[object, ...]) -> None:
    shutil.copytree("one", "out")
    folders = killed(start, *arguments, *(() if "--force" in arguments else ("--force",)))
    old, new = contents(start / "out"), contents(folders[-1] / "out")
    seen = []
    for folder in folders:
        read_plan(folder / "out")  # which puts back what was set aside
        found = contents(folder / "out")
        assert found in (old, new)
        seen.append(found == new)
    assert seen == sorted(seen)
    assert set(seen) == {False, True}
    for folder in (folders[len(folders) // 2], folders[-2]):
        run("split", folder / "one.onnx", "-k", 2, "-o", folder / "out", "--force")
        assert not left_behind(folder)


@pytest.mark.parametrize("start", ["external"], indirect=True)
def test_a_new_model_is_there_or_not(start: Path) -> None:
    arguments = ("merge", "two", "-o", "new.onnx", "--initializers", "new.safetensors")
    for folder in killed(start, *arguments):
        for new in folder.glob("new.[os]*s"):
            assert max(values(new)) == 2 if new.suffix == ".onnx" else arrays(new)
        os.chdir(folder)
        run(*arguments, "--force")
        assert not left_behind(folder)
        data = {path.name for path in data_files(Path("new.onnx"))}
        assert {path.name for path in folder.glob("new*")} == {"new.onnx", "new.safetensors", *data}


# -- what is left behind ----------------------------------------------------------------------------------------------


def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def names(tmp_path: Path) -> Callable[[int, str], Path]:
    """What a process would call what it has under way of a file named m."""
    (tmp_path / "place").mkdir()
    with replacing(tmp_path / "place" / "m"):
        (mine,) = (path.name for path in (tmp_path / "place").iterdir())
    shutil.rmtree(tmp_path / "place")

    def name(pid: int, kind: str) -> Path:
        return tmp_path / mine.replace(f"-{os.getpid()}-", f"-{pid}-").replace(f".{NEW}", f".{kind}")

    return name


def test_only_what_dead_processes_left_is_cleared(tmp_path: Path, names: Callable[[int, str], Path]) -> None:
    gone, alive = names(dead(), NEW), names(os.getppid(), NEW)
    elsewhere = tmp_path / f".m.00000000-{dead()}-abcdefgh.{NEW}"
    others = tmp_path / f".m.{NEW}"
    for path in (gone, alive, elsewhere, others):
        path.write_text("half")
    with replacing(tmp_path / "other") as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, elsewhere.name, others.name, "other"}


def test_what_was_set_aside_comes_back_once(tmp_path: Path, names: Callable[[int, str], Path]) -> None:
    for there in (False, True):
        aside = names(dead(), OLD)
        aside.mkdir()
        (aside / "letter").write_text("old")
        with replacing(tmp_path / "other"):
            pass
        assert not left(tmp_path)
        assert (tmp_path / "m" / "letter").read_text() == ("new" if there else "old")
        (tmp_path / "m" / "letter").write_text("new")


def test_a_folder_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "letter").write_text("old")

    def fail() -> None:
        with replacing_folder(tmp_path / "m") as fresh:
            (fresh / "letter").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "m" / "letter").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def replaced(folder: Path = Path(), *, fail: bool = False) -> None:
    """Replace two of four files and remove two."""
    with replacing_files(folder / "a.onnx", ["a.onnx.data", "b", "c"]) as fresh:
        for name in ("a.onnx", "a.onnx.1.data", "b"):
            (fresh / name).write_text("new")
        if fail:
            raise KeyError


OLD_FILES = {"a.onnx": b"old", "a.onnx.data": b"old", "b": b"old", "c": b"old", "other": b"old"}
NEW_FILES = {"a.onnx": b"new", "a.onnx.1.data": b"new", "b": b"new", "other": b"old"}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    folder = tmp_path / "several"
    folder.mkdir()
    for name, content in OLD_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_several_files_are_replaced_at_once_or_not_at_all(several: Path) -> None:
    with pytest.raises(KeyError):
        replaced(several, fail=True)
    assert contents(several) == OLD_FILES
    replaced(several)
    assert contents(several) == NEW_FILES


def test_nothing_is_replaced_where_one_file_cannot_be(several: Path) -> None:
    (several / "b").unlink()
    (several / "b").mkdir()
    with pytest.raises(ModelError, match="several/b is a folder; name a file to write"):
        replaced(several)
    (several / "b").rmdir()
    assert contents(several) == {name: content for name, content in OLD_FILES.items() if name != "b"}


def test_whenever_several_files_are_replaced_the_next_to_come_finds_all_or_none(several: Path) -> None:
    seen, models = [], []
    for folder in killed(several, "tests.storage.test_atomic:replaced"):
        models.append((folder / "a.onnx").read_bytes())
        assert (folder / ("a.onnx.1.data" if models[-1] == b"new" else "a.onnx.data")).exists()
        clear(folder)
        assert contents(folder) in (OLD_FILES, NEW_FILES)
        seen.append(contents(folder) == NEW_FILES)
    assert models[-1] == b"new"
    assert seen == sorted(seen)
    assert seen.count(True) > 4  # killed between the first file that took its place and the last that was removed


def test_what_is_ready_is_finished_by_whoever_comes(several: Path, names: Callable[[int, str], Path]) -> None:
    for path in (names(dead(), READY), names(os.getppid(), READY)):
        ready = several / path.name
        ready.mkdir()
        (ready / "a.onnx").write_text(path.name)
        (ready / f".outdated.{NEW}").write_text(json.dumps(["../letter", "c"]))
        (several.parent / "letter").write_text("dear")
        clear(several)
        assert (several / "a.onnx").read_text() == path.name
        assert not ready.exists()
        assert not (several / "c").exists()
        assert (several.parent / "letter").exists()


def test_a_model_is_written_through_nothing_but_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, sentence in (("pipe", "is a device, a pipe or a socket, not a file"), ("link", "is a symbolic link")):
        with pytest.raises(ModelError, match=sentence):
            save(network(1), tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


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


def test_no_signal_is_sent_on_windows(
    tmp_path: Path, names: Callable[[int, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There os.kill with 0 is Ctrl-C."""
    closed: list[int] = []
    kernel = SimpleNamespace(
        OpenProcess=lambda rights, inherit, pid: 7 if pid == os.getpid() else 0, CloseHandle=closed.append
    )
    files = [names(pid, NEW) for pid in (os.getpid(), 2**30)]
    for path in files:
        path.write_bytes(b"")
    monkeypatch.setattr(os, "kill", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    clear(tmp_path)
    assert [path.exists() for path in files] == [True, False]
    assert closed == [7]
