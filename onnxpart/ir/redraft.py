"""A model in canonical form as a file of its own again."""

from __future__ import annotations

from onnxpart.ir.arrays import rows_of
from onnxpart.ir.model import Model
from onnxpart.ir.protos import constant_node
from onnxpart.storage.draft import Draft, empty, without_initializers
from onnxpart.storage.rows import stream


def redraft(model: Model) -> Draft:
    """The model as a file of its own: constants as nodes again, external data as streams."""
    proto, streams = without_initializers(model.proto), {}
    nodes = list(model.proto.graph.node)
    constants = [constant_node(tensor) for name, tensor in model.initializers.items() if name in model.constants]
    del proto.graph.node[:]
    proto.graph.node.extend([*constants, *nodes])
    for name, tensor in model.initializers.items():
        if model.external(name):
            streams[name] = stream(rows_of(model, name))
            tensor = empty(name, streams[name], tensor.doc_string)
        if name not in model.constants:
            proto.graph.initializer.append(tensor)
    return Draft(proto, streams)
