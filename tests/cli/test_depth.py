"""Leaving blocks out and stacking them, from the command line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxpart import arrays, load
from onnxpart.merging import deepen
from tests.networks.command import run, run_json
from tests.networks.deep import residual_mlp


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for a deep network."""
    monkeypatch.chdir(tmp_path)
    onnx.save_model(residual_mlp(), "deep.onnx")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_from_deep_to_shallow_and_back() -> None:
    told = run("shallow", "deep.onnx", "--blocks", 3, "-o", "s.onnx").stdout.splitlines()
    assert told == ["3 of 4 blocks stay; they start as blocks 0, 1, 2, 0", "wrote s.onnx"]
    told = run("deepen", "s.onnx", "deep.onnx", "-o", "d.onnx").stdout.splitlines()
    assert told == ["filled 2 initializers of new blocks; wrote d.onnx"]
    assert load("d.onnx").digest == load("deep.onnx").digest
    assert (arrays("d.onnx")["up4"] == arrays("deep.onnx")["up"]).all()


@pytest.mark.usefixtures("here")
def test_what_the_exporter_tied_is_told() -> None:
    model = residual_mlp()
    model.producer_name = "pytorch"
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["first.weight"], ["copy"], "Identity_7"))
    model.graph.node[1].input[1] = "copy"
    onnx.save_model(model, "tied.onnx")
    for command in (("shallow", "tied.onnx", "--blocks", 3), ("deepen", "shallow.onnx", "tied.onnx")):
        assert "equal or tied (first.weight)" in run(*command, "-o", f"{command[0]}.onnx").stderr


@pytest.mark.usefixtures("here")
def test_json() -> None:
    found = run_json("shallow", "deep.onnx", "--blocks", 3, "-o", "s.onnx")
    assert found == {"model": "s.onnx", "sources": [[0, 1, 2, 0]]}
    found = run_json("deepen", "s.onnx", "deep.onnx", "--new", "zero", "-o", "d.onnx")
    sources = {"up4": "up", "down4": "down"}
    assert found.pop("check")["deviation"] < 1e-5
    assert found == {"model": "d.onnx", "new": "zero", "sources": sources, "zeros": ["down4"]}


@pytest.mark.usefixtures("here")
def test_that_the_function_is_kept_is_told_or_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    run("shallow", "deep.onnx", "--blocks", 3, "-o", "s.onnx")
    told = run("deepen", "s.onnx", "deep.onnx", "--new", "zero", "-o", "d.onnx").stdout
    assert "checked in ONNX Runtime: the deep network computes what the shallow one does" in told
    monkeypatch.setattr(deepen, "zeros", lambda *_: frozenset())
    found = run("deepen", "s.onnx", "deep.onnx", "--new", "zero", "-o", "e.onnx", code=1).stderr
    assert "the deep network's outputs differ by" in found
    assert not Path("e.onnx").exists()


@pytest.mark.usefixtures("here")
def test_nothing_is_replaced_unasked() -> None:
    run("shallow", "deep.onnx", "--blocks", 1, "-o", "s.onnx")
    before = Path("s.onnx").read_bytes()
    run("shallow", "deep.onnx", "--blocks", 2, "-o", "s.onnx", code=1)
    run("shallow", "deep.onnx", "--blocks", 2, "-o", "deep.onnx", "--force", code=1)
    run("deepen", "s.onnx", "deep.onnx", "-o", "s.onnx", "--force", code=1)
    assert Path("s.onnx").read_bytes() == before
    run("shallow", "deep.onnx", "--blocks", 2, "-o", "s.onnx", "--force")
    assert Path("s.onnx").read_bytes() != before
