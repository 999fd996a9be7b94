"""A run that is kept in a storage: it ends with what a run here has, wherever it was killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import regression_mlp
from onnxpart.storage.remote import Remote, reading
from tests.networks.command import equal, run
from tests.networks.storage import Killed, empty_memory, kill_at

OPTIONS = (
    "fit", "m.onnx", "--data", "npz:data.npz", "--loss", "mse", "--batch-size", 4, "--lr", 0.01, "--epochs", 2,
    "--engine", "series", "--merge-at", 1, "--checkpoint-every", 2,
)  # fmt: skip
FAILING = """
import torch

def batches():
    yield torch.zeros(4, 4), torch.zeros(4, 1)
    raise KeyError("lost")
"""
RUN = Remote("memory://bucket/run")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network and samples in the current folder, and a storage with nothing in it."""
    empty_memory(monkeypatch)
    monkeypatch.chdir(tmp_path)
    onnx.save_model(regression_mlp(0, inputs=4, hidden=(6,)), "m.onnx")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 1)).astype(np.float32)
    np.savez("data.npz", x=x, target=y, test_x=x, test_target=y)


def test_a_run_ends_as_one_here_wherever_it_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at a checkpoint of the second part, among its results, and before the checkpoints are removed."""
    run(*OPTIONS, "-o", "here")
    names = sorted(str(path.relative_to("here")) for path in Path("here").rglob("*") if path.is_file())
    for place in ("part1-step000000004.safetensors", "report.md", "rm"):
        with monkeypatch.context() as patch:
            kill_at(patch, place)
            with pytest.raises(Killed):
                run(*OPTIONS, "-o", RUN)
        assert not any(name.endswith(place) for name in RUN.files())
        resumed = run(*OPTIONS, "-o", RUN, "--resume")
        assert "from memory://bucket/run/checkpoints/" in resumed.stderr
        assert "wrote memory://bucket/run/trained.onnx and memory://bucket/run/report.md" in resumed.stdout
        assert RUN.files() == names
        with reading(RUN / "trained.onnx") as file:
            assert equal(str(file), "here/trained.onnx")
        with reading(RUN / "report.json") as file:
            assert json.loads(file.read_text())["trained"] == "memory://bucket/run/trained.onnx"
        empty_memory(monkeypatch)


def test_a_run_that_fails_at_once_leaves_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("failing.py").write_text(FAILING)
    monkeypatch.setattr(sys, "path", [*sys.path])
    failed = run(*OPTIONS[:3], "failing:batches", *OPTIONS[4:], "--steps-per-epoch", 9, "-o", RUN, code=1)
    assert failed.stderr.endswith("the data can't be read (KeyError: 'lost'); check the code that yields them.\n")
    assert RUN.files() == []


def test_what_is_in_the_storage_stays() -> None:
    assert "memory://bucket/run holds no run to resume" in run(*OPTIONS, "-o", RUN, "--resume", code=1).stderr
    Path("letter").write_text("dear")
    (RUN / "letter").put(Path("letter"))
    refused = run(*OPTIONS, "-o", RUN, "--force", code=1).stderr
    assert (
        refused
        == "error: memory://bucket/run holds files already; go on with --resume, remove them, or give another URL.\n"
    )
    assert RUN.files() == ["letter"]
    assert not list(Path().glob("*run*"))
