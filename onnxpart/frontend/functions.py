"""Local functions inlined."""

from __future__ import annotations

import onnx
from onnx.inliner import inline_local_functions

from onnxpart.errors import ModelError
from onnxpart.ir.protos import all_nodes

MAX_NODES = 1 << 16
"""A model that its functions make larger is refused."""


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined; the same one if it has none.

    :raises ModelError: when they expand to more than `MAX_NODES` nodes, or call each other in a circle.
    """
    if not proto.functions:
        return proto
    _check_number(proto)
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


def _check_number(proto: onnx.ModelProto) -> None:
    """Count the nodes that there are once all functions are written out, each function once."""
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    waiting: list[tuple[str, str]] = list(functions)
    entered = set[tuple[str, str]]()
    while waiting:
        key = waiting[-1]
        called = [(n.domain, n.op_type) for n in all_nodes(functions[key])]
        missing = [call for call in called if call in functions and call not in sizes]
        if key in sizes or not missing:
            sizes.setdefault(key, sum(sizes.get(call, 1) for call in called))
            waiting.pop()
        elif key in entered:
            raise ModelError(f"the function {key[1]!r} calls itself; inline it, or export the model without it.")
        else:
            waiting += missing
        entered.add(key)
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in all_nodes(proto.graph))
    if total > MAX_NODES:
        raise ModelError(f"its functions expand to {total:,} nodes, more than {MAX_NODES:,}; simplify them.")
