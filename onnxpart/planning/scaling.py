"""Where 1/K goes: into the weights of reductions, or into what makes the units that meet there.

A tied embedding is the case in point for the latter: its matrix looks tokens up as well, but the last normalisation's
scale and bias, divided by K, give the same output.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from onnxpart.planning.division import Division

NORMALISATIONS = frozenset(
    ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
)
"""Operators that are linear in their inputs 1 and 2."""
CONTRACTIONS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
"""Operators that are linear in all of their parameters."""


@dataclass
class Upstream:
    """What is divided by K for one reduction whose weight can't be.

    The initializers, the activations that are scaled by that, and the nodes that make these.
    """

    initializers: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What may be divided by K, and what for.

    `factors` are the initializers to divide for each node that can be a reduction, `readers` the nodes that each of
    them reaches, `scaled` those that nothing else reads; `upstream` says for which nodes they aren't the node's weight.
    """

    factors: Mapping[int, frozenset[str]]
    readers: Mapping[str, frozenset[int]]
    scaled: frozenset[str]
    upstream: Mapping[int, Upstream]

    def scaled_upstream(self, reductions: Container[int]) -> frozenset[str]:
        """Initializers that are divided in place of the weights of some reductions."""
        return frozenset().union(*(way.initializers for i, way in self.upstream.items() if i in reductions))


def scaling(division: Division) -> Scaling:
    """Find what to divide by K for each operator at which the parts' contributions may meet."""
    analysis = division.analysis
    own = {i: found for i in sorted(division.meetings) if (found := _factors_of_weights(division, i))}
    users = {name: readers(division, name) for found in own.values() for name in found}
    scaled = {name for name, read in users.items() if all(name in own.get(u, ()) for u in read)}
    rest = [i for i in sorted(division.meetings) if analysis.ops[i].op_type in CONTRACTIONS]
    rest = [i for i in rest if not any(division.divided(n) and division.replicated(n) for n in analysis.parameters[i])]
    upstream = find_upstream(division, [i for i in rest if i not in own or not own[i] <= scaled])
    used = {i: frozenset(way.initializers) for i, way in upstream.items()}
    names = frozenset().union(*used.values())
    users.update({n: frozenset(i for i, chosen in used.items() if n in chosen) for n in names})
    return Scaling({**own, **used}, users, names | scaled, upstream)


def _factors_of_weights(division: Division, i: int) -> frozenset[str]:
    """Initializers to divide by K to divide the weight of an operator by K."""
    parameters = division.analysis.parameters[i]
    return frozenset().union(*(factors(division, n) or () for n in parameters if division.divided(n)))


def factors(division: Division, name: str) -> frozenset[str] | None:
    """Initializers to divide by K to divide a tensor of weights by K; None for another one, or if no choice does."""
    analysis, state = division.analysis, division.analysis.state
    if not division.divided(name) or name not in state.depends_on_parameters or name not in state.weights_only:
        return None
    if name in analysis.model.initializers:
        return frozenset((name,))
    producer = analysis.producer[name]
    mean = division.passes_mean(producer)
    names = [n for n in analysis.ops[producer].inputs if n]
    found = [factors(division, n) for n in names]
    if mean == "no":
        return None
    if mean == "sum":
        known = [f for f in found if f is not None]
        return frozenset().union(*known) if len(known) == len(found) else None
    for i, chosen in enumerate(found[:1] if mean == "data" else found):
        others = set().union(*(_origins(division, n) for j, n in enumerate(names) if j != i))
        if chosen is not None and chosen.isdisjoint(others) and not any(map(division.replicated, others)):
            return chosen
    return None


def _origins(division: Division, name: str) -> set[str]:
    """Initializers that a tensor is made of, which is made of weights alone."""
    if name in division.analysis.model.initializers:
        return {name}
    producer = division.analysis.producer[name]
    return set().union(*(_origins(division, n) for n in division.analysis.inputs(producer)))


def readers(division: Division, name: str) -> frozenset[int]:
    """Operators on activations that an initializer reaches."""
    analysis = division.analysis
    result: set[int] = set()
    for i in analysis.consumers.get(name, []):
        if analysis.activations[i] or not analysis.rules[i]:
            result.add(i)
        else:
            result.update(*(readers(division, n) for n in analysis.ops[i].outputs))
    return frozenset(result)


def find_upstream(division: Division, reductions: Iterable[int]) -> dict[int, Upstream]:
    """For each of the reductions that has one, the way to divide what comes in by K and nothing else."""
    found = {}
    for i in reductions:
        divided = {n for n in division.analysis.inputs(i) if division.divided(n)}
        weights = divided & division.analysis.state.weights_only
        divided -= weights
        way = Upstream()
        if any(factors(division, n) is None for n in weights):
            continue  # something in it is every part's own
        if len(divided) == 1 and _follow(division, divided.pop(), way):
            found[i] = way
    while leaking := [i for i, way in found.items() if not _closed(division, way, found)]:
        for i in leaking:
            del found[i]
    return found


def _follow(division: Division, name: str, way: Upstream) -> bool:
    """Go back from an activation to the parameters that it is linear in; False where it isn't."""
    analysis = division.analysis
    producer = analysis.producer.get(name)
    if producer is None or analysis.rules[producer] is None:
        return False
    mean = division.passes_mean(producer)
    op = analysis.ops[producer].node
    way.values.add(name)
    way.nodes.add(producer)
    inputs = [n for n in op.input if n]
    parameters = [n for n in inputs if n in analysis.state.weights_only]
    if op.op_type in NORMALISATIONS:
        return all(_divide(division, n, way) for n in inputs[1:3])
    if op.op_type in CONTRACTIONS:
        return len(inputs) == len(parameters) + 1 and all(_divide(division, n, way) for n in parameters)
    if mean == "scale" and any(_divide(division, n, way) for n in parameters):
        return True
    if mean == "sum":
        return all(_divide(division, n, way) if n in parameters else _follow(division, n, way) for n in inputs)
    return mean == "data" and inputs[0] not in parameters and _follow(division, inputs[0], way)


def _divide(division: Division, name: str, way: Upstream) -> bool:
    """Add what divides a parameter by K to the way; False where nothing does."""
    found = factors(division, name)
    way.initializers |= found or set()
    return found is not None


def _closed(division: Division, way: Upstream, found: Mapping[int, Upstream]) -> bool:
    """Whether nothing but the nodes on the way, and reductions that want it too, reads what is divided."""
    analysis = division.analysis
    read = {(n, i) for n in way.values for i in analysis.consumers.get(n, []) if i not in way.nodes}
    return (
        way.values.isdisjoint(analysis.model.outputs)
        and all(i in found and n in found[i].values for n, i in read)
        and all(readers(division, n) <= way.nodes for n in way.initializers)
    )
