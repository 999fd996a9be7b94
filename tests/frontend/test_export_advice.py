"""What other frameworks save is told how to export."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from models import BUILDERS
from onnxpart import ModelError, load
from onnxpart.cli.models import loaded
from onnxpart.frontend.export_advice import zipped


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("m.pt", "onnxpart.torch.export(module, example_inputs, 'model.onnx')"),
        ("m.PTH", "onnxpart.torch.export(module, example_inputs, 'model.onnx')"),
        ("m.pt2", "onnxpart.torch.load_program(path)"),
        ("m.keras", "model.export('model.onnx', format='onnx')"),
        ("m.h5", "model.export('model.onnx', format='onnx')"),
        ("m.tflite", "tf2onnx"),
        ("m.pkl", "options={'zipmap': False}"),
        ("m.npz", "give arrays to train on with --data"),
        ("m.png", "name the model's file"),
        ("m.safetensors", "export the module that they belong to"),
    ],
)
def test_a_file_of_another_framework_is_told_how_to_export(tmp_path: Path, name: str, advice: str) -> None:
    path = tmp_path / name
    with pytest.raises(ModelError, match="doesn't exist"):
        load(path)
    path.write_bytes(b"PK")
    with pytest.raises(ModelError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path} isn't an ONNX file but ")
    assert advice in str(refused.value)


def test_dictionaries_of_scikit_learn_are_explained(tmp_path: Path) -> None:
    model = BUILDERS["chain"]()
    assert zipped(model) == []
    model.graph.node.append(
        helper.make_node("ZipMap", ["logits"], ["answers"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    answers = model.graph.output.add(name="answers").type.sequence_type.elem_type.map_type
    answers.key_type, answers.value_type.tensor_type.elem_type = TensorProto.INT64, TensorProto.FLOAT
    onnx.save_model(model, tmp_path / "zip.onnx")
    with pytest.warns(UserWarning, match="'answers' is a list of dictionaries.*'zipmap': False.*--outputs logits"):
        loaded(tmp_path / "zip.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(tmp_path / "zip.onnx", ["logits"])
