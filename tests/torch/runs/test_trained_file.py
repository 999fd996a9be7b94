"""Trained weights into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from models import regression_mlp
from onnxpart.errors import ModelError, OnnxpartError
from onnxpart.storage.onnx_file import save
from onnxpart.torch import import_onnx, load_weights, weights
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.runs.trained_file import deviation, read_whole, with_weights
from onnxpart.torch.training.objective import Objective

MODEL = regression_mlp(0, inputs=6, hidden=(40,))
OBJECTIVE = Objective("mse", "y", "y")
BATCH: Batch = ((torch.randn(5, 6, generator=torch.Generator().manual_seed(0)),), torch.zeros(5, 1))


@pytest.mark.parametrize("external", [False, True])
def test_weights_are_written_where_they_were(tmp_path: Path, external: bool) -> None:
    path, module = tmp_path / "m.onnx", import_onnx(MODEL)
    onnx.save_model(
        onnx.ModelProto.FromString(MODEL.SerializeToString()),
        path,
        save_as_external_data=external,
        location="m.data",
        size_threshold=64,
    )
    changed = {name: array + 1 for name, array in weights(module).items()}
    load_weights(module, changed)
    save(with_weights(module, path), path)
    held = {t.name: t.data_location for t in onnx.load_model(path, load_external_data=False).graph.initializer}
    assert (held["fc1.weight"] == TensorProto.EXTERNAL) == external
    for tensor in read_whole(path).graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), changed[tensor.name])
    assert deviation(module, OBJECTIVE, path, BATCH) < 1e-5


def test_a_file_of_other_weights_is_off(tmp_path: Path) -> None:
    module = import_onnx(MODEL)
    onnx.save_model(MODEL, tmp_path / "m.onnx")
    load_weights(module, {name: array + 0.01 for name, array in weights(module).items()})
    with pytest.raises(OnnxpartError, match="ONNX Runtime's 'y' differs from the trained module's by"):
        deviation(module, OBJECTIVE, tmp_path / "m.onnx", BATCH)


def test_a_file_that_cannot_run_is_named(tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(MODEL)
    proto.graph.node.append(helper.make_node("Mystery", ["y"], ["z"], domain="unknown"))
    onnx.save_model(proto, tmp_path / "m.onnx")
    with pytest.raises(OnnxpartError, match="is written, but ONNX Runtime can't run it"):
        deviation(import_onnx(MODEL), OBJECTIVE, tmp_path / "m.onnx", BATCH)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="holds no graph"):
        read_whole(tmp_path / "m.onnx")
