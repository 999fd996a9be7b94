"""The public interface is what golden_api.txt says: names, signatures, commands and their options."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

import onnxpart
from onnxpart.cli.app import app
from onnxpart.verification import conditions, unit_graph
from tests.networks import api

GOLDEN = Path(__file__).with_name("golden_api.txt")


def test_the_interface_is_the_golden_one(update_golden: bool) -> None:
    lines = [*api.names("onnxpart"), *api.names("onnxpart.torch"), *api.commands(app, "onnxpart")]
    if update_golden:
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wanted = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert not list(difflib.unified_diff(wanted, lines, "golden_api.txt", "the interface", lineterm="", n=1))


def test_every_public_name_is_there_and_listed() -> None:
    for name in onnxpart.__all__:
        assert getattr(onnxpart, name) is getattr(onnxpart, name)
    assert [name for name in dir(onnxpart) if not name.startswith("__")] == sorted(onnxpart.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxpart.nothing


def test_graphs_are_reached_by_their_module_and_by_name() -> None:
    assert onnxpart.graph is unit_graph
    assert onnxpart.unit_graph is unit_graph.unit_graph
    assert onnxpart.check_conditions is conditions.check_conditions


@pytest.mark.parametrize("order", ["split", "split as module first"])
def test_a_verb_is_a_function_whatever_was_imported_before(order: str) -> None:
    first = "import onnxpart.emission.split; " if "module" in order else ""
    code = f"{first}import onnxpart; print(onnxpart.split.__module__, callable(onnxpart.split))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["onnxpart.emission.split", "True"]
