"""Programs of torch.export as ONNX to train from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnxpart import ModelError, load, split, verify
from onnxpart.torch import import_onnx, load_program
from onnxpart.verification.runtime import Session


def network() -> nn.Sequential:
    torch.manual_seed(0)
    result = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(288, 10)
    )
    with torch.no_grad():
        result(torch.randn(16, 1, 8, 8) + 1)  # so that the statistics are none that a fresh norm has
    return result


@pytest.mark.parametrize("training", [False, True])
def test_a_program_is_a_network_to_train(tmp_path: Path, training: bool) -> None:
    module, x = network().train(training), torch.randn(4, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("N")},))
        torch.export.save(program, tmp_path / "m.pt2")
    proto = load_program(tmp_path / "m.pt2")
    kinds = [node.op_type for node in load(proto).proto.graph.node]
    assert "BatchNormalization" in kinds
    assert ("Dropout" in kinds) is training
    names = {tensor.name for tensor in proto.graph.initializer}
    assert {name for name, _ in module.named_parameters()} <= names
    (found,) = Session(proto).run({proto.graph.input[0].name: x[:3].numpy()}).values()
    wanted = module.eval()(x[:3]).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    done = split(proto, 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.by_name["5.weight"].part_shape(0) == (10, 144)
    imported = import_onnx(proto)
    np.testing.assert_allclose(imported.eval()(x[:3]).detach(), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.pt2 doesn't exist; check the path\.$"):
        load_program(tmp_path / "m.pt2")
    (tmp_path / "m.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(
        ModelError, match=r"m\.pt2 isn't a program of torch.export \(.*\); write it with torch.export.save"
    ):
        load_program(tmp_path / "m.pt2")
