"""Cut a network down to what some of its values need; these become its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import onnx
from onnx import shape_inference

from onnxpart.errors import UsageError
from onnxpart.ir.arrays import digest
from onnxpart.ir.model import Model
from onnxpart.ir.protos import keep, live, without_weights


def cut(model: Model, outputs: Sequence[str]) -> Model:
    """The network that computes `outputs` and nothing else.

    :param outputs: values of the graph, intermediate ones too; they are the new network's outputs, in this order.
    :returns: a model of its own, without the nodes, initializers and inputs that lead to no output; `model` stays as it
        is.
    :raises UsageError: when the network doesn't compute a named value, or no named value depends on weights.
    """
    names = list(dict.fromkeys(outputs))
    computed = [name for node in model.proto.graph.node for name in node.output if name]
    for name in names:
        _check(model, name, computed)
    if not names:
        raise UsageError(f"{model.name}: no outputs are named; name at least one value of the graph.")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    values = [_value(model, name) for name in names]
    _, used = live(graph.node, names)
    keep(graph.node, lambda node: any(name in used for name in node.output))
    keep(graph.sparse_initializer, lambda tensor: tensor.values.name in used)
    for field in (graph.input, graph.initializer, graph.value_info):
        keep(field, lambda entry: entry.name in used)
    del graph.output[:]
    graph.output.extend(values)
    constants = model.constants & used
    if all(tensor.name in constants for tensor in graph.initializer):
        raise UsageError(f"{model.name}: {', '.join(map(repr, names))} depends on no weights; name a later output.")
    return Model(proto, model.name, digest(proto, constants, model.data), model.data, constants)


def _check(model: Model, name: str, computed: Sequence[str]) -> None:
    """Check that a value can be an output.

    :raises UsageError: when it isn't `computed`.
    """
    if name in computed:
        return
    if name in model.inputs or name in model.initializers:
        what = "an input" if name in model.inputs else "an initializer"
        raise UsageError(f"{model.name}: {name!r} is {what} of the network; name values that it computes as outputs.")
    close = [*get_close_matches(name, computed), *(c for c in computed if name and name in c)]
    hint = (
        f"did you mean {' or '.join(map(repr, dict.fromkeys(close[:3])))}?"
        if close
        else (f"its outputs are {', '.join(map(repr, model.outputs))}.")
    )
    raise UsageError(f"{model.name} computes no value {name!r}; {hint}")


def _value(model: Model, name: str) -> onnx.ValueInfoProto:
    """Type of a value: as declared, else as ONNX infers it."""
    graph = model.proto.graph
    declared: list[onnx.ValueInfoProto] = [*graph.output, *graph.value_info]
    light = without_weights(model.proto)
    declared.extend(shape_inference.infer_shapes(light, data_prop=True).graph.value_info)
    for value in declared:
        if value.name == name and value.type.WhichOneof("value"):
            return value
    raise UsageError(f"{model.name}: the type of {name!r} isn't known, so it can't be an output; declare its shape.")
