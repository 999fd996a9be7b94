"""How to get ONNX from files that hold none, and what to leave out when exporting."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from onnxpart.errors import ModelError

_TORCH = "PyTorch weights: export the module with onnxpart.torch.export(module, example_inputs, 'model.onnx')"
_KERAS = "a Keras model: export it with model.export('model.onnx', format='onnx')"
_PICKLE = "a pickled object: export a scikit-learn model with skl2onnx.to_onnx(model, x[:1], options={'zipmap': False})"
_ARRAYS = "arrays of numpy: name the model's file, and give arrays to train on with --data"
FOREIGN = {
    ".bin": _TORCH,
    ".ckpt": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": "weights without a network: export the module that they belong to as ONNX",
    ".pt2": "a program of torch.export: read it with onnxpart.torch.load_program(path)",
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".tflite": "a TensorFlow Lite model: convert it with `python -m tf2onnx.convert --tflite model.tflite`",
    ".joblib": _PICKLE,
    ".pickle": _PICKLE,
    ".pkl": _PICKLE,
    ".npy": _ARRAYS,
    ".npz": _ARRAYS,
    ".jpg": "an image: name the model's file",
    ".png": "an image: name the model's file",
}
"""Suffixes of files that hold no ONNX -> what is in them, and how to get ONNX."""


def refuse_foreign(path: Path) -> None:
    """Refuse a file that isn't a model, or that another framework saved.

    :raises ModelError: when its suffix says so; the message says what to do.
    """
    kind = FOREIGN.get(path.suffix.lower())
    if kind is not None and path.is_file():
        raise ModelError(f"{path} isn't an ONNX file but {kind}.")


def zipped(proto: ModelProto) -> list[str]:
    """Sentences on outputs that scikit-learn's exporter makes dictionaries of."""
    return [
        f"the output {node.output[0]!r} is a list of dictionaries, one for each sample, so it can't be trained; export "
        f"the model with options={{'zipmap': False}}, or choose the tensor before it with --outputs {node.input[0]}"
        for node in proto.graph.node
        if node.op_type == "ZipMap"
    ]
