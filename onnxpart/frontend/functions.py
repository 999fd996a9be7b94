"""Local functions written out."""

from __future__ import annotations

import onnx
from onnx.inliner import inline_local_functions

from onnxpart.ir.protos import all_nodes


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions written out; the same one if it has none."""
    if not proto.functions:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    functions = {(function.domain, function.name): function for function in result.functions}
    for body in (result.graph, *result.functions):
        for node in all_nodes(body):
            if (node.domain, node.op_type) in functions:
                given = {attribute.name for attribute in node.attribute}
                defaults = functions[node.domain, node.op_type].attribute_proto
                node.attribute.extend(d for d in defaults if d.name not in given)  # the inliner leaves them out
    return inline_local_functions(result)
