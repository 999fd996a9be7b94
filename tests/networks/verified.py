"""Whether the oracles find nothing, and what they are asked about."""

from __future__ import annotations

from onnx import ModelProto

from models import BUILDERS
from onnxpart import Analysis, OnnxpartError, Plan, Split, analyse, load, plan, verify


def holds(model: ModelProto, k: int = 2, order: str = "random", seed: int = 1) -> bool:
    """Whether the model is divided and the oracles find nothing; a refusal counts as a find."""
    try:
        analysis = analyse(load(model))
        return verify(analysis, plan(analysis, k, order=order, seed=seed)).holds
    except OnnxpartError:
        return False


def split_holds(done: Split) -> bool:
    """Whether the oracles find nothing in the models of a split."""
    return verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def planned(name: str, k: int = 2) -> tuple[Analysis, Plan]:
    """One of the project's networks, and a plan of it."""
    analysis = analyse(load(BUILDERS[name]()))
    return analysis, plan(analysis, k)
