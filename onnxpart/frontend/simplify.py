"""What is known before a network is analysed: branches, sequences, and states that no iteration changes."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, TensorProto

from onnxpart.frontend import sequences
from onnxpart.frontend.unroll import write_out
from onnxpart.ir.flatten import ENTER
from onnxpart.ir.infer import infer
from onnxpart.ir.protos import SMALL, all_nodes, keep, live, set_repeated
from onnxpart.ir.region_shapes import grown
from onnxpart.ir.shapes import Shapes
from onnxpart.ir.unflatten import normal
from onnxpart.storage.draft import without_initializers
from onnxpart.storage.rows import Array

if TYPE_CHECKING:
    from onnxpart.ir.model import Model
from onnxpart.frontend.branches import take_branches
from onnxpart.frontend.loop_invariants import LOOPS, free_states

_MOVES = frozenset(
    ("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze")
)
"""Operators that hand on sizes as they are, so that one that is the same for all trial values is fixed."""


def resolve(model: Model) -> ModelProto | None:
    """The model with an If or a state less, or with tensors in place of sequences; None where nothing is to be done.

    What comes back is the model's own proto, changed: a copy of large weights would be too much.
    """
    kinds = {node.op_type for node in all_nodes(model.proto.graph)}
    if kinds.isdisjoint({"If", *LOOPS, *sequences.OPERATORS}):
        return None
    light = without_initializers(model.proto)
    if not free_states(light.graph, model.opsets[""]):
        if kinds.isdisjoint({"If", *sequences.OPERATORS}):
            return None
        shapes = infer(model)
        known = fixed(shapes)
        if not (
            take_branches(light.graph, known)
            or write_out(light.graph, known, model.initializers)
            or _replace_sequences(light, model, shapes)
        ):
            return None
    _put_back(light.graph, model.proto.graph)
    return model.proto


def _replace_sequences(light: ModelProto, model: Model, shapes: Shapes) -> bool:
    """Replace sequences by tensors, unless a loop would have to collect tensors of different sizes."""
    opset = model.opsets[""]
    pipes = sequences.Plumbing(light.graph, shapes, opset)
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


def _put_back(graph: GraphProto, target: GraphProto) -> None:
    """Give a graph the nodes and the further initializers of `graph`; nodes that lead nowhere are left out.

    So are initializers that only such nodes, or nothing new, read.
    """
    unread = {t.name for t in target.initializer} - live(target.node, [v.name for v in target.output])[1]
    nodes, used = live(graph.node, [v.name for v in graph.output])
    set_repeated(target.node, nodes)
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
