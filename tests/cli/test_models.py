"""The network that a command is given."""

from __future__ import annotations

import sys
import warnings
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


def test_a_program_of_torch_export_is_read_and_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, x = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},)), "mlp.pt2")
    told = run("split", "mlp.pt2", "-k", 2).stdout
    assert "checked in ONNX Runtime" in told
    run("merge", "mlp_parts", "-o", "merged.onnx")
    assert "0.weight" in load("merged.onnx").initializers
    code = "import sys; sys.modules['torch'] = None; from onnxpart.cli.app import main; main()"
    refused = process(sys.executable, "-c", code, "inspect", "mlp.pt2")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: reading a .pt2 file needs the package torch; ")
