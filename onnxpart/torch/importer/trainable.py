"""Which initializers are weights, judged by where they are used."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from onnxpart.ir.model import FLOATS

_NEVER: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "Resize": frozenset({1, 2, 3}),
}
"""Inputs that hold settings or statistics."""
_ALWAYS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({1, 2}),
    "Conv": frozenset({1, 2}),
    "ConvTranspose": frozenset({1, 2}),
    "GRU": frozenset({1, 2, 3}),
    "Gemm": frozenset({0, 1, 2}),
    "InstanceNormalization": frozenset({1, 2}),
    "LSTM": frozenset({1, 2, 3, 7}),
    "LayerNormalization": frozenset({1, 2}),
    "MatMul": frozenset({0, 1}),
    "PRelu": frozenset({1}),
    "RNN": frozenset({1, 2, 3}),
}
"""Inputs that are weights even with a single element; elsewhere that is a constant of a formula."""
_PRODUCTS = frozenset({"MatMul", "Conv", "ConvTranspose", "Gemm"})


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies of its control flow, the outer before the inner."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def trainable(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the float initializers that training changes.

    Not among them: batch-norm statistics, settings of Clip, Pad, Resize and Dropout, and single elements
    that no layer uses as weight or bias.
    """
    uses = _uses(graph)
    tensors = [tensor for inner in graphs(graph) for tensor in inner.initializer]
    return {t.name for t in tensors if _is_float(t) and any(_is_weight(t, u) for u in uses.get(t.name, ()))}


def _uses(graph: onnx.GraphProto) -> dict[str, list[tuple[str, int, bool]]]:
    """Return for each value where it goes: the operator, the input, and whether it is added to a product."""
    uses: dict[str, list[tuple[str, int, bool]]] = {}
    root: dict[str, str] = {}
    nodes = [node for inner in graphs(graph) for node in inner.node]
    producer = {name: node.op_type for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "Identity":
            root[node.output[0]] = root.get(node.input[0], node.input[0])
            continue
        product = node.op_type == "Add" and any(producer.get(name) in _PRODUCTS for name in node.input)
        for index, name in enumerate(node.input):
            uses.setdefault(root.get(name, name), []).append((node.op_type, index, product))
    return uses


def _is_float(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in FLOATS


def _is_weight(tensor: onnx.TensorProto, use: tuple[str, int, bool]) -> bool:
    op_type, index, product = use
    if index in _NEVER.get(op_type, ()):
        return False
    if np.prod(tensor.dims, dtype=np.int64) > 1:
        return True
    return index in _ALWAYS.get(op_type, ()) or (product and len(tensor.dims) > 0)
