"""networkx views: the operators and tensors of a model, and the units of a partition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Field, first_along
from onnxpart.analysis.op import Op
from onnxpart.analysis.rules.recurrent import GATES, LENGTHS
from onnxpart.errors import ModelError
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured
from onnxpart.planning.assign import ANYWHERE
from onnxpart.planning.division import WEIGHTED
from onnxpart.planning.partition import partition_of
from onnxpart.planning.plan import Plan
from onnxpart.planning.unit_classes import NOWHERE, Decision, decide

By = Literal["block", "class"]
Node = tuple[str | int, ...]
Mask = NDArray[np.bool_]


def operator_graph(source: Model | onnx.ModelProto) -> nx.DiGraph:
    """Operators and tensors of a model as a bipartite graph.

    :param source: a loaded model, or ONNX's own.
    :returns: nodes `("operator", index)` with `kind`, `op_type`, `domain`, `name` and `("tensor", name)` with `kind`,
        `name`, `shape` (None if it isn't known; an axis is None if it depends on a symbol) and `initializer`; edges
        producer -> tensor -> consumer, `captured` if only a subgraph of the consumer reads the tensor.
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

    :param analysis: the analysis that `plan` was made from.
    :param by: `block` makes one node of the units of a layer in a part, and of each input and output; `class` one of
        each unit class, and of each neuron of an output, or of an input that a contraction reads.
    :returns: nodes with `kind` (input, hidden, output, or replicated: hidden units that every part has), `part` (None:
        every part), `layer` (title of the operator where the units come into being, or name of the input or output) and
        `size` in units; edges where a weight leads from one node to another, or a shared value enters directly. An edge
        has `cross`: it is between parts, so the merged network has zeros there. Loops are left out.
    :raises MergeError: when the plan is of another model.
    """
    return _Units(analysis, plan, by).graph


def part_subgraph(graph: nx.DiGraph, part: int) -> nx.DiGraph:
    """The vertex-induced subgraph of one part: its own nodes and those of every part.

    :param graph: a `unit_graph`.
    :param part: the part's index.
    :returns: a copy.
    """
    return graph.subgraph([node for node, owner in graph.nodes(data="part") if owner in (None, part)]).copy()


def _numbers(op: Op, name: str) -> bool:
    """Whether an operator that makes units takes a tensor as rows of a table or as lengths of sequences."""
    return op.op_type in ("Gather", "GatherND") or (op.op_type in GATES and op.inputs[LENGTHS : LENGTHS + 1] == (name,))


class _Units:
    """Builds a `unit_graph`, tensor by tensor.

    `carried`: the nodes that a tensor's undivided elements stand for. `ids`: each label's hidden node (-1: none).
    """

    def __init__(self, analysis: Analysis, plan: Plan, by: By) -> None:
        self.analysis, self.by, self.k = analysis, by, plan.k
        self.graph = nx.DiGraph(name=analysis.model.name)
        self.parts = partition_of(analysis, plan).division.parts
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
        """Neurons of an input: its channels or features if a contraction reads it, otherwise one."""
        shape = self.analysis.shapes.shape.get(name, ())
        for index in self.analysis.consumers.get(name, []):
            op = self.analysis.ops[index]
            if shape and self.weighted[index] and not _numbers(op, name):
                first = op.op_type in ("Conv", "ConvTranspose") or bool(op.attributes.get("transA"))
                return shape[(0 if op.op_type == "Gemm" else 1) if first else -1]
        return 1

    def _output_size(self, name: str) -> int:
        """Neurons of an output: its labels, before they are shared; without labels, the size of its last axis."""
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
        return any(n in state.depends_on_parameters and n in state.weights_only for n in names)

    def _final(self) -> list[bool]:
        """For each operator, whether no operator behind it makes units, so that its units are the outputs'."""
        count = len(self.analysis.ops)
        final = [True] * count
        for index in reversed(range(count)):
            outputs = self.analysis.ops[index].outputs
            users = {u for n in outputs if n for u in self.analysis.consumers.get(n, [])}
            final[index] = all(final[u] and not self.weighted[u] for u in users)
        return final

    def _visit(self, index: int) -> None:
        """Add an operator: edges from the nodes that it reads, and the nodes that its results carry."""
        analysis, op, rule = self.analysis, self.analysis.ops[index], self.analysis.rules[index]
        if rule is not None and rule.kind == "source":
            return
        names = [n for n in analysis.inputs(index) if n not in analysis.state.weights_only]
        for out in op.outputs:
            if not out or out in analysis.state.weights_only:
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
        """The nodes that the undivided elements of an operator's result carry."""
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
        """The nodes that the channels of each group carry."""
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
