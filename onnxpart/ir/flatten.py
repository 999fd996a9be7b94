"""Graphs inside nodes: one namespace for all, and control flow as a flat list of operators.

The graphs inside If, Loop and Scan share one namespace with the graph around them (`share_names`), so that their nodes
can stand in one list with all others. In that list the nodes of its graphs replace a control-flow operator, between
markers: one for each value that enters (`ENTER`) and one for each that leaves (`LEAVE`). Rules, layout and emission
treat markers as operators; `Unflattener` turns the list into nodes with graphs again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, helper

from onnxpart.ir.protos import ATTRIBUTE_KINDS, graphs_of, is_onnx, set_repeated

ENTER = "onnxpart.enter"
"""The domain of the markers of values that enter a graph."""
LEAVE = "onnxpart.leave"
"""The domain of the markers of values that leave a graph."""
GRAPHS = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
"""Operators whose graphs are looked into, and the attributes that hold them."""
Path = tuple[tuple[int, int], ...]
"""Where a node stands: the number of each region, from the outermost inwards, and of its graph (-1: its markers)."""
Place = tuple[Path, int]
"""A path, and the part whose copy of the regions it is in (-1: there is one for all)."""
TOP: Place = ((), -1)


class Role(StrEnum):
    """What a marker hands over."""

    CONDITION = "condition"
    """Which branch an If takes."""
    COUNT = "count"
    """The largest number of iterations; in the body, the number of the iteration."""
    GOING = "going"
    """Whether a Loop goes on."""
    LENGTHS = "lengths"
    """The lengths of the sequences of a batch, in the oldest Scan."""
    STATE = "state"
    """What one iteration hands on to the next."""
    EACH = "each"
    """A sequence: each iteration sees or makes one element of it."""
    BRANCHES = "branches"
    """A result of an If, from the branch that it takes."""


def role_of(marker: NodeProto) -> Role:
    """What a marker hands over."""
    return Role(next(a.s.decode() for a in marker.attribute if a.name == "role"))


def axes_of(marker: NodeProto) -> list[int]:
    """The axes of iterations or of a batch, which a marker removes or adds."""
    return next((list(a.ints) for a in marker.attribute if a.name == "axes"), [])


def state_of(marker: NodeProto) -> str:
    """The body's name for the state that a marker takes out of it; empty for other markers."""
    return next((a.s.decode() for a in marker.attribute if a.name == "state"), "")


class Misfit(Exception):
    """A node and the graphs inside it don't fit; the message says which and how."""


@dataclass(frozen=True)
class Region:
    """An If, Loop or Scan: its node without the graphs, its graphs without nodes, where its markers and nodes stand.

    A marker reads what it hands over. A marker of a value that leaves also reads what decides whether and how often the
    value is computed.
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

    @cached_property
    def values(self) -> frozenset[str]:
        """The values that the operators read and make; an input or output that is left out counts as the empty name."""
        return frozenset(chain.from_iterable((*node.input, *node.output) for node in self.nodes))

    def inside(self, index: int) -> bool:
        """Whether the results of operator `index` are inside another operator."""
        return len(self.paths[index]) > (self.nodes[index].domain == LEAVE)

    def starting(self) -> dict[int, Region]:
        """The regions by the index of their first operator."""
        return {region.start: region for region in self.regions.values()}

    def outermost(self) -> list[Region]:
        """The regions that are in no other."""
        return [region for region in self.regions.values() if len(self.paths[region.start]) == 1]


# -- nested to flat ---------------------------------------------------------------------------------------------
def opaque_reason(node: NodeProto) -> str:
    """Why the graphs inside an If, Loop or Scan can't be looked into; empty if they can."""
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
    """Add nodes that stand at a path, and those of the graphs inside them between markers."""
    for node in nodes:
        if node.op_type not in GRAPHS or not is_onnx(node) or opaque_reason(node):
            flat.nodes.append(node)
            flat.paths.append(path)
            continue
        number = start = len(flat.nodes)
        found = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
        graphs = [found[name] for name in GRAPHS[node.op_type]]
        enters, leaves = _MARKERS[node.op_type](node, graphs, opset)
        markers = (*path, (number, -1))
        _mark(flat, enters, markers)
        for i, inner in enumerate(graphs):
            _flatten(flat, inner.node, (*path, (number, i)), opset)
        _mark(flat, leaves, markers)
        flat.regions[number] = Region(
            _stripped(node), tuple(map(_empty, graphs)), start, tuple(enters), tuple(leaves), len(flat.nodes)
        )


def _mark(flat: Flat, markers: Sequence[NodeProto], path: Path) -> None:
    flat.nodes.extend(markers)
    flat.paths.extend([path] * len(markers))


def _stripped(node: NodeProto) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    set_repeated(result.attribute, [a for a in node.attribute if a.type not in ATTRIBUTE_KINDS])
    return result


def _empty(graph: GraphProto) -> GraphProto:
    result = GraphProto()
    result.CopyFrom(graph)
    del result.node[:], result.value_info[:]
    return result


Markers = tuple[list[NodeProto], list[NodeProto]]


def _marker(node: NodeProto, domain: str, role: Role, inputs: list[str], outputs: list[str], **more: Any) -> NodeProto:
    name = node.name or f"-> {next((n for n in node.output if n), '')}"
    return helper.make_node(node.op_type, inputs, outputs, name=name, domain=domain, role=role.value, **more)


def _expect(node: NodeProto, what: str, have: int, want: int) -> None:
    if have != want:
        name = node.name or f"-> {next(iter(node.output), '')}"
        raise Misfit(f"{node.op_type} {name!r} has {have} {what}, not {want}")


def _if(node: NodeProto, graphs: Sequence[GraphProto], _: int) -> Markers:
    condition = node.input[0]
    for graph in graphs:
        _expect(node, "results of a branch", len(graph.output), len(node.output))
    pairs = zip(graphs[0].output, graphs[1].output, node.output, strict=True)
    return [_marker(node, ENTER, Role.CONDITION, [condition], [])], [
        _marker(node, LEAVE, Role.BRANCHES, [then.name, otherwise.name, condition], [out])
        for then, otherwise, out in pairs
    ]


def _loop(node: NodeProto, graphs: Sequence[GraphProto], _: int) -> Markers:
    """Markers of a Loop: its count, whether it goes on, its states, and what it collects."""
    (body,) = graphs
    given = [*node.input, "", ""][: max(2, len(node.input))]
    _expect(node, "inputs of the body", len(body.input), len(given))
    _expect(node, "outputs of the body", len(body.output), 1 + len(node.output))
    _expect(node, "states among its outputs", min(len(node.output), len(given) - 2), len(given) - 2)
    roles = [Role.COUNT, Role.GOING, *[Role.STATE] * (len(given) - 2)]
    enters = [
        _marker(node, ENTER, role, [name], [value.name])
        for role, name, value in zip(roles, given, body.input, strict=True)
    ]
    leaves = [_marker(node, LEAVE, Role.GOING, [body.output[0].name], [])]
    ending = [body.output[0].name, *filter(None, given[:2])]
    for i, value in enumerate(body.output[1:]):
        out = [node.output[i] if i < len(node.output) else ""]
        if i < len(given) - 2:
            state = body.input[i + 2].name
            leaves.append(_marker(node, LEAVE, Role.STATE, [value.name, *ending], out, state=state))
        else:
            leaves.append(_marker(node, LEAVE, Role.EACH, [value.name, *ending], out, axes=[0]))
    return enters, leaves


def _scan(node: NodeProto, graphs: Sequence[GraphProto], opset: int) -> Markers:
    """Markers of a Scan: its states, and the sequences that it runs along and makes; before opset 9 in batches."""
    (body,) = graphs
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type not in ATTRIBUTE_KINDS}
    batch = [0] if opset < 9 else []
    each = settings["num_scan_inputs"]
    states = len(body.input) - each
    collected = len(body.output) - states
    in_axes = [1] * each if batch else settings.get("scan_input_axes", [0] * each)
    out_axes = [1] * collected if batch else settings.get("scan_output_axes", [0] * collected)
    given = list(node.input)
    enters = [_marker(node, ENTER, Role.LENGTHS, [given.pop(0)], [])] if batch else []
    _expect(node, "inputs of the body", len(body.input), len(given))
    _expect(node, "outputs of the body", len(body.output), len(node.output))
    _expect(node, "sequences among its inputs", min(max(each, 1), len(given)), each)
    _expect(node, "axes of its sequences", len(in_axes), each)
    _expect(node, "axes of its results", len(out_axes), collected)
    for i, (name, value) in enumerate(zip(given, body.input, strict=True)):
        role, axes = (Role.STATE, batch) if i < states else (Role.EACH, [*batch, in_axes[i - states]])
        enters.append(_marker(node, ENTER, role, [name], [value.name], axes=axes or None))
    leaves = []
    for i, value in enumerate(body.output):
        out = [node.output[i] if i < len(node.output) else ""]
        if i < states:
            leaves.append(
                _marker(node, LEAVE, Role.STATE, [value.name], out, axes=batch or None, state=body.input[i].name)
            )
        else:
            leaves.append(_marker(node, LEAVE, Role.EACH, [value.name], out, axes=[*batch, out_axes[i - states]]))
    return enters, leaves


_MARKERS = {"If": _if, "Loop": _loop, "Scan": _scan}
