"""Whether the oracles find nothing, for tests that put something wrong in."""

from __future__ import annotations

from onnx import ModelProto

from onnxpart import OnnxpartError, analyse, load, plan, verify


def holds(model: ModelProto, k: int = 2, order: str = "random", seed: int = 1) -> bool:
    """Whether the model is divided and the oracles find nothing; a refusal counts as a find."""
    try:
        analysis = analyse(load(model))
        return verify(analysis, plan(analysis, k, order=order, seed=seed)).holds
    except OnnxpartError:
        return False
