"""Graphs inside nodes: one namespace for all, and control flow as a flat list of operators.

The graphs inside If, Loop and Scan share one namespace with the graph around them (`share_names`), so that what is in
them can stand in one list with everything else. In that list a control-flow operator is replaced by its graphs' nodes,
between markers: one for each value that goes in (`ENTER`) and one for each that comes out (`LEAVE`). Rules, layout and
emission treat markers as operators; `Nest` turns the list into nodes with graphs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

ENTER = "onnxpart.enter"
"""The domain of markers of what goes into a graph."""
LEAVE = "onnxpart.leave"
"""The domain of markers of what comes out of one."""
GRAPHS = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
"""Operators whose graphs are looked into, and the attributes that hold them."""
_KINDS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)

Path = tuple[tuple[int, int], ...]
"""Where a node stands: from the outermost on, the number of each region and which of its graphs (-1: its markers)."""
Place = tuple[Path, int]
"""A path, and the part whose copy of the regions it is in (-1: there is one for all)."""
TOP: Place = ((), -1)


class Misfit(Exception):
    """A node and the graphs inside it don't fit; the message says which and how."""


@dataclass(frozen=True)
class Region:
    """An If, Loop or Scan: its node without the graphs, its graphs without nodes, where its markers and nodes stand.

    Markers read what they hand over; those of what comes out also what decides whether and how often it is computed.
    """

    node: NodeProto
    graphs: tuple[GraphProto, ...]
    start: int
    enters: tuple[NodeProto, ...]
    leaves: tuple[NodeProto, ...]
    stop: int


@dataclass
class Flat:
    """All operators of a graph in order, those inside others included, and the path of each."""

    nodes: list[NodeProto] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    regions: dict[int, Region] = field(default_factory=dict)

    def inside(self, index: int) -> bool:
        """Whether what operator `index` gives is inside another."""
        return len(self.paths[index]) > (self.nodes[index].domain == LEAVE)

    def starting(self) -> dict[int, Region]:
        """The regions by the index of their first operator."""
        return {region.start: region for region in self.regions.values()}

    def outermost(self) -> list[Region]:
        """The regions that are in no other."""
        return [region for region in self.regions.values() if len(self.paths[region.start]) == 1]


def graphs_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node."""
    for attribute in node.attribute:
        if attribute.type in _KINDS:
            yield from [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def captured(node: NodeProto) -> Iterator[str]:
    """Names of outer values that the subgraphs of `node` read."""
    for graph in graphs_of(node):
        inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        for child in graph.node:
            yield from (name for name in [*child.input, *captured(child)] if name and name not in inner)
            inner.update(child.output)
        yield from (value.name for value in graph.output if value.name not in inner)


def replace_reads(node: NodeProto, names: Mapping[str, str]) -> None:
    """Let a node, and the graphs inside it, read other values; values have names of their own (see `share_names`)."""
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for graph in graphs_of(node):
        for child in graph.node:
            replace_reads(child, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


# -- one namespace ----------------------------------------------------------------------------------------------


def unused(name: str, taken: set[str]) -> str:
    """`name`, or that with a number behind it; it is in use from here on."""
    result, i = name, 1
    while result in taken:
        result, i = f"{name}_{i}", i + 1
    taken.add(result)
    return result


def names_of(graph: GraphProto) -> set[str]:
    """Names of the values that come into being in a graph and in those inside it, initializers apart."""
    found = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
    return found.union(*(names_of(inner) for node in graph.node for inner in graphs_of(node)))


def share_names(graph: GraphProto) -> set[str]:
    """Give every value in the graphs inside `graph` a name of its own, and make their parameters initializers of it.

    What a graph hands on without computing it passes through an Identity.

    :returns: the initializers that were Constant nodes.
    """
    taken = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    taken.update(name for node in graph.node for name in node.output)
    taken.update(t.values.name for t in graph.sparse_initializer)
    lift = _Lift(graph, taken)
    for node in graph.node:
        for inner in graphs_of(node):
            lift.visit(inner, {})
    return lift.constants


class _Lift:
    """Renames what is in a graph's inner graphs, and moves their initializers to the outermost."""

    def __init__(self, top: GraphProto, taken: set[str]) -> None:
        self.top, self.taken = top, taken
        self.constants: set[str] = set()

    def visit(self, graph: GraphProto, outer: Mapping[str, str]) -> None:
        """Rename the values of a graph; `outer` holds the new names of what is visible in it."""
        names = dict(outer)
        for value in graph.input:
            value.name = names[value.name] = self._name(value.name)
        for tensor in graph.initializer:
            names[tensor.name] = self._lift(tensor, tensor.name)
        del graph.initializer[:]
        nodes = live(graph.node, [value.name for value in graph.output])[0]
        kept, made = [], set()
        for node in nodes:
            tensor = constant_value(node)
            if tensor is not None:
                names[node.output[0]] = self._lift(tensor, node.output[0])
                self.constants.add(names[node.output[0]])
                continue
            self._node(node, names)
            kept.append(node)
            made.update(node.output)
        self._outputs(graph, names, kept, made)
        infos = [v for v in graph.value_info if names.get(v.name) in made]
        for value in infos:
            value.name = names[value.name]
        replace(graph.value_info, infos)
        replace(graph.node, kept)

    def _node(self, node: NodeProto, names: dict[str, str]) -> None:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for inner in graphs_of(node):
            self.visit(inner, names)
        for j, name in enumerate(node.output):
            if name:
                node.output[j] = names[name] = self._name(name)

    def _outputs(self, graph: GraphProto, names: Mapping[str, str], kept: list[NodeProto], made: set[str]) -> None:
        given = set()
        for value in graph.output:
            name = names.get(value.name, value.name)
            if name not in made or name in given:
                passed = self._name(f"{name}_out")
                kept.append(helper.make_node("Identity", [name], [passed], name=passed))
                name = passed
            given.add(name)
            value.name = name

    def _name(self, name: str) -> str:
        return unused(name, self.taken)

    def _lift(self, tensor: TensorProto, name: str) -> str:
        lifted = self.top.initializer.add()
        lifted.CopyFrom(tensor)
        result = lifted.name = self._name(name)
        return result


def replace(field_: Any, values: Sequence[Any]) -> None:
    """Let a repeated field hold `values`, some of which may be its own."""
    copies = [type(v).FromString(v.SerializeToString()) for v in values]
    del field_[:]
    field_.extend(copies)


def keep(field_: Any, wanted: Callable[[Any], bool]) -> None:
    """Leave out the entries of a repeated field that aren't wanted."""
    for i in reversed(range(len(field_))):
        if not wanted(field_[i]):
            del field_[i]


def live(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """Nodes that lead to the outputs, in their order, and the names in use."""
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if any(n in used for n in node.output):
            used.update(n for n in node.input if n)
            used.update(captured(node))
            kept.append(node)
    return kept[::-1], used


def constant_value(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node under its output's name; None for other nodes and for strings and sparse."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            return tensor
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(value, np.int64), node.output[0])
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(value, np.float32), node.output[0])
    return None


# -- nested to flat ---------------------------------------------------------------------------------------------


def opaque_reason(node: NodeProto) -> str:
    """Why the graphs inside an If, Loop or Scan can't be looked into; empty where they can."""
    for graph in graphs_of(node):
        if graph.sparse_initializer:
            return "it holds sparse initializers"
        for value in (*graph.input, *graph.output):
            kind = str(value.type.WhichOneof("value") or "tensor_type").removesuffix("_type")
            if kind != "tensor":
                return f"it carries a {kind.replace('_', ' ')}, {value.name!r}"
    return ""


def flatten(graph: GraphProto, opset: int) -> Flat:
    """The operators of a graph whose values have names of their own (see `share_names`)."""
    flat = Flat()
    _flatten(flat, graph.node, (), opset)
    return flat


def _flatten(flat: Flat, nodes: Iterable[NodeProto], path: Path, opset: int) -> None:
    for node in nodes:
        if node.op_type not in GRAPHS or node.domain not in ("", "ai.onnx") or opaque_reason(node):
            flat.nodes.append(node)
            flat.paths.append(path)
            continue
        number = start = len(flat.nodes)
        found = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
        graphs = [found[name] for name in GRAPHS[node.op_type]]
        enters, leaves = _MARKERS[node.op_type](node, graphs, opset)
        border = (*path, (number, -1))
        _mark(flat, enters, border)
        for i, inner in enumerate(graphs):
            _flatten(flat, inner.node, (*path, (number, i)), opset)
        _mark(flat, leaves, border)
        flat.regions[number] = Region(
            _stripped(node), tuple(map(_empty, graphs)), start, tuple(enters), tuple(leaves), len(flat.nodes)
        )


def _mark(flat: Flat, markers: Sequence[NodeProto], path: Path) -> None:
    flat.nodes.extend(markers)
    flat.paths.extend([path] * len(markers))


def _stripped(node: NodeProto) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    replace(result.attribute, [a for a in node.attribute if a.type not in _KINDS])
    return result


def _empty(graph: GraphProto) -> GraphProto:
    result = GraphProto()
    result.CopyFrom(graph)
    del result.node[:], result.value_info[:]
    return result


Markers = tuple[list[NodeProto], list[NodeProto]]


def _marker(node: NodeProto, domain: str, role: str, inputs: list[str], outputs: list[str], **more: Any) -> NodeProto:
    name = node.name or f"-> {next((n for n in node.output if n), '')}"
    return helper.make_node(node.op_type, inputs, outputs, name=name, domain=domain, role=role, **more)


def _expect(node: NodeProto, what: str, have: int, want: int) -> None:
    if have != want:
        name = node.name or f"-> {next(iter(node.output), '')}"
        raise Misfit(f"{node.op_type} {name!r} has {have} {what}, not {want}")


def _if(node: NodeProto, graphs: Sequence[GraphProto], _: int) -> Markers:
    condition = node.input[0]
    for graph in graphs:
        _expect(node, "results of a branch", len(graph.output), len(node.output))
    pairs = zip(graphs[0].output, graphs[1].output, node.output, strict=True)
    return [_marker(node, ENTER, "condition", [condition], [])], [
        _marker(node, LEAVE, "branches", [then.name, otherwise.name, condition], [out])
        for then, otherwise, out in pairs
    ]


def _loop(node: NodeProto, graphs: Sequence[GraphProto], _: int) -> Markers:
    (body,) = graphs
    given = [*node.input, "", ""][: max(2, len(node.input))]
    _expect(node, "inputs of the body", len(body.input), len(given))
    _expect(node, "outputs of the body", len(body.output), 1 + len(node.output))
    _expect(node, "states among its outputs", min(len(node.output), len(given) - 2), len(given) - 2)
    roles = ["count", "going", *["state"] * (len(given) - 2)]
    enters = [
        _marker(node, ENTER, role, [name], [value.name])
        for role, name, value in zip(roles, given, body.input, strict=True)
    ]
    leaves = [_marker(node, LEAVE, "going", [body.output[0].name], [])]
    ending = [body.output[0].name, *filter(None, given[:2])]
    for i, value in enumerate(body.output[1:]):
        out = [node.output[i] if i < len(node.output) else ""]
        if i < len(given) - 2:
            state = body.input[i + 2].name
            leaves.append(_marker(node, LEAVE, "state", [value.name, *ending], out, state=state))
        else:
            leaves.append(_marker(node, LEAVE, "each", [value.name, *ending], out, axes=[0]))
    return enters, leaves


def _scan(node: NodeProto, graphs: Sequence[GraphProto], opset: int) -> Markers:
    (body,) = graphs
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type not in _KINDS}
    batch = [0] if opset < 9 else []
    each = settings["num_scan_inputs"]
    states = len(body.input) - each
    collected = len(body.output) - states
    in_axes = [1] * each if batch else settings.get("scan_input_axes", [0] * each)
    out_axes = [1] * collected if batch else settings.get("scan_output_axes", [0] * collected)
    given = list(node.input)
    enters = [_marker(node, ENTER, "lengths", [given.pop(0)], [])] if batch else []
    _expect(node, "inputs of the body", len(body.input), len(given))
    _expect(node, "outputs of the body", len(body.output), len(node.output))
    _expect(node, "sequences among its inputs", min(max(each, 1), len(given)), each)
    _expect(node, "axes of its sequences", len(in_axes), each)
    _expect(node, "axes of its results", len(out_axes), collected)
    for i, (name, value) in enumerate(zip(given, body.input, strict=True)):
        role, axes = ("state", batch) if i < states else ("each", [*batch, in_axes[i - states]])
        enters.append(_marker(node, ENTER, role, [name], [value.name], axes=axes or None))
    leaves = []
    for i, value in enumerate(body.output):
        out = [node.output[i] if i < len(node.output) else ""]
        if i < states:
            leaves.append(
                _marker(node, LEAVE, "state", [value.name], out, axes=batch or None, state=body.input[i].name)
            )
        else:
            leaves.append(_marker(node, LEAVE, "each", [value.name], out, axes=[*batch, out_axes[i - states]]))
    return enters, leaves


_MARKERS = {"If": _if, "Loop": _loop, "Scan": _scan}
