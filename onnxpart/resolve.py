"""What is known before a network is analysed: branches, sequences, and states that no iteration changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxpart import plumbing
from onnxpart.borders import grown
from onnxpart.control import ENTER, graphs_of, live, replace, replace_reads
from onnxpart.nest import normal
from onnxpart.shapes import Shapes, infer

if TYPE_CHECKING:
    from onnxpart.model import Model

LOOPS = frozenset(("Loop", "Scan"))
"""Operators that hand states on from one iteration to the next."""
_MOVES = frozenset(
    ("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze")
)
"""Operators that hand on sizes as they are, so that one that is the same for all trial values is fixed."""


def resolve(model: Model) -> ModelProto | None:
    """The model with an If or a state less, or with tensors in place of sequences; None where nothing is to be done."""
    kinds = {node.op_type for node in _all(model.proto.graph)}
    if kinds.isdisjoint({"If", *LOOPS, *plumbing.OPERATORS}):
        return None
    result = ModelProto()
    result.CopyFrom(model.proto)
    if not _free_states(result.graph, model.opsets.get("", 1)):
        if kinds.isdisjoint({"If", *plumbing.OPERATORS}):
            return None
        shapes = infer(model)
        if not (_take_branches(result.graph, fixed(shapes)) or _replace_sequences(result, model, shapes)):
            return None
    _drop_unread(result.graph, model.proto.graph)
    return result


def _all(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            yield from _all(inner)


def _replace_sequences(result: ModelProto, model: Model, shapes: Shapes) -> bool:
    """Replace sequences by tensors, unless a loop would have to collect tensors of different sizes."""
    opset = model.opsets.get("", 1)
    pipes = plumbing.Plumbing(result.graph, shapes, opset)
    if not pipes.run():
        return False
    if pipes.collected:
        trial = ModelProto()
        trial.CopyFrom(result)
        normal(trial.graph, opset)
        found = infer(dataclasses.replace(model, proto=trial))
        return found.shape.keys() >= pipes.collected and not grown(found)
    return True


def _take_branches(graph: GraphProto, known: Mapping[str, bool]) -> bool:
    """Put the nodes of the branch that is taken in place of every If whose condition is known."""
    nodes, changed = [], False
    for node in graph.node:
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.input[0] in known:
            wanted = "then_branch" if known[node.input[0]] else "else_branch"
            branch = next(a.g for a in node.attribute if a.name == wanted)
            nodes.extend(branch.node)
            pairs = zip(branch.output, node.output, strict=True)
            nodes += [helper.make_node("Identity", [v.name], [out], name=out) for v, out in pairs if out]
            changed = True
            continue
        for inner in graphs_of(node):
            changed |= _take_branches(inner, known)
        nodes.append(node)
    if changed:
        replace(graph.node, nodes)
    return changed


def _free_states(graph: GraphProto, opset: int) -> bool:
    """Let bodies read from outside what their loop hands on unchanged from one iteration to the next."""
    nodes, changed = [], False
    for node in graph.node:
        nodes.append(node)
        for inner in graphs_of(node):
            changed |= _free_states(inner, opset)
        if node.op_type in LOOPS and node.domain in ("", "ai.onnx") and not (node.op_type == "Scan" and opset < 9):
            freed = _free(node, 2 if node.op_type == "Loop" else 0)
            nodes += [helper.make_node("Identity", [given], [out], name=out) for given, out in freed.items() if out]
            changed |= bool(freed)
    if changed:
        replace(graph.node, nodes)
    return changed


def _free(node: NodeProto, first: int) -> dict[str, str]:
    """Take the states out of a loop that it doesn't change; returns what they were at first -> in the end.

    :param first: how many inputs stand in front of the states; the body's first output is in front of them if any do.
    """
    body = next(graphs_of(node))
    settings = {a.name: a.i for a in node.attribute}
    before = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
    freed: dict[str, str] = {}
    for i in reversed(range(first, len(node.input) - settings.get("num_scan_inputs", 0))):
        j = i - first
        made = body.output[j + bool(first)].name
        while made in before:
            made = before[made]
        if made != body.input[i].name or node.input[i] in freed:
            continue
        freed[node.input[i]] = node.output[j] if j < len(node.output) else ""
        for child in body.node:
            replace_reads(child, {made: node.input[i]})
        for values in (node.input, body.input):
            del values[i]
        del body.output[j + bool(first)]
        if j < len(node.output):
            del node.output[j]
    return freed


def _drop_unread(graph: GraphProto, before: GraphProto) -> None:
    """Leave out nodes that lead nowhere, and initializers that only they, or nothing new, read."""
    nodes, used = live(graph.node, [v.name for v in graph.output])
    replace(graph.node, nodes)
    unread = {t.name for t in before.initializer} - live(before.node, [v.name for v in before.output])[1]
    replace(graph.initializer, [t for t in graph.initializer if t.name in used | unread])


def fixed(shapes: Shapes) -> dict[str, bool]:
    """Conditions whose value is the same for all sizes of symbolic dimensions."""
    sizes, values = set(shapes.model.initializers), set(shapes.model.initializers)
    for node in shapes.model.flat.nodes:
        given = [name for name in node.input if name]
        for name in node.output:
            if shapes.value(name) is None:
                continue
            moved = node.op_type == "Shape" or (node.op_type in _MOVES and sizes.issuperset(given))
            if moved:
                sizes.add(name)
            sure = moved or node.domain == ENTER or values.issuperset(given)
            if sure and not shapes.dynamic_value(name).any():
                values.add(name)
    conditions = {node.input[0] for node in _all(shapes.model.proto.graph) if node.op_type == "If"}
    known = {name: shapes.value(name) for name in values & conditions}
    return {name: bool(value.all()) for name, value in known.items() if value is not None and value.size == 1}
