"""networkx views of models and plans, and the five conditions of section 2.2 on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxpart.analyse import Analysis
from onnxpart.assign import ANYWHERE, Parts
from onnxpart.control import captured
from onnxpart.decide import NOWHERE, Decision, decide
from onnxpart.emit import layout_of
from onnxpart.errors import ModelError
from onnxpart.labels import Field, Fields
from onnxpart.layout import WEIGHTED
from onnxpart.model import Model
from onnxpart.plan import InitializerPlan, Plan
from onnxpart.rules.context import Op, first_along
from onnxpart.rules.recurrent import GATES, LENGTHS
from onnxpart.shapes import infer

By = Literal["block", "class"]
Node = tuple[str | int, ...]
Mask = NDArray[np.bool_]


def operator_graph(source: Model | onnx.ModelProto) -> nx.DiGraph:
    """Operators and tensors of a model as a bipartite graph.

    :returns: nodes `("operator", index)` with `kind`, `op_type`, `domain`, `name` and `("tensor", name)` with `kind`,
        `name`, `shape` (None where it isn't known, and in it where it depends on a symbol) and `initializer`; edges
        producer -> tensor -> consumer, `captured` where only a subgraph of the consumer reads the tensor.
    """
    model = source if isinstance(source, Model) else Model(source, source.graph.name, "")
    proto, shapes = model.proto.graph, _shapes(model)
    constants = {*model.initializers, *(sparse.values.name for sparse in proto.sparse_initializer)}
    graph = nx.DiGraph(name=proto.name)

    def tensor(name: str) -> Node:
        graph.add_node(
            ("tensor", name), kind="tensor", name=name, shape=shapes.get(name), initializer=name in constants
        )
        return "tensor", name

    for name in (*model.inputs, *constants, *model.outputs):
        tensor(name)
    for index, node in enumerate(proto.node):
        key = ("operator", index)
        graph.add_node(key, kind="operator", op_type=node.op_type, domain=node.domain, name=node.name)
        direct = [name for name in node.input if name]
        graph.add_edges_from((tensor(name), key, {"captured": True}) for name in captured(node))
        graph.add_edges_from((tensor(name), key, {"captured": False}) for name in direct)
        graph.add_edges_from((key, tensor(name), {"captured": False}) for name in node.output if name)
    return graph


def _shapes(model: Model) -> dict[str, tuple[int | None, ...]]:
    try:
        shapes = infer(model)
    except ModelError:
        return {}
    return {
        name: tuple(None if d else n for n, d in zip(shape, shapes.dynamic_dims(name), strict=True))
        for name, shape in shapes.shape.items()
    }


def unit_graph(analysis: Analysis, plan: Plan, by: By = "block") -> nx.DiGraph:
    """What leads where in the whole network: inputs, blocks of hidden units, outputs.

    :param analysis: the analysis that `plan` was made from. :param by: `block` makes one node of the units of a layer
        in a part, and of each input and output; `class` one of each unit class, and of each neuron of an output, or
        of an input that a contraction reads.
    :returns: nodes with `kind` (input, hidden, output, or replicated: hidden units that every part has), `part` (None:
        every part), `layer` (title of the operator where the units come into being, or name of the input or output)
        and `size` in units; edges where a weight leads from one to another, or what is shared enters directly, with
        `cross`: between parts, so that the merged network has zeros there. Loops are left out.
    :raises MergeError: when the plan is of another model.
    """
    return _Units(analysis, plan, by).graph


def part_subgraph(graph: nx.DiGraph, part: int) -> nx.DiGraph:
    """The vertex-induced subgraph of one part of a `unit_graph`: its own nodes and those of every part."""
    return graph.subgraph([node for node, owner in graph.nodes(data="part") if owner in (None, part)]).copy()


def _numbers(op: Op, name: str) -> bool:
    """Whether an operator that makes units takes a tensor for rows of a table or lengths of sequences."""
    return op.op_type in ("Gather", "GatherND") or (op.op_type in GATES and op.inputs[LENGTHS : LENGTHS + 1] == (name,))


class _Units:
    """Builds a `unit_graph`, tensor by tensor.

    `carried` are the nodes that a tensor's undivided elements stand for, `ids` each label's hidden node (-1: none).
    """

    def __init__(self, analysis: Analysis, plan: Plan, by: By) -> None:
        self.analysis, self.by, self.k = analysis, by, plan.k
        self.graph = nx.DiGraph(name=analysis.model.name)
        self.parts = layout_of(analysis, plan).parts
        self.hidden: list[Node] = []
        self.ids = self._hidden_nodes(decide(analysis, plan.k))
        self.makers = {node: f for f, node in analysis.labels.roots}
        self.weighted = [self._weighted(index) for index in range(len(analysis.ops))]
        self.final = self._final()
        self.inputs = {name: self._ends("input", name, self._input_size(name)) for name in analysis.model.inputs}
        self.carried: dict[str, frozenset[Node]] = {name: frozenset(nodes) for name, nodes in self.inputs.items()}
        for index in range(len(analysis.ops)):
            self._visit(index)
        for name in analysis.model.outputs:
            self._lead(self._all(name), self._ends("output", name, self._output_size(name)))

    # -- nodes --------------------------------------------------------------------------------------------------

    def _hidden_nodes(self, decision: Decision) -> NDArray[np.int64]:
        """Add the hidden nodes; returns the node of each label, int64 [labels]."""
        labels, home = self.analysis.labels, decision.home[decision.classes].astype(np.int64)
        ids = np.full(labels.count, -1, np.int64)
        divided = np.flatnonzero(self.parts >= 0)
        owner = home if self.by == "block" else decision.classes.astype(np.int64)
        key = owner[divided] * self.k + self.parts[divided]
        _, first, ids[divided] = np.unique(key, return_index=True, return_inverse=True)
        size = np.zeros(len(first), np.int64)
        for i, (f, _) in enumerate(labels.roots):
            mine = f[(home[f] == i) & (ids[f] >= 0)]
            np.add.at(size, ids[mine], 1)
        for label, units in zip(divided[first], size, strict=True):
            layer, part = int(home[label]), int(self.parts[label])
            title = "" if layer == NOWHERE else self.analysis.ops[labels.roots[layer][1]].title
            node: Node = ("hidden", layer, part)
            if self.by == "class":
                node = (*node, int(decision.classes[label]))
            self.graph.add_node(node, kind="hidden", part=part, layer=title, size=int(units))
            self.hidden.append(node)
        return ids

    def _ends(self, kind: str, name: str, size: int) -> list[Node]:
        """Add the nodes of an input or output."""
        nodes: list[Node] = [(kind, name)] if self.by == "block" else [(kind, name, i) for i in range(size)]
        self.graph.add_nodes_from(nodes, kind=kind, part=None, layer=name, size=size // len(nodes))
        return nodes

    def _input_size(self, name: str) -> int:
        """Neurons of an input: its channels or features where a contraction reads it, else one."""
        shape = self.analysis.shapes.shape.get(name, ())
        for index in self.analysis.consumers.get(name, []):
            op = self.analysis.ops[index]
            if shape and self.weighted[index] and not _numbers(op, name):
                first = op.op_type in ("Conv", "ConvTranspose") or bool(op.attributes.get("transA"))
                return shape[(0 if op.op_type == "Gemm" else 1) if first else -1]
        return 1

    def _output_size(self, name: str) -> int:
        """Neurons of an output: the labels in it, before they are shared; else what lies along its last axis."""
        fields = self.analysis.fields(name)
        shape = self.analysis.shapes.shape.get(name) or (1,)
        return max((len(np.unique(f)) for f in fields), default=shape[-1])

    # -- what a tensor carries ----------------------------------------------------------------------------------

    def _open(self, name: str) -> bool:
        """Whether some elements of a tensor are undivided."""
        return all(bool((self.parts[f] == ANYWHERE).any()) for f in self.analysis.fields(name))

    def _units(self, fields: Iterable[Field]) -> frozenset[Node]:
        found = {int(i) for f in fields for i in np.unique(self.ids[f])}
        return frozenset(self.hidden[i] for i in found if i >= 0)

    def _all(self, name: str) -> frozenset[Node]:
        return self._units(self.analysis.fields(name)) | self.carried.get(name, frozenset())

    def _lead(self, sources: Iterable[Node], targets: Iterable[Node]) -> None:
        nodes, targets = self.graph.nodes, list(targets)
        for a in sources:
            for b in targets:
                if a != b:
                    pair = {nodes[a]["part"], nodes[b]["part"]}
                    self.graph.add_edge(a, b, cross=len(pair) > 1 and None not in pair)

    def _weighted(self, index: int) -> bool:
        """Whether an operator makes units: a contraction with a trained weight, a look-up in a table, a barrier."""
        state, rule, names = self.analysis.state, self.analysis.rules[index], self.analysis.inputs(index)
        if index in self.makers or (rule is not None and rule.kind not in WEIGHTED):
            return index in self.makers
        return any(n in state.trained and n in state.pure for n in names)

    def _final(self) -> list[bool]:
        """For each operator whether no other operator behind it makes units: its results are the outputs'."""
        count = len(self.analysis.ops)
        final = [True] * count
        for index in reversed(range(count)):
            outputs = self.analysis.ops[index].outputs
            users = {u for n in outputs if n for u in self.analysis.consumers.get(n, [])}
            final[index] = all(final[u] and not self.weighted[u] for u in users)
        return final

    def _visit(self, index: int) -> None:
        analysis, op, rule = self.analysis, self.analysis.ops[index], self.analysis.rules[index]
        if rule is not None and rule.kind == "source":
            return
        names = [n for n in analysis.inputs(index) if n not in analysis.state.pure]
        for out in op.outputs:
            if not out or out in analysis.state.pure:
                continue
            units = self._units(analysis.fields(out))
            if self._open(out):
                self.carried[out] = self._rest(index, names, bool(units))
            if self.weighted[index]:
                for sources, targets in self._flows(op, names, out):
                    self._lead(sources, targets)
            elif units and rule is not None and rule.kind != "movement":
                direct = [n for n in names if not self._units(analysis.fields(n))]
                self._lead(frozenset().union(*(self._all(n) for n in direct)), units)

    def _rest(self, index: int, names: list[str], partly: bool) -> frozenset[Node]:
        """What the undivided elements of an operator's result carry."""
        if not self.weighted[index] or self.final[index]:
            return frozenset().union(*(self.carried.get(n, frozenset()) if partly else self._all(n) for n in names))
        node: Node = ("replicated", index)
        size = int((self.parts[self.makers[index]] == ANYWHERE).sum()) if index in self.makers else 1
        title = self.analysis.ops[index].title
        self.graph.add_node(node, kind="replicated", part=None, layer=title, size=size)
        return frozenset([node])

    def _flows(self, op: Op, names: list[str], out: str) -> Iterator[tuple[frozenset[Node], frozenset[Node]]]:
        """Sources and targets between which a contraction has weights, group by group."""
        group = int(op.attributes.get("group", 1)) if op.op_type in ("Conv", "ConvTranspose") else 1
        made = self.carried.get(out, frozenset()) if not self.final[op.index] else frozenset()
        if group == 1:
            yield frozenset().union(*(self._all(n) for n in names)), self._units(self.analysis.fields(out)) | made
            return
        pairs = zip(self._by_group(op.inputs[0], group), self._by_group(out, group), strict=True)
        for sources, targets in pairs:
            yield sources, targets if not self.final[op.index] else frozenset()

    def _by_group(self, name: str, group: int) -> list[frozenset[Node]]:
        """What the channels of each group carry."""
        if len(self.inputs.get(name, ())) % group == 0 and name in self.inputs:
            size = len(self.inputs[name]) // group
            return [frozenset(self.inputs[name][i * size : (i + 1) * size]) for i in range(group)]
        rest = self.carried.get(name, frozenset())
        fields = [first_along(f, [1]).reshape(group, -1) for f in self.analysis.fields(name) if f.shape[1] > 1]
        if not fields:
            return [rest] * group
        return [
            self._units(f[i] for f in fields)
            | (rest if all(bool((self.parts[f[i]] == ANYWHERE).any()) for f in fields) else frozenset())
            for i in range(group)
        ]


# -- the conditions of section 2.2 ------------------------------------------------------------------------------


def check_conditions(analysis: Analysis, plan: Plan) -> list[str]:
    """The conditions of section 2.2 that a plan breaks, each with what breaks it; none when all hold.

    1. Each part is a complete flow: its nodes lie on paths from an input to an output. 2. Each vertex-induced subgraph
    is a valid network: its only sources are inputs, its only sinks outputs, and its parameters belong to its units.
    3. Inputs and outputs are those of the whole. 4. Every hidden unit is in exactly one part, unless it is replicated.
    5. Every element of a parameter is in at most one part, unless it is an output unit's or replicated. What lies on
    no path in the whole network either is left out.

    :param analysis: the analysis that `plan` was made from.
    :raises MergeError: when the plan is of another model.
    """
    graph = unit_graph(analysis, plan)
    alive = graph.subgraph(_on_paths(graph))
    result = []
    for part in range(plan.k):
        sub = part_subgraph(alive, part)
        stray = sub.nodes - _on_paths(sub)
        result += [f"condition 1: in part {part}, {_name(sub, n)} is on no path from input to output" for n in stray]
        result += _loose_ends(sub, part)
    layout = layout_of(analysis, plan)
    result += [
        f"condition 3: {name!r} is divided, so its shape in a part isn't that in the whole"
        for name in (*analysis.model.inputs, *analysis.model.outputs)
        if layout.divided(name)
    ]
    result += _misplaced_units(analysis, layout.parts, decide(analysis, plan.k))
    for initializer in plan.initializers:
        result += _misplaced_elements(initializer, analysis.fields(initializer.name), layout.parts, plan.k)
    return sorted(result)


def _kind(graph: nx.DiGraph, kind: str) -> list[Node]:
    return [node for node, found in graph.nodes(data="kind") if found == kind]


def _on_paths(graph: nx.DiGraph) -> set[Node]:
    """Nodes on a path from an input to an output."""
    behind = set().union(*({n} | nx.descendants(graph, n) for n in _kind(graph, "input")))
    return behind & set().union(*({n} | nx.ancestors(graph, n) for n in _kind(graph, "output")))


def _name(graph: nx.DiGraph, node: Node) -> str:
    return f"{graph.nodes[node]['kind']} {graph.nodes[node]['layer']}"


def _loose_ends(graph: nx.DiGraph, part: int) -> list[str]:
    """Sources that aren't inputs and sinks that aren't outputs; nodes on a cycle count as one."""
    result = []
    cycles = nx.condensation(graph)
    for what, degree, kind in (("source", cycles.in_degree, "input"), ("sink", cycles.out_degree, "output")):
        for component, members in cycles.nodes(data="members"):
            if degree(component) == 0 and not any(graph.nodes[n]["kind"] == kind for n in members):
                name = _name(graph, min(members))
                result.append(f"condition 2: in part {part}, {name} is a {what} that is no {kind}")
    return result


def _misplaced_units(analysis: Analysis, parts: Parts, decision: Decision) -> list[str]:
    """Unit classes whose places in the network are in several parts, and shared units in a single one."""
    classes = decision.classes
    low, high = np.full(classes.max() + 1, np.iinfo(np.int16).max), np.full(classes.max() + 1, ANYWHERE)
    np.minimum.at(low, classes, parts)
    np.maximum.at(high, classes, parts)
    result = []
    for c in np.flatnonzero(low < high):
        if c == 0:
            result.append(f"condition 4: units that every part has are in part {high[c]} alone")
            continue
        layer = analysis.ops[analysis.labels.roots[decision.home[c]][1]].title
        result.append(f"condition 4: a unit of {layer} is in several parts ({low[c]} and {high[c]})")
    return result


def _misplaced_elements(initializer: InitializerPlan, fields: Fields, parts: Parts, k: int) -> list[str]:
    """Parameter elements in other parts than their units."""
    if initializer.constant or not initializer.shape:
        return []
    owned = [_owned(fields, parts, p, initializer.shape) for p in range(k)]
    held = [_held(initializer, p) for p in range(k)]
    name, result = repr(initializer.name), []
    shared = initializer.reduces or initializer.tail or initializer.stored == "apart"
    several = np.sum(held, axis=0) > 1
    if shared:
        several &= ~np.all(owned, axis=0)
    if several.any():
        result.append(f"condition 5: {several.sum()} elements of {name} are in several parts")
    for p, (own, have) in enumerate(zip(owned, held, strict=True)):
        if (own & ~have).any():
            lost = (own & ~have).sum()
            result.append(f"condition 4: {lost} elements of {name} are not in part {p}, where their units are")
        if (have & ~own & ~several).any():
            extra = (have & ~own & ~several).sum()
            result.append(f"condition 2: {extra} elements of {name} are in part {p}, where their units are not")
    return result


def _owned(fields: Fields, parts: Parts, part: int, shape: tuple[int, ...]) -> Mask:
    """Which elements belong to a part by their units."""
    result = np.ones(shape, bool)
    for f in fields:
        result &= (parts[f] == part) | (parts[f] == ANYWHERE)
    return result


def _held(initializer: InitializerPlan, part: int) -> Mask:
    """Which elements a part holds by the plan's blocks."""
    result = np.zeros(initializer.shape, bool)
    for index, _ in initializer.pieces(part):
        result[index] = True
    return result
