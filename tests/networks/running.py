"""Models in ONNX Runtime, for the tests of what PyTorch makes of them."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

Array = NDArray[np.generic]


def run_onnx(model: ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """The outputs of a model, in order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, inputs)]
