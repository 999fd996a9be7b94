"""Whether a model is valid, and what the passes of the frontend promise of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import onnx
from onnx import GraphProto, TensorProto

from onnxpart.ir.model import Model
from onnxpart.ir.protos import all_graphs, all_nodes, constant_value, graphs_of, is_onnx, without_weights

Contract = Callable[[Model], Iterator[str]]
"""A contract of a model: gives a sentence for each breach."""
_STATISTICS = (3, 4)
"""Inputs of BatchNormalization."""


class InvalidModel(Exception):
    """A model isn't what it should be; the message says where."""


def validate(model: Model, contracts: Iterable[Contract] = ()) -> None:
    """Check that ONNX accepts a model, that each value is made once and before it is read, and further contracts.

    :raises InvalidModel: with all that is wrong.
    """
    wrong = list(chain.from_iterable(contract(model) for contract in (in_order, *contracts)))
    try:
        check_light(without_weights(model.proto))
    except onnx.checker.ValidationError as error:
        wrong.append(str(error))
    if wrong:
        raise InvalidModel(f"{model.name}: {'; '.join(wrong)}")


def check_light(light: onnx.ModelProto) -> None:
    """Let ONNX check a model without weights; outputs get a type and a shape, which the checker asks for.

    :raises onnx.checker.ValidationError: when it isn't valid.
    """
    for value in light.graph.output:
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(light)


def in_order(model: Model) -> Iterator[str]:
    """Each value is made once, and before it is read."""
    return _in_order(model.proto.graph, set())


def _in_order(graph: GraphProto, outer: set[str]) -> Iterator[str]:
    """What is wrong in a graph that sees the values `outer`, and in those inside it."""
    inputs, initializers = ({value.name for value in values} for values in (graph.input, graph.initializer))
    seen = outer | inputs | initializers | {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in seen]
        yield from (f"{node.op_type} {node.name!r} reads {name!r} before it is made" for name in missing)
        for inner in graphs_of(node):
            yield from _in_order(inner, seen)
        made = [name for name in node.output if name]
        yield from (f"{name!r} is made twice" for name in made if name in seen)
        seen.update(made)
    yield from (f"the output {v.name!r} is never made" for v in graph.output if v.name not in seen)


def no_functions(model: Model) -> Iterator[str]:
    """There are no local functions."""
    yield from (f"the function {function.name!r} is left" for function in model.proto.functions)


def own_statistics(model: Model) -> Iterator[str]:
    """Nothing else reads the statistics of a batch norm, except the same layer once more."""
    uses: dict[str, set[tuple[object, ...]]] = {}
    statistics = set()
    for node in all_nodes(model.proto.graph):
        norm = is_onnx(node, "BatchNormalization")
        for i, name in enumerate(node.input):
            if norm and i in _STATISTICS:
                statistics.add(name)
                uses.setdefault(name, set()).add((i, *node.input[1:5]))
            else:
                uses.setdefault(name, set()).add(())
    shared = [n for n in sorted(statistics & model.initializers.keys()) if len(uses[n]) > 1]
    yield from (f"{name!r} is a norm's statistic and something else" for name in shared)


def no_constants(model: Model) -> Iterator[str]:
    """No Constant node of the outermost graph holds numbers: these are initializers."""
    yield from (f"Constant {node.output[0]!r} is left" for node in model.proto.graph.node if constant_value(node))


def one_namespace(model: Model) -> Iterator[str]:
    """No two values of all graphs have one name, and those inside nodes have no initializers and no constants."""
    seen: set[str] = set(model.initializers)
    inputs = [value.name for graph in all_graphs(model.proto.graph) for value in graph.input]
    for name in (*inputs, *(name for node in all_nodes(model.proto.graph) for name in node.output if name)):
        if name in seen and name not in model.initializers.keys() & set(model.inputs):
            yield f"{name!r} is the name of two values"
        seen.add(name)
    for node in model.proto.graph.node:
        for graph in chain.from_iterable(map(all_graphs, graphs_of(node))):
            yield from (f"the initializer {tensor.name!r} is inside {node.name!r}" for tensor in graph.initializer)
            yield from (f"Constant {n.output[0]!r} is inside {node.name!r}" for n in graph.node if constant_value(n))


def inputs_apart(model: Model) -> Iterator[str]:
    """No initializer is an input, too."""
    yield from (f"{name!r} is an input and an initializer" for name in model.inputs if name in model.initializers)
