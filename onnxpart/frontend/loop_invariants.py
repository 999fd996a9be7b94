"""States of loops that never change, taken out of them."""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper

from onnxpart.ir.protos import graphs_of, is_onnx, replace_reads, set_repeated

LOOPS = frozenset(("Loop", "Scan"))
"""Operators that hand states on from one iteration to the next."""


def free_states(graph: GraphProto, opset: int) -> bool:
    """Let bodies read from outside what their loop hands on unchanged from one iteration to the next."""
    nodes, changed = [], False
    for node in graph.node:
        nodes.append(node)
        for inner in graphs_of(node):
            changed |= free_states(inner, opset)
        if is_onnx(node, *LOOPS) and not (node.op_type == "Scan" and opset < 9):
            freed = _free(node, 2 if node.op_type == "Loop" else 0)
            nodes += [helper.make_node("Identity", [given], [out], name=out) for given, out in freed.items() if out]
            changed |= bool(freed)
    if changed:
        set_repeated(graph.node, nodes)
    return changed


def _free(node: NodeProto, first: int) -> dict[str, str]:
    """Take the states out of a loop that it doesn't change; returns what they were at first -> in the end.

    :param first: how many inputs stand in front of the states; the body's first output is in front of them if any do.
    """
    body = graphs_of(node)[0]
    settings = {a.name: a.i for a in node.attribute}
    before = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
    freed: dict[str, str] = {}
    for i in reversed(range(first, len(node.input) - settings.get("num_scan_inputs", 0))):
        j = i - first
        made = body.output[j + bool(first)].name
        while made in before:
            made = before[made]
        if made != body.input[i].name or node.input[i] in freed:
            continue
        freed[node.input[i]] = node.output[j] if j < len(node.output) else ""
        for child in body.node:
            replace_reads(child, {made: node.input[i]})
        for values in (node.input, body.input):
            del values[i]
        del body.output[j + bool(first)]
        if j < len(node.output):
            del node.output[j]
    return freed
