"""Put in place what is known before the analysis: branches that are taken, sequences, states that don't change.

Changes are made on a copy without weights, and taken over if there were any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

from onnx import GraphProto, ModelProto, TensorProto

from onnxpart.frontend import branches, loop_invariants, masked_rows, product_sums, sequences
from onnxpart.frontend.unroll import write_out
from onnxpart.ir.flatten import ENTER
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model
from onnxpart.ir.protos import SMALL, keep, live, set_repeated
from onnxpart.ir.region_shapes import grown
from onnxpart.ir.shapes import Shapes
from onnxpart.ir.unflatten import normal
from onnxpart.storage.draft import without_initializers
from onnxpart.storage.rows import Array

_MOVES = frozenset(
    ("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze")
)
"""Operators that hand on sizes as they are, so that one that is the same for all trial values is fixed."""


def free_states(model: Model) -> Model:
    """Bodies read from outside what their loop hands on unchanged."""
    return _changed(model, _free_states)


def take_branches(model: Model) -> Model:
    """The branch that is taken stands in place of an If whose condition is known."""
    return _changed(model, _take_branches)


def replace_sequences(model: Model) -> Model:
    """Tensors stand in place of sequences and optionals that can be followed.

    A Loop that carries a sequence a small, known number of times is written out first.
    """
    return _changed(model, _replace_sequences)


def contract(model: Model) -> Model:
    """Einsums stand in place of sums of products in which a weight makes units."""
    return _changed(model, _contract)


def write_rows(model: Model) -> Model:
    """Rows that a mask chooses are written as rows, where they were written element by element."""
    return _changed(model, _write_rows)


def no_invariants(model: Model) -> Iterator[str]:
    """No loop hands on a state unchanged."""
    return _left(model, _free_states, "a loop hands on a state unchanged")


def no_known_branches(model: Model) -> Iterator[str]:
    """No If has a condition that is known."""
    return _left(model, _take_branches, "the condition of an If is known")


def no_plain_sequences(model: Model) -> Iterator[str]:
    """No sequence or optional can be followed."""
    return _left(model, _replace_sequences, "a sequence could be tensors")


def no_spelled_contractions(model: Model) -> Iterator[str]:
    """No sum of products is left that could be Einsums."""
    return _left(model, _contract, "a sum of products could be an Einsum")


def no_rows_by_element(model: Model) -> Iterator[str]:
    """No row that a mask chooses is written element by element."""
    return _left(model, _write_rows, "rows that a mask chooses are written element by element")


Change = Callable[[Model, ModelProto], bool]
"""Changes a copy of a model that has no initializers but new ones; gives whether it did."""


def _changed(model: Model, change: Change) -> Model:
    """The model after a change; itself where there was nothing to be changed."""
    light = without_initializers(model.proto)
    if not change(model, light):
        return model
    _put_back(light.graph, model.proto.graph)
    return replace(model)


def _left(model: Model, change: Change, what: str) -> Iterator[str]:
    if change(model, without_initializers(model.proto)):
        yield what


def _free_states(model: Model, light: ModelProto) -> bool:
    return loop_invariants.free_states(light.graph, model.opsets[""])


def _take_branches(model: Model, light: ModelProto) -> bool:
    return branches.take_branches(light.graph, fixed(infer(model)))


def _replace_sequences(model: Model, light: ModelProto) -> bool:
    """Replace sequences by tensors, unless a loop would have to collect tensors of different sizes."""
    opset, shapes = model.opsets[""], infer(model)
    if write_out(light.graph, fixed(shapes), model.initializers):
        return True
    followed = sequences.Sequences(light.graph, shapes, opset)
    if not followed.run():
        return False
    if followed.collected:
        trial = ModelProto()
        trial.CopyFrom(light)
        trial.graph.initializer.extend(map(_light, model.initializers.values()))
        normal(trial.graph, opset)
        found = infer(replace(model, proto=trial))
        return found.shape.keys() >= followed.collected and not grown(found)
    return True


def _contract(model: Model, light: ModelProto) -> bool:
    return product_sums.may_contract(light.graph) and product_sums.contract_sums(light.graph, infer(model))


def _write_rows(model: Model, light: ModelProto) -> bool:
    return masked_rows.may_write_rows(light.graph) and masked_rows.write_rows(light.graph, infer(model))


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
