"""Loops over sequences written out, where they run a small number of times that is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxpart.ir.protos import graphs_of, is_onnx, names_of, replace_reads, set_repeated, unused
from onnxpart.storage.rows import Array

MOST = 16
"""Iterations that are written out at most."""


def write_out(graph: GraphProto, known: Mapping[str, Array], initializers: Collection[str]) -> bool:
    """Put the nodes of all iterations in place of each such Loop; returns whether there was one.

    :param graph: with values that have names of their own. :param known: values that are the same in every run.
    :param initializers: names that are taken too.
    """
    taken = {*names_of(graph), *initializers}
    loops = {i: steps for i, node in enumerate(graph.node) if (steps := _steps(node, known))}
    nodes = list(graph.node)
    for i, steps in reversed(loops.items()):
        nodes[i : i + 1] = _iterations(nodes[i], steps, graph, taken)
    if loops:
        set_repeated(graph.node, nodes)
    return bool(loops)


def _steps(node: NodeProto, known: Mapping[str, Array]) -> int:
    """How often a Loop that carries a sequence and gives states alone runs; 0 where it isn't to be written out."""
    if not is_onnx(node, "Loop"):
        return 0
    (body,) = graphs_of(node)
    if not (len(body.input) == len(node.input) == len(body.output) + 1 == len(node.output) + 2):
        return 0
    made = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity"}
    going = body.output[0].name
    while going in made:
        going = made[going]
    first = node.input[1]
    if not all(name in ("", body.input[1].name) or (name in known and known[name].all()) for name in (first, going)):
        return 0
    steps = int(known[node.input[0]].item()) if node.input[0] in known and known[node.input[0]].size == 1 else 0
    carries = any(value.type.HasField("sequence_type") for value in body.input)
    return steps if carries and steps <= MOST else 0


def _iterations(loop: NodeProto, steps: int, graph: GraphProto, taken: set[str]) -> list[NodeProto]:
    """The nodes of all iterations, one after the other."""
    (body,) = graphs_of(loop)
    states, nodes = list(loop.input[2:]), []
    count, condition = ((1,) * len(value.type.tensor_type.shape.dim) for value in body.input[:2])  # [], or [1]
    going = constant(graph, np.full(condition, True), taken)
    for step in range(steps):
        given = [constant(graph, np.full(count, step, np.int64), taken), going, *states]
        names = dict(zip((value.name for value in body.input), given, strict=True))
        for child in body.node:
            node = NodeProto()
            node.CopyFrom(child)
            replace_reads(node, names)
            for i, name in enumerate(child.output):
                if name:
                    node.output[i] = names[name] = unused(f"{name}_{step}", taken)
            node.name = node.name and f"{node.name}_{step}"
            nodes.append(node)
        states = [names[value.name] for value in body.output[1:]]
    ends = zip(states, loop.output, strict=True)
    return nodes + [helper.make_node("Identity", [last], [out], name=out) for last, out in ends if out]


def constant(graph: GraphProto, value: Array, taken: set[str]) -> str:
    """A new initializer."""
    name = unused("written_out", taken)
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
