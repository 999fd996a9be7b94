"""What became of each layer, and how each initializer merges, in a few words."""

from __future__ import annotations

from typing import Any

from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import InitializerPlan, Layer, Plan


def _outcome(layer: Layer, meeting: frozenset[str]) -> str:
    """What became of a layer.

    :param layer: as the plan has it.
    :param meeting: titles of the reductions.
    """
    if layer.parts:
        return "divided"
    if layer.node in meeting and layer.reason.startswith("it is tied to the output"):
        return "shared: output layer"
    return f"not divided: {layer.reason}"


def of_layers(made: Partition) -> list[str]:
    """What became of each of the plan's layers."""
    meeting = frozenset(made.analysis.ops[i].title for i in made.division.meetings)
    return [_outcome(layer, meeting) for layer in made.plan.layers]


def _role(initializer: InitializerPlan, k: int) -> str:
    """How an initializer merges, in a few words."""
    if initializer.constant:
        return "constant"
    if initializer.reduces:
        return "joined, divided by K"
    if initializer.stored == "apart":
        return "replicated: mean over the parts"
    divided = any(initializer.part_shape(p) != initializer.shape for p in range(k))
    return "joined" if divided else "shared: mean over the parts"


def of_initializers(plan: Plan) -> list[dict[str, Any]]:
    """For each floating-point initializer its name, shape in the whole and in the parts, and how it merges."""
    return [
        {
            "name": initializer.name,
            "shape": initializer.shape,
            "parts": [initializer.part_shape(p) for p in range(plan.k)],
            "merging": _role(initializer, plan.k),
        }
        for initializer in plan.initializers
    ]
