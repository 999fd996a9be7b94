"""What may be written where: nothing is replaced but what onnxpart wrote, and nothing that was read."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from models import BUILDERS
from onnxpart.cli import app as cli
from onnxpart.storage.outputs import is_own
from onnxpart.storage.safetensors import save_arrays
from tests.networks.command import run

SPLIT = ("split", "m.onnx", "-k", 2, "--force", "-o")
MERGE = ("merge", "parts", "--force", "-o")
INITIALIZERS = ("merge", "parts", "--force", "--initializers")
LEVEL = ("merge", "four", "--to", 2, "--force", "-o")
WIDEN = ("widen", "parts/part0.onnx", "--force", "-o")
COMMANDS = {"split": SPLIT, "merge": MERGE, "initializers": INITIALIZERS, "level": LEVEL, "widen": WIDEN}


def refused(*arguments: object) -> str:
    """The sentence with which a command refuses."""
    result = run(*arguments, code=1)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr[len("error: ") : -1]


def contents(folder: Path) -> dict[str, bytes | None]:
    found = sorted(path for path in folder.rglob("*") if not path.is_socket() and not path.is_fifo())
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(BUILDERS["lrn"](), "m.onnx")
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("split", "m.onnx", "-k", 4, "-o", "four")
    return tmp_path


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "letter").write_text("dear")


def text(path: Path) -> None:
    path.write_text("dear")


def model(path: Path) -> None:
    onnx.save_model(BUILDERS["chain"](), path)


def tensors(path: Path) -> None:
    save_arrays({"a": np.ones(3, np.float32)}, path)


def link(path: Path) -> None:
    Path("elsewhere").mkdir()
    shutil.copy("parts/whole.onnx", "elsewhere/precious.onnx")
    path.symlink_to("elsewhere/precious.onnx")


def link_to_a_folder(path: Path) -> None:
    shutil.copytree("parts", "elsewhere")
    path.symlink_to("elsewhere")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


KINDS = [pipe, unix_socket, folder, text, model, tensors, link, link_to_a_folder, dangling]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_others_wrote_is_never_replaced(here: Path, command: str, kind: Callable[[Path], None]) -> None:
    target = here / ("out.safetensors" if command == "initializers" or kind is tensors else "out.onnx")
    kind(target)
    before, found = contents(here), target.lstat()
    sentence = refused(*COMMANDS[command], target.name)
    assert sentence.startswith(f"{target.name} ")
    assert contents(here) == before
    assert target.lstat().st_ino == found.st_ino


@pytest.mark.parametrize("extra", ["letter", "training/letter", "part0.onnx.copy", "model.onnx"])
@pytest.mark.parametrize("command", ["split", "level"])
def test_a_folder_that_also_holds_files_of_others_stays(here: Path, command: str, extra: str) -> None:
    shutil.copytree("parts", "out")
    (here / "out" / "training").mkdir()
    (here / "out" / extra).write_text("dear")
    before = contents(here)
    assert refused(*COMMANDS[command], "out") == (
        f"out holds {extra}, which onnxpart didn't write; give another folder, or move it."
    )
    assert contents(here) == before


def test_what_onnxpart_wrote_is_replaced(here: Path) -> None:
    for command in ("merge", "widen"):
        for into in ("duplicated", "original"):
            for _ in range(2):
                run(*COMMANDS[command], "out.onnx", "--into", into)
                assert is_own(here / "out.onnx")
    for _ in range(2):
        run(*INITIALIZERS, "out.safetensors")
        run(*SPLIT, "out")
        run("merge", "out", "--force")
        run("widen", "out/part0.onnx", "-o", "out/wide.onnx", "--force")
    run(*LEVEL, "out")
    assert not (here / "out" / "wide.onnx").exists()


def alias(original: Path, kind: str) -> str:
    """Another name of a file."""
    if kind == "hard link":
        os.link(original, "alias.onnx")
    elif kind == "folder link":
        Path("linked").symlink_to(original.resolve().parent)
        return f"linked/{original.name}"
    elif kind == "dots":
        Path("deep").mkdir()
        return f"deep/../{original}"
    else:
        return str(original)
    return "alias.onnx"


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["itself", "hard link", "folder link", "dots"])
@pytest.mark.parametrize(
    ("command", "read"),
    [
        (("split", "own.onnx", "-k", 2, "-o"), "own.onnx"),
        (("merge", "parts", "-o"), "parts/whole.onnx"),
        (("merge", "parts", "-o"), "parts/part1.onnx"),
        (("merge", "parts", "-o"), "parts/original.onnx"),
        (("merge", "parts", "-o"), "parts/plan.json"),
        (("merge", "parts", "--initializers"), "parts/part0.onnx"),
        (("widen", "parts/part0.onnx", "-o"), "parts/part0.onnx"),
        (("widen", "parts/part0.onnx", "-o"), "parts/whole.onnx"),
    ],
)
def test_what_is_read_is_never_replaced(
    here: Path, command: tuple[object, ...], read: str, kind: str, force: tuple[str, ...]
) -> None:
    shutil.copy("parts/whole.onnx", "own.onnx")
    name = alias(Path(read), kind)
    before = contents(here)
    assert refused(*command, name, *force) == f"{name} is an input of this command; give another name for the output."
    assert contents(here) == before


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_that_is_read_is_never_replaced(here: Path, force: tuple[str, ...]) -> None:
    before = contents(here)
    for source in ("parts/whole.onnx", "parts/original.onnx", "parts/part0.onnx"):
        sentence = refused("split", source, "-k", 2, "-o", "parts", *force)
        assert sentence == f"parts holds {source}, which is read; give another name for the output."
    assert "four is an input of this command" in refused("merge", "four", "--to", 2, "-o", "four", *force)
    assert "which is read" in refused("merge", "four", "--to", 2, "-o", ".", *force)
    assert contents(here) == before


def test_external_data_that_are_read_are_never_replaced(here: Path) -> None:
    onnx.save_model(BUILDERS["lrn"](), "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    assert "e.data is an input of this command" in refused("split", "e.onnx", "-k", 2, "-o", "e.data", "--force")
    model = BUILDERS["lenet"]()
    onnx.save_model(model, "l.onnx", save_as_external_data=True, location="l.data", size_threshold=0)
    run("split", "l.onnx", "-k", 2, "-o", "out")
    before = contents(here)
    assert "is an input of this command" in refused("merge", "out", "-o", "out/whole.onnx.data", "--force")
    assert contents(here) == before


def test_one_file_cannot_hold_model_and_initializers(here: Path) -> None:
    (here / "deep").mkdir()
    result = CliRunner().invoke(cli.app, ["merge", "parts", "-o", "m.st", "--initializers", "deep/../m.st"])
    assert result.exit_code == 2
    assert result.stderr == "error: m.st can't hold both the model and its initializers; name two files.\n"


def test_the_optimizers_state_of_another_network_stays(here: Path) -> None:
    save_arrays({"a": np.ones(3, np.float32)}, "out.optimizer.safetensors")
    before = contents(here)
    assert refused(*MERGE, "out.onnx").startswith("out.optimizer.safetensors wasn't written by onnxpart")
    assert contents(here) == before
