"""The five conditions of section 2.2."""

from __future__ import annotations

import networkx as nx
import numpy as np

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Fields
from onnxpart.planning.assign import ANYWHERE, Parts
from onnxpart.planning.partition import partition_of
from onnxpart.planning.plan import InitializerPlan, Plan
from onnxpart.planning.unit_classes import Decision, decide
from onnxpart.verification.unit_graph import Mask, Node, part_subgraph, unit_graph


def check_conditions(analysis: Analysis, plan: Plan) -> list[str]:
    """The conditions of section 2.2 that a plan breaks, each with what breaks it.

    1. Each part is a complete flow: its nodes lie on paths from an input to an output. 2. Each vertex-induced subgraph
    is a valid network: its only sources are inputs, its only sinks outputs, and its parameters belong to its units. 3.
    Inputs and outputs are those of the whole. 4. Every hidden unit is in exactly one part, unless it is replicated. 5.
    Every element of a parameter is in at most one part, unless it is an output unit's or replicated. Nodes that lie on
    no path in the whole network are left out.

    :param analysis: the analysis that `plan` was made from.
    :returns: a sentence for each breach, sorted; none when all conditions hold.
    :raises MergeError: when the plan is of another model.
    """
    graph = unit_graph(analysis, plan)
    alive = graph.subgraph(_on_paths(graph))
    result = []
    for part in range(plan.k):
        sub = part_subgraph(alive, part)
        stray = sub.nodes - _on_paths(sub)
        result += [f"condition 1: in part {part}, {_name(sub, n)} is on no path from input to output" for n in stray]
        result += _loose_ends(sub, part)
    division = partition_of(analysis, plan).division
    result += [
        f"condition 3: {name!r} is divided, so its shape in a part isn't that in the whole"
        for name in (*analysis.model.inputs, *analysis.model.outputs)
        if division.divided(name)
    ]
    result += _misplaced_units(analysis, division.parts, decide(analysis, plan.k))
    for initializer in plan.initializers:
        result += _misplaced_elements(initializer, analysis.fields(initializer.name), division.parts, plan.k)
    return sorted(result)


def _kind(graph: nx.DiGraph, kind: str) -> list[Node]:
    return [node for node, found in graph.nodes(data="kind") if found == kind]


def _on_paths(graph: nx.DiGraph) -> set[Node]:
    """Nodes on a path from an input to an output."""
    behind = set().union(*({n} | nx.descendants(graph, n) for n in _kind(graph, "input")))
    return behind & set().union(*({n} | nx.ancestors(graph, n) for n in _kind(graph, "output")))


def _name(graph: nx.DiGraph, node: Node) -> str:
    return f"{graph.nodes[node]['kind']} {graph.nodes[node]['layer']}"


def _loose_ends(graph: nx.DiGraph, part: int) -> list[str]:
    """Sources that aren't inputs and sinks that aren't outputs; nodes on a cycle count as one."""
    result = []
    cycles = nx.condensation(graph)
    for what, degree, kind in (("source", cycles.in_degree, "input"), ("sink", cycles.out_degree, "output")):
        for component, members in cycles.nodes(data="members"):
            if degree(component) == 0 and not any(graph.nodes[n]["kind"] == kind for n in members):
                name = _name(graph, min(members))
                result.append(f"condition 2: in part {part}, {name} is a {what} that is no {kind}")
    return result


def _misplaced_units(analysis: Analysis, parts: Parts, decision: Decision) -> list[str]:
    """Unit classes whose places in the network are in several parts, and shared units in a single one."""
    classes = decision.classes
    low, high = np.full(classes.max() + 1, np.iinfo(np.int16).max), np.full(classes.max() + 1, ANYWHERE)
    np.minimum.at(low, classes, parts)
    np.maximum.at(high, classes, parts)
    result = []
    for c in np.flatnonzero(low < high):
        if c == 0:
            result.append(f"condition 4: units that every part has are in part {high[c]} alone")
            continue
        layer = analysis.ops[analysis.labels.roots[decision.home[c]][1]].title
        result.append(f"condition 4: a unit of {layer} is in several parts ({low[c]} and {high[c]})")
    return result


def _misplaced_elements(initializer: InitializerPlan, fields: Fields, parts: Parts, k: int) -> list[str]:
    """Parameter elements in other parts than their units."""
    if initializer.constant or not initializer.shape:
        return []
    owned = [_owned(fields, parts, p, initializer.shape) for p in range(k)]
    held = [_held(initializer, p) for p in range(k)]
    name, result = repr(initializer.name), []
    shared = initializer.reduces or initializer.after_reduction or initializer.stored == "apart"
    several = np.sum(held, axis=0) > 1
    if shared:
        several &= ~np.all(owned, axis=0)
    if several.any():
        result.append(f"condition 5: {several.sum()} elements of {name} are in several parts")
    for p, (own, have) in enumerate(zip(owned, held, strict=True)):
        if (own & ~have).any():
            lost = (own & ~have).sum()
            result.append(f"condition 4: {lost} elements of {name} are not in part {p}, where their units are")
        if (have & ~own & ~several).any():
            extra = (have & ~own & ~several).sum()
            result.append(f"condition 2: {extra} elements of {name} are in part {p}, where their units are not")
    return result


def _owned(fields: Fields, parts: Parts, part: int, shape: tuple[int, ...]) -> Mask:
    """Which elements belong to a part by their units."""
    result = np.ones(shape, bool)
    for f in fields:
        result &= (parts[f] == part) | (parts[f] == ANYWHERE)
    return result


def _held(initializer: InitializerPlan, part: int) -> Mask:
    """Which elements a part holds by the plan's blocks."""
    result = np.zeros(initializer.shape, bool)
    for index, _ in initializer.pieces(part):
        result[index] = True
    return result
