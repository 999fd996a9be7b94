"""Models whose weights lie in a file of their own."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto


def outside(model: ModelProto, name: str = "m.onnx", data: str = "m.data") -> Path:
    """A file of the model, every initializer external."""
    Path(data).parent.mkdir(parents=True, exist_ok=True)
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, name, save_as_external_data=True, location=data, size_threshold=0)
    return Path(name)
