"""The page of operators: every version of every operator of the installed onnx is on it, and it is up to date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner, Result

from onnxpart import analyse, load
from onnxpart.analysis.rules import table as rules
from onnxpart.analysis.rules.opaque import history, opaque
from scripts import operators
from tests.networks.net import Net


def run(*arguments: str) -> Result:
    app = operators.typer.Typer()
    app.command()(operators.main)
    return CliRunner().invoke(app, list(arguments))


def test_the_page_is_up_to_date() -> None:
    result = run("--check")
    assert result.exit_code == 0, result.output


def test_every_operator_is_on_the_page() -> None:
    rows = {line.split(" | ")[0].removeprefix("| ") for line in operators.PAGE.read_text().splitlines() if "|" in line}
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert names <= rows
    assert operators.UNCLASSIFIED not in operators.PAGE.read_text()


def test_a_stale_page_is_found_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "PAGE", tmp_path / "OPERATORS.md")
    assert run("--check").exit_code == 1
    assert run().exit_code == 0
    assert run("--check").exit_code == 0
    operators.PAGE.write_text(operators.PAGE.read_text().replace("| Abs |", "| Absolute |"))
    result = run("--check")
    assert result.exit_code == 1
    assert "stale" in result.output


@pytest.mark.parametrize(
    ("name", "versions", "said"), [("Relu", (6, 13), "Relu 14"), ("GroupNormalization", (18, 21), "Normalization 18")]
)
def test_an_operator_without_a_class_or_with_two_is_found(
    name: str, versions: tuple[int, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules.TABLE, name, replace(rules.TABLE[name], versions=versions))
    result = run()
    assert result.exit_code == 1
    assert said in result.output


def test_a_new_operator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "history", lambda: {**history(), "Novelty": (29,)})
    result = run("--check")
    assert result.exit_code == 1
    assert "Novelty 29" in result.output


def test_versions_said_to_be_deprecated_or_replaced_are() -> None:
    for name, versions in history().items():
        for version in versions:
            if opaque(name, version) == "deprecated":
                assert onnx.defs.get_schema(name, version, "").deprecated
            elif name in rules.TABLE and opaque(name, version) is not None:
                assert onnx.defs.get_schema(name, 7, "").since_version > version


def test_a_barrier_says_why() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    n.op("Det", n.conv("x", 2, 6), name="y")
    barriers = analyse(load(n.model("y"))).barriers
    assert barriers == {"Det 'y'": "the operator Det has no rule: it needs its whole matrix"}
