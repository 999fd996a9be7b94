"""Whenever a command is killed that trains or reports, what belongs together is all old or all new to the next one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from models import regression_mlp
from onnxpart import arrays
from onnxpart.cli.app import app
from onnxpart.merging.folder import read_plan
from onnxpart.report.page import write
from onnxpart.report.records import read
from onnxpart.storage.atomic import clear
from tests.networks.command import run
from tests.networks.killing import killed, left_behind
from tests.networks.records import table2, written

DATA = ("--data", "npz:data.npz", "--loss", "mse", "--batch-size", 8, "--lr", 0.01, "--engine", "series")
TRAINED = ("part0.onnx", "part0.optimizer.safetensors", "part1.onnx", "part1.optimizer.safetensors")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, samples, and a split whose parts were trained."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    onnx.save_model(regression_mlp(0, inputs=4, hidden=(6,)), "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(
        "data.npz", x=rng.normal(size=(8, 4)).astype(np.float32), target=rng.normal(size=(8, 1)).astype(np.float32)
    )
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("train", "parts", *DATA, "--epochs", 1)
    return folder


def of(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def assert_replaced_at_once(start: Path, folders: list[Path], names: tuple[str, ...]) -> None:
    """Once it is cleared every folder has all of the old files or all of the new ones, and some have either."""
    old, new, seen = of(start, names), of(folders[-1], names), []
    for folder in folders:
        clear(folder)
        assert of(folder, names) in (old, new)
        seen.append(of(folder, names) == new)
    assert set(seen) == {False, True}


def test_trained_parts_and_their_optimizers_are_replaced_at_once(start: Path) -> None:
    command = ("train", "parts", *DATA, "--epochs", 1)
    folders = killed(start, *command)
    old, new = of(start / "parts", TRAINED), of(folders[-1] / "parts", TRAINED)
    assert all(old[name] != new[name] for name in TRAINED)
    seen, mixed = [], 0
    for folder in folders:
        mixed += of(folder / "parts", TRAINED) not in (old, new)
        read_plan(folder / "parts")
        assert of(folder / "parts", TRAINED) in (old, new)
        assert not [path for path in left_behind(folder) if "-step" not in path]  # checkpoints are cleared by training
        seen.append(of(folder / "parts", TRAINED) == new)
    assert mixed > 1  # killed between two files
    assert seen == sorted(seen)
    assert not seen[0]
    resumable = [folder for folder in folders if any((folder / "parts" / "training").rglob("*.safetensors"))]
    os.chdir(resumable[len(resumable) // 2])
    run(*command, "--resume")
    assert of(Path("parts"), TRAINED) == new
    assert not left_behind(Path())


def resume(*command: object) -> None:
    """Resume a run; where the parts were killed at different steps, as the refusal says."""
    done = CliRunner().invoke(app, [*map(str, command), "--resume"])
    if "resume with the engine processes" in done.output:
        run(*command, "--resume", "--engine", "processes")
    else:
        assert done.exit_code == 0, done.output


def test_fit_goes_on_wherever_it_was_killed(start: Path) -> None:
    command = ("fit", "m.onnx", *DATA, "--epochs", 2, "-o", "out")
    folders = killed(start, *command)
    wanted, ended = arrays(folders[-1] / "out" / "trained.onnx"), 0
    for folder in folders[:: max(1, len(folders) // 8)]:
        os.chdir(folder)
        if not Path("out").exists():
            run(*command)
        elif Path("out/trained.onnx").exists() and not any(Path("out/checkpoints").rglob("*.safetensors")):
            ended += 1  # nothing but empty folders is left to remove
        else:
            resume(*command)
        found = arrays("out/trained.onnx")
        assert all(np.array_equal(found[name], array) for name, array in wanted.items())
        assert not left_behind(Path("out"))
    assert ended < 3


def test_a_model_and_its_optimizers_state_are_replaced_at_once(start: Path) -> None:
    names = ("m2.onnx", "m2.optimizer.safetensors")
    run("merge", "parts", "-o", "m2.onnx")
    run("train", "parts", *DATA, "--epochs", 1)
    folders = killed(start, "merge", "parts", "-o", "m2.onnx", "--force")
    assert_replaced_at_once(start, folders, names)


def test_a_widened_model_is_the_old_or_the_new_one(start: Path) -> None:
    run("widen", "parts/part0.onnx", "-o", "wide.onnx")
    folders = killed(start, "widen", "parts/part1.onnx", "-o", "wide.onnx", "--force")
    old, new, seen = of(start, ("wide.onnx",)), of(folders[-1], ("wide.onnx",)), []
    for folder in folders:
        onnx.checker.check_model(folder / "wide.onnx", full_check=True)
        assert of(folder, ("wide.onnx",)) in (old, new)
        seen.append(of(folder, ("wide.onnx",)) == new)
        run("widen", folder / "parts/part1.onnx", "-o", folder / "wide.onnx", "--force")
        assert not left_behind(folder)
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_a_report_and_its_pictures_are_replaced_at_once(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    written(start, table2(0.25), "new.jsonl")
    names = tuple(path.name for path in write(read([written(start, table2())]), start / "page.md"))
    assert len(names) > 1
    folders = killed(start, "report", "new.jsonl", "-o", "page.md")
    assert_replaced_at_once(start, folders, names)
