"""Where 1/K goes when the weight of a meeting point can't take it: into what makes the units that meet there.

A tied embedding is the case in point: its matrix looks tokens up as well, but the last normalisation's scale and bias,
divided by K, give the same output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpart.planning.placement import Layout

NORMALISATIONS = frozenset(
    ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
)
"""Operators that are linear in their inputs 1 and 2."""
CONTRACTIONS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators that are linear in all of their parameters."""


@dataclass
class Ahead:
    """What is divided by K for one meeting point: initializers, the activations that follow, the nodes between."""

    initializers: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


def ahead(layout: Layout, points: Iterable[int]) -> dict[int, Ahead]:
    """For each of the meeting points that has one, the way to divide what comes in by K and nothing else."""
    found = {}
    for i in points:
        divided = {n for n in layout.analysis.inputs(i) if layout.divided(n)}
        weights = divided & layout.analysis.state.weights_only
        divided -= weights
        way = Ahead()
        if any(layout.factors(n) is None for n in weights):
            continue  # something in it is every part's own
        if len(divided) == 1 and _follow(layout, divided.pop(), way):
            found[i] = way
    while leaking := [i for i, way in found.items() if not _closed(layout, way, found)]:
        for i in leaking:
            del found[i]
    return found


def _follow(layout: Layout, name: str, way: Ahead) -> bool:
    """Go back from an activation to the parameters that it is linear in; False where it isn't."""
    analysis = layout.analysis
    producer = analysis.producer.get(name)
    rule = None if producer is None else analysis.rules[producer]
    if producer is None or rule is None:
        return False
    op = analysis.ops[producer].node
    way.values.add(name)
    way.nodes.add(producer)
    inputs = [n for n in op.input if n]
    parameters = [n for n in inputs if n in analysis.state.weights_only]
    if op.op_type in NORMALISATIONS:
        return all(_divide(layout, n, way) for n in inputs[1:3])
    if op.op_type in CONTRACTIONS:
        return len(inputs) == len(parameters) + 1 and all(_divide(layout, n, way) for n in parameters)
    if rule.mean == "scale" and any(_divide(layout, n, way) for n in parameters):
        return True
    if rule.mean == "sum":
        return all(_divide(layout, n, way) if n in parameters else _follow(layout, n, way) for n in inputs)
    return rule.mean == "data" and inputs[0] not in parameters and _follow(layout, inputs[0], way)


def _divide(layout: Layout, name: str, way: Ahead) -> bool:
    factors = layout.factors(name)
    way.initializers |= factors or set()
    return factors is not None


def _closed(layout: Layout, way: Ahead, found: dict[int, Ahead]) -> bool:
    """Whether nothing but the nodes on the way, and meeting points that want it too, reads what is divided."""
    outputs = layout.analysis.model.outputs
    read = {(n, i) for n in way.values for i in layout.analysis.consumers.get(n, []) if i not in way.nodes}
    return (
        way.values.isdisjoint(outputs)
        and all(i in found and n in found[i].values for n, i in read)
        and all(layout.readers(n) <= way.nodes for n in way.initializers)
    )
