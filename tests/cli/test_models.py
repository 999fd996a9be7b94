"""The network that a command is given."""

from __future__ import annotations

import sys
import warnings
from itertools import chain
from pathlib import Path

import onnx
import pytest
import torch

from models import BUILDERS
from onnxpart import load
from onnxpart.cli.models import loaded
from tests.networks.command import process, run


def test_outputs_may_be_given_one_by_one_or_between_commas(tmp_path: Path) -> None:
    onnx.save_model(BUILDERS["chain"](), tmp_path / "chain.onnx")
    model = loaded(tmp_path / "chain.onnx")
    inner = [node.output[0] for node in model.proto.graph.node][:2]
    for outputs in (inner, [",".join(inner)]):
        found = loaded(tmp_path / "chain.onnx", outputs)
        assert [value.name for value in found.proto.graph.output] == inner


def test_a_program_of_torch_export_is_divided_and_made_shallow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers = [(torch.nn.Linear(i, o), torch.nn.ReLU()) for i, o in ((3, 8), (8, 8), (8, 8), (8, 2))]
    module, x = torch.nn.Sequential(*chain(*layers)), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},)), "mlp.pt2")
    told = run("split", "mlp.pt2", "-k", 2).stdout
    assert "checked in ONNX Runtime" in told
    run("merge", "mlp_parts", "-o", "merged.onnx")
    assert "0.weight" in load("merged.onnx").initializers
    run("shallow", "mlp.pt2", "--blocks", 1, "-o", "shallow.onnx")
    assert "filled 2 initializers" in run("deepen", "shallow.onnx", "mlp.pt2", "-o", "deep.onnx").stdout
    code = "import sys; sys.modules['torch'] = None; from onnxpart.cli.app import main; main()"
    refused = process(sys.executable, "-c", code, "inspect", "mlp.pt2")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: reading a .pt2 file needs the package torch; ")
