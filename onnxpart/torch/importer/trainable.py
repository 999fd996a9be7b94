"""Which initializers become parameters of the module."""

import onnx

from onnxpart.ir.protos import all_graphs, all_nodes
from onnxpart.ir.trainable import Kind, kinds


def trainable(graph: onnx.GraphProto) -> set[str]:
    """The names of the initializers that training changes by a gradient (see `onnxpart.ir.trainable`)."""
    tensors = [tensor for inner in all_graphs(graph) for tensor in inner.initializer]
    return {name for name, kind in kinds(tensors, all_nodes(graph)).items() if kind == Kind.PARAMETER}
