"""A graph in pieces that run one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import ValueInfoProto

from onnxpart.ir.protos import captured


def pieces(model: onnx.ModelProto, size: int, values: Mapping[str, ValueInfoProto]) -> Iterator[onnx.ModelProto]:
    """Cut the graph of a model after every `size` nodes.

    A piece has the initializers that it reads. It gives what later pieces read, and those outputs of the model that it
    computes. Outputs that no node computes belong to the last piece.

    :param values: type by name of what pieces may read: the model's inputs, and what earlier pieces gave. The caller
        adds the latter before the next piece is made.
    """
    graph = model.graph
    outputs = {value.name: value for value in graph.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    reads = [(*node.input, *captured(node)) for node in graph.node]
    last = {name: i for i, names in enumerate(reads) for name in names}
    computed = {name for node in graph.node for name in node.output}
    for start in range(0, len(graph.node), size):
        piece = onnx.ModelProto(ir_version=model.ir_version)
        piece.opset_import.extend(model.opset_import)
        piece.functions.extend(model.functions)
        part, stop = piece.graph, start + size
        part.name = graph.name
        part.node.extend(graph.node[start:stop])
        made = [name for node in part.node for name in node.output if name]
        given = [name for name in made if name in outputs or last.get(name, 0) >= stop]
        if stop >= len(graph.node):
            given += [name for name in outputs if name not in computed]
        read = {name for names in reads[start:stop] for name in names} | set(given)
        part.initializer.extend(held[name] for name in sorted(read & held.keys()))
        part.input.extend(values[name] for name in sorted((read - set(made)) & values.keys()))
        part.output.extend(outputs.get(name, ValueInfoProto(name=name)) for name in given)
        if given:
            yield piece
