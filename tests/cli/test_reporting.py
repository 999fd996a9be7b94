"""The command that reports on runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnxpart.cli.app import app
from onnxpart.errors import UsageError
from tests.networks.records import table2, written


def test_the_command(tmp_path: Path) -> None:
    source = written(tmp_path, table2())
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.html")])
    assert (done.exit_code, done.stdout) == (0, f"wrote {tmp_path / 'r.html'}\n")
    wrong = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.txt")])
    assert isinstance(wrong.exception, UsageError) or wrong.exit_code != 0
    assert not (tmp_path / "r.txt").exists()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, table2())
    for name in [name for name in sys.modules if name.startswith("onnxpart.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 2
    assert "pip install '.[report]'" in done.output
    begun = CliRunner().invoke(app, ["fit", str(tmp_path / "none.onnx"), "--data", "mnist5k", "--epochs", "1"])
    assert begun.exit_code == 2, "before anything is trained"
    assert "pip install '.[report]'" in begun.output
