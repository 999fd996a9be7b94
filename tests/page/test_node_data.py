"""Node data for Model Explorer name what stands at each node, under the names that its graph has."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from models import BUILDERS
from onnxpart import ModelError, UsageError
from onnxpart.page.node_data import SUFFIX
from onnxpart.page.write import check
from tests.networks.command import run, run_json


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for two models."""
    for name in ("lenet", "lrn"):
        onnx.save_model(BUILDERS[name](), tmp_path / f"{name}.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_nodes_and_initializers_by_name() -> None:
    assert "wrote the node data n.json" in run("inspect", "lenet.onnx", "-k", 5, "--node-data", "n.json").stdout
    results = json.loads(Path("n.json").read_text())["results"]
    assert results["conv1"] == {"value": "divided: 4 + 4 + 4 + 4 + 4", "bgColor": "#56b4e9"}
    assert results["relu1"] == results["conv1"]
    assert results["logits"] == {"value": "meeting", "bgColor": "#f0e442"}
    assert results["[value] logits.weight"] == {"value": "joined, divided by K"}


@pytest.mark.usefixtures("here")
def test_every_node_has_some() -> None:
    run("inspect", "lrn.onnx", "--node-data", "n.json")
    results = json.loads(Path("n.json").read_text())["results"]
    model = onnx.load("lrn.onnx")
    assert {node.name for node in model.graph.node} <= results.keys()
    assert results["norm"]["value"].startswith("duplicated: ")


@pytest.mark.usefixtures("here")
def test_its_own_are_replaced_and_nothing_else_is() -> None:
    for _ in range(2):
        assert run_json("inspect", "lenet.onnx", "--node-data", "n.json")["node_data"] == "n.json"
    Path("mine.json").write_text('{"mine": 1}')
    with pytest.raises(ModelError, match=r"mine\.json wasn't written by onnxpart"):
        check(Path("mine.json"), SUFFIX, [])
    assert Path("mine.json").read_text() == '{"mine": 1}'


@pytest.mark.usefixtures("here")
def test_a_name_without_its_ending_and_a_folder_that_is_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match=r"n\.txt doesn't end with \.json"):
        check(Path("n.txt"), SUFFIX, [])
    with pytest.raises(UsageError, match=r"the folder nowhere of n\.json doesn't exist"):
        check(Path("nowhere/n.json"), SUFFIX, [])
