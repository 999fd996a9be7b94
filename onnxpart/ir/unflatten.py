"""Operators from a flat list put back into the graphs of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import GraphProto, NodeProto, ValueInfoProto, helper

from onnxpart.ir.flatten import ENTER, GRAPHS, LEAVE, TOP, Path, Place, Region, Role, flatten, role_of, state_of
from onnxpart.ir.protos import graphs_of, live, set_repeated
from onnxpart.ir.scopes import share_names


def normal(graph: GraphProto, opset: int) -> set[str]:
    """Bring the graphs inside a graph's nodes into the form in which `Unflattener` writes them (see `share_names`).

    They may then read fewer outer values, so nodes that lead nowhere any more are left out.

    :returns: the initializers that were Constant nodes in them. :raises Misfit: when they don't fit their nodes.
    """
    if not any(map(graphs_of, graph.node)):
        return set()
    constants = share_names(graph)
    flat = flatten(graph, opset)
    unflattener = Unflattener(flat.regions, lambda value, tensor, copy: None)
    for node, path in zip(flat.nodes, flat.paths, strict=True):
        unflattener.append(node, (path, -1))
    set_repeated(graph.node, live(unflattener.nodes, [value.name for value in graph.output])[0])
    return constants


def held(leaves: NodeProto, i: int) -> str:
    """The tensor whose sizes the `i`-th graph declares for the output that a marker takes out."""
    whole = str(leaves.output[0]) if role_of(leaves) == Role.BRANCHES else state_of(leaves)
    return whole or str(leaves.input[i])


class Unflattener:
    """Nodes in the making, each put in its place; `home` says where a value is seen.

    `declare` adapts the declared type of a value that enters or leaves a region. The value stands for a tensor of the
    network, and its sizes become those of the part whose copy of the region it is in.
    """

    def __init__(self, regions: Mapping[int, Region], declare: Callable[[ValueInfoProto, str, int], None]) -> None:
        self.regions, self.declare = regions, declare
        self.home: dict[str, Place] = {}
        self._inside: dict[Place, list[NodeProto]] = {TOP: []}

    @property
    def nodes(self) -> list[NodeProto]:
        """The outermost graph's nodes."""
        return self._inside[TOP]

    def append(self, node: NodeProto, place: Place) -> None:
        """Put a node at the end of its place; the last marker of a region closes it."""
        path, copy = place if place[0] else TOP
        self._inside.setdefault((path, copy), []).append(node)
        if node.domain not in (ENTER, LEAVE):
            self.home.update(dict.fromkeys(node.output, (path, copy)))
            return
        number = path[-1][0]
        if node.domain == ENTER:
            self.home.update(dict.fromkeys(node.output, ((*path[:-1], (number, 0)), copy)))
        region, markers = self.regions[number], self._inside[path, copy]
        if len(markers) == len(region.enters) + len(region.leaves):
            del self._inside[path, copy]
            self._close(region, markers, number, path[:-1], copy)

    def insert(self, node: NodeProto) -> None:
        """Put a node in the outermost place that sees everything it reads."""
        self.append(
            node, max((self.home.get(n, TOP) for n in node.input), key=lambda place: len(place[0]), default=TOP)
        )

    def _close(self, region: Region, markers: Sequence[NodeProto], number: int, outer: Path, copy: int) -> None:
        """Make the node of a region from its markers and the nodes in its graphs."""
        enters, leaves = markers[: len(region.enters)], markers[len(region.enters) :]
        node = NodeProto()
        node.CopyFrom(region.node)
        if node.name and copy >= 0:
            node.name = f"{node.name}__part{copy}"
        _replace_names(node.input, [m.input[0] for m in enters])
        _replace_names(node.output, [m.output[0] for m in leaves if m.output])
        for i, (attribute, template) in enumerate(zip(GRAPHS[node.op_type], region.graphs, strict=True)):
            graph = GraphProto()
            graph.CopyFrom(template)
            inner = [m.output[0] for m in enters if m.output], [m.input[i] for m in leaves]
            alike = [v.name for v in template.input], [held(m, i) for m in region.leaves]
            for values, *names in zip((graph.input, graph.output), inner, alike, strict=True):
                for value, name, tensor in zip(values, *names, strict=True):
                    self.declare(value, tensor, copy)
                    value.name = name
            graph.node.extend(self._inside.pop(((*outer, (number, i)), copy), []))
            node.attribute.append(helper.make_attribute(attribute, graph))
        self.append(node, (outer, copy))


def _replace_names(field_: Any, names: Sequence[str]) -> None:
    del field_[:]
    field_.extend(names)
