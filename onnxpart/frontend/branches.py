"""The branches of If whose condition is known, put in its place."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, helper

from onnxpart.ir.protos import graphs_of, is_onnx, set_repeated
from onnxpart.storage.rows import Array


def take_branches(graph: GraphProto, known: Mapping[str, Array]) -> bool:
    """Put the nodes of the branch that is taken in place of every If whose condition is known."""
    nodes, changed = [], False
    for node in graph.node:
        if is_onnx(node, "If") and node.input[0] in known:
            wanted = "then_branch" if known[node.input[0]].all() else "else_branch"
            branch = next(a.g for a in node.attribute if a.name == wanted)
            nodes.extend(branch.node)
            pairs = zip(branch.output, node.output, strict=True)
            nodes += [helper.make_node("Identity", [v.name], [out], name=out) for v, out in pairs if out]
            changed = True
            continue
        for inner in graphs_of(node):
            changed |= take_branches(inner, known)
        nodes.append(node)
    if changed:
        set_repeated(graph.node, nodes)
    return changed
