"""Running means and variances of batch norms: training changes them, so each norm gets its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxpart.ir.protos import all_nodes, constant_value, graphs_of, is_onnx, keep, live, names_of, set_repeated, unused

_STATISTICS = {3: "mean", 4: "var"}
"""The inputs of BatchNormalization that hold them."""


def own_statistics(proto: ModelProto) -> None:
    """Make the running statistics of every batch norm initializers that nothing else reads, in place.

    Exporters that drop equal arrays make one initializer of, say, all means and a bias of zeros. Statistics that are
    Constant nodes, which no training reaches, become initializers, too. Where nodes share scale, bias, mean and
    variance, and nothing else reads the statistics, they are one layer that is applied several times: these stay
    shared, as its parameters do. A scale or bias that several norms read always does.

    :param proto: a model without local functions. It is left as it is where nothing else is shared; else what leads to
        no output is left out, too. New initializers are named after the node.
    """
    if not any(node.op_type == "BatchNormalization" for node in all_nodes(proto.graph)):
        return
    sources = _Sources()
    sources.visit(proto.graph, {})
    shared = [source for source in sources.found if source.statistics and (source.constant or len(source.uses) > 1)]
    if not shared:
        return
    graph = proto.graph
    taken = names_of(graph) | sources.initializers.keys()
    for source in shared:
        _take_out(source, graph, taken)
    nodes, used = live(graph.node, [value.name for value in graph.output])
    set_repeated(graph.node, nodes)
    left = {name for name, source in sources.initializers.items() if source in shared and name not in used}
    for values in (graph.initializer, graph.input):
        keep(values, lambda value: value.name not in left)
    proto.ir_version = max(proto.ir_version, 4)  # before that, initializers were inputs, too


@dataclass(eq=False)
class _Source:
    """An initializer, or what a Constant node gives.

    `uses` says for each norm that reads it as a statistic which input it is, and which scale, bias, mean and variance
    the norm has; None stands for any other use. `statistics` are those nodes and inputs, with the tensor.
    """

    constant: bool
    uses: set[object] = field(default_factory=set)
    statistics: list[tuple[NodeProto, int, TensorProto | NodeProto]] = field(default_factory=list)


Known = dict[str, tuple[_Source, TensorProto | NodeProto]]


class _Sources:
    """All initializers, those of one name in several graphs as one, and all Constant nodes."""

    def __init__(self) -> None:
        self.initializers: dict[str, _Source] = {}
        self.found: list[_Source] = []

    def visit(self, graph: GraphProto, outer: Known) -> None:
        """Enter what a graph, and those inside its nodes, read; `outer` are the tensors around it by name."""
        known = dict(outer)
        for value in graph.input:
            known.pop(value.name, None)
        for tensor in graph.initializer:
            if tensor.name not in self.initializers:
                self.initializers[tensor.name] = self._source(constant=False)
            known[tensor.name] = self.initializers[tensor.name], tensor
        for node in graph.node:
            if node.op_type != "Identity":
                _enter(node, known)
            for inner in graphs_of(node):
                self.visit(inner, known)
            self._leave(node, known)
        for value in graph.output:
            if value.name in known:
                known[value.name][0].uses.add(None)

    def _leave(self, node: NodeProto, known: Known) -> None:
        """Enter what a node gives."""
        alias = known.get(node.input[0]) if node.op_type == "Identity" else None
        for name in node.output:
            known.pop(name, None)
        if alias is not None:
            known[node.output[0]] = alias
        elif node.op_type == "Constant" and any(a.name in ("value", "value_floats") for a in node.attribute):
            known[node.output[0]] = self._source(constant=True), node

    def _source(self, constant: bool) -> _Source:
        self.found.append(_Source(constant))
        return self.found[-1]


def _enter(node: NodeProto, known: Known) -> None:
    """Enter what a node reads."""
    norm = is_onnx(node, "BatchNormalization")
    layer = tuple(known[name][0] if name in known else name for name in node.input[1:5]) if norm else ()
    for index, name in enumerate(node.input):
        if name not in known:
            continue
        source, tensor = known[name]
        statistic = norm and index in _STATISTICS
        source.uses.add((index, layer) if statistic else None)
        if statistic:
            source.statistics.append((node, index, tensor))


def _take_out(source: _Source, graph: GraphProto, taken: set[str]) -> None:
    """Let the norms that read a tensor read copies of it, initializers of the outermost graph.

    Each has its own, unless they are one layer and nothing else reads the tensor.
    """
    name = ""
    for node, index, held in source.statistics:
        if not name or len(source.uses) > 1:
            name = unused(f"{node.name or node.output[0]}/{_STATISTICS[index]}", taken)
            tensor = held if isinstance(held, TensorProto) else constant_value(held)
            assert tensor is not None
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name
        node.input[index] = name
