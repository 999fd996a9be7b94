"""What an exporter wrote -> the graph that is trained: all layers, no constant among parameters, own names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from onnxpart.ir.protos import SMALL, all_nodes, captured, constant_node, metadata_of, unused
from onnxpart.ir.trainable import FROZEN, PADDING
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Rows, stream
from onnxpart.torch.exporter.padding import padding_of
from onnxpart.torch.exporter.stochastic_depth import as_dropouts

if TYPE_CHECKING:
    from onnxscript import ir

LARGE = 1 << 26
"""Parameters of a model of so many bytes aren't copied into it."""


def folded(model: ir.Model, module: nn.Module, held: Mapping[str, Rows]) -> Draft:
    """The model with its constants folded, except those computed from parameters.

    :param held: the values of parameters and buffers, by name. Of a model of at least `LARGE` bytes those of parameters
        stay where they are, as streams.
    """
    from onnxscript import ir
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    own = {name for name, _ in module.named_parameters(remove_duplicate=False)}

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in own for value in node.inputs) else None

    active = ir.val("__active", const_value=ir.tensor(np.array(True)))
    for node in model.graph.all_nodes():
        if node.op_type == "Dropout" and len(node.inputs) < 3:  # that of attention, which would be folded away
            node.resize_inputs(3)
            node.replace_input_with(2, active)
    model.graph.register_initializer(active)
    fold_constants(model, onnx_shape_inference=True, should_fold=should_fold)
    remove_unused_nodes(model)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    streams = {}
    if sum(tensor.nbytes for tensor in tensors.values()) >= LARGE:
        for name, tensor in tensors.items():
            if name in own and tensor.size > SMALL:
                streams[name] = stream(held[name])
                model.graph.initializers[name].const_value = ir.ExternalTensor(
                    name, None, None, tensor.dtype, shape=ir.Shape(held[name].shape), name=name
                )
    return Draft(ir.to_proto(model), streams)


def for_training(draft: Draft, module: nn.Module, outputs: Sequence[str], held: Mapping[str, Rows]) -> Draft:
    """The model to be written: in evaluation mode, with constants apart from parameters, and with named outputs.

    :param held: see `folded`.
    """
    draft = _first_named(draft, module)
    graph = draft.proto.graph
    statistics, read_values = set(), {name for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            statistics.update(node.input[3:])
            del node.output[1:]
            kept = [attribute for attribute in node.attribute if attribute.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "Dropout":
            del node.input[2:]
            if not read_values.intersection(node.output[1:]):
                del node.output[1:]
    used = {name for node in graph.node for name in (*node.input, *captured(node))}
    initializers = {tensor.name: tensor for tensor in graph.initializer if tensor.name in used}
    for name in statistics & initializers.keys() & held.keys():  # tracing has updated them
        initializers[name].CopyFrom(numpy_helper.from_array(held[name][()], name))
    own = {name for name, _ in module.named_parameters(remove_duplicate=False)} | statistics
    constants = [constant_node(tensor) for name, tensor in initializers.items() if name not in own]
    weights = [tensor for name, tensor in initializers.items() if name in own]
    nodes = [*constants, *graph.node]
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(weights)
    graph.node.extend(nodes)
    as_dropouts(graph)
    _name_outputs(graph, outputs)
    fixed = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    rows = padding_of(module)
    told: dict[str, object] = {FROZEN: sorted(fixed.intersection(t.name for t in weights))} if fixed & own else {}
    told |= {PADDING: rows} if rows else {}
    if told:
        known = {key: json.dumps(value) for key, value in told.items()}
        onnx.helper.set_model_props(draft.proto, metadata_of(draft.proto) | known)
    return draft


def _first_named(draft: Draft, module: nn.Module) -> Draft:
    """The model with each tied parameter under the first of its names, as in `named_parameters`."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    tied = {name: first[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    graph = draft.proto.graph
    for tensor in graph.initializer:
        tensor.name = tied.get(tensor.name, tensor.name)
    _rename([node.input for node in all_nodes(graph)], tied)
    return Draft(draft.proto, {tied.get(name, name): source for name, source in draft.streams.items()})


def _rename(lists: Iterable[MutableSequence[str]], names: Mapping[str, str]) -> None:
    for values in lists:
        for i, name in enumerate(values):
            values[i] = names.get(name, name)


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give the graph's results their names, and rename other values that have such a name."""
    made = {name for node in all_nodes(graph) for name in node.output}
    taken = {name for node in all_nodes(graph) for name in node.input} - made
    renamed: dict[str, str] = {}
    for value, name in zip(graph.output, names, strict=True):
        if value.name in made and value.name not in renamed:
            renamed[value.name] = unused(name, taken)
    clashing = sorted(made.intersection(renamed.values()) - renamed.keys())
    taken |= made
    renamed |= {name: unused(name, taken) for name in clashing}
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)
    _rename([values for node in all_nodes(graph) for values in (node.input, node.output)], renamed)
