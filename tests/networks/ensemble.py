"""The whole and its parts compared as files are: in ONNX Runtime, with nothing of the tool but what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from onnxpart import Split, arrays, merge
from onnxpart.verification.runtime import Session


def deviation(done: Split, *inputs: Mapping[str, NDArray[Any]]) -> float:
    """How far the whole that the parts merge into is from their mean, relative to the largest output or 1.

    :param inputs: one or several, for each of which all are run; the largest deviation counts.
    """
    parts = [Session(part).run_all(inputs) for part in done.parts]
    wholes = Session(filled(done.whole, merge(done.plan, [arrays(part) for part in done.parts]))).run_all(inputs)
    worst = 0.0
    for i, whole in enumerate(wholes):
        for name, value in whole.items():
            mean = np.mean([part[i][name] for part in parts], axis=0)
            assert value.shape == mean.shape
            worst = max(worst, float(np.abs(value - mean).max() / max(float(np.abs(mean).max()), 1.0)))
    return worst


def filled(model: ModelProto, values: Mapping[str, NDArray[Any]]) -> ModelProto:
    """A model with other values of its initializers."""
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result
