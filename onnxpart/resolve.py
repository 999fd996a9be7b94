"""What is known before a network is analysed: branches, sequences, and states that no iteration changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxpart import plumbing
from onnxpart.borders import grown
from onnxpart.control import ENTER, graphs_of, keep, live, replace, replace_reads
from onnxpart.files import Array
from onnxpart.nest import normal
from onnxpart.shapes import SMALL, Shapes, infer
from onnxpart.stream import without_initializers
from onnxpart.unroll import write_out

if TYPE_CHECKING:
    from onnxpart.model import Model

LOOPS = frozenset(("Loop", "Scan"))
"""Operators that hand states on from one iteration to the next."""
_MOVES = frozenset(
    ("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze")
)
"""Operators that hand on sizes as they are, so that one that is the same for all trial values is fixed."""


def resolve(model: Model) -> ModelProto | None:
    """The model with an If or a state less, or with tensors in place of sequences; None where nothing is to be done.

    What comes back is the model's own proto, changed: a copy of large weights would be too much.
    """
    kinds = {node.op_type for node in _all(model.proto.graph)}
    if kinds.isdisjoint({"If", *LOOPS, *plumbing.OPERATORS}):
        return None
    light = without_initializers(model.proto)
    if not _free_states(light.graph, model.opsets.get("", 1)):
        if kinds.isdisjoint({"If", *plumbing.OPERATORS}):
            return None
        shapes = infer(model)
        known = fixed(shapes)
        if not (
            _take_branches(light.graph, known)
            or write_out(light.graph, known, model.initializers)
            or _replace_sequences(light, model, shapes)
        ):
            return None
    _put_back(light.graph, model.proto.graph)
    return model.proto


def _all(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            yield from _all(inner)


def _replace_sequences(light: ModelProto, model: Model, shapes: Shapes) -> bool:
    """Replace sequences by tensors, unless a loop would have to collect tensors of different sizes."""
    opset = model.opsets.get("", 1)
    pipes = plumbing.Plumbing(light.graph, shapes, opset)
    if not pipes.run():
        return False
    if pipes.collected:
        trial = ModelProto()
        trial.CopyFrom(light)
        trial.graph.initializer.extend(map(_light, model.initializers.values()))
        normal(trial.graph, opset)
        found = infer(dataclasses.replace(model, proto=trial))
        return found.shape.keys() >= pipes.collected and not grown(found)
    return True


def _light(tensor: TensorProto) -> TensorProto:
    """The tensor; a large one, whose numbers nobody looks at, without them."""
    if prod(tensor.dims) <= SMALL:
        return tensor
    external = TensorProto.EXTERNAL
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=external)


def _take_branches(graph: GraphProto, known: Mapping[str, Array]) -> bool:
    """Put the nodes of the branch that is taken in place of every If whose condition is known."""
    nodes, changed = [], False
    for node in graph.node:
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.input[0] in known:
            wanted = "then_branch" if known[node.input[0]].all() else "else_branch"
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


def _put_back(graph: GraphProto, target: GraphProto) -> None:
    """Give a graph the nodes and the further initializers of `graph`; nodes that lead nowhere are left out.

    So are initializers that only such nodes, or nothing new, read.
    """
    unread = {t.name for t in target.initializer} - live(target.node, [v.name for v in target.output])[1]
    nodes, used = live(graph.node, [v.name for v in graph.output])
    replace(target.node, nodes)
    target.initializer.extend(graph.initializer)
    used |= unread
    keep(target.initializer, lambda tensor: tensor.name in used)


def fixed(shapes: Shapes) -> dict[str, Array]:
    """Single values (conditions, counts) that are the same for all sizes of symbolic dimensions."""
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
    single = {name: shapes.value(name) for name in values if prod(shapes.shape[name]) == 1}
    return {name: value for name, value in single.items() if value is not None}
