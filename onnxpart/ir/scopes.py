"""One namespace for a graph and all graphs inside its nodes."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxpart.ir.protos import constant_value, graphs_of, live, set_repeated, unused


def share_names(graph: GraphProto) -> set[str]:
    """Give every value in the graphs inside `graph` a name of its own, and make their parameters initializers of it.

    A value that a graph hands on without computing it passes through an Identity.

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
        set_repeated(graph.value_info, infos)
        set_repeated(graph.node, kept)

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
