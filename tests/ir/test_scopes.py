"""Graphs inside nodes share one namespace with the graph around them."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from onnxpart.ir.protos import all_graphs, all_nodes
from onnxpart.ir.scopes import share_names


def value(name: str) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])


def branch(name: str, constant: float) -> GraphProto:
    """A graph that adds an initializer and a Constant node to the outer `h`; all of its names are those of others."""
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full(2, constant, np.float32))),
        helper.make_node("Add", ["h", "w"], ["t"]),
        helper.make_node("Add", ["t", "c"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    return helper.make_graph(nodes, name, [], [value("y")], [weight])


def graph(*branches: GraphProto) -> GraphProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return helper.make_graph(nodes, "outer", [value("x"), flag], [value("y")])


def test_each_value_has_a_name_of_its_own() -> None:
    outer = graph(branch("then", 1), branch("else", 2))
    share_names(outer)
    made = [name for node in all_nodes(outer) for name in node.output]
    assert len(made) == len(set(made))


def test_parameters_become_the_outermost_graphs() -> None:
    outer = graph(branch("then", 1), branch("else", 2))
    constants = share_names(outer)
    found = {t.name: numpy_helper.to_array(t).tolist() for t in outer.initializer}
    assert sorted(found.values()) == [[1, 1], [1, 1], [1, 1], [2, 2]]
    assert sorted(found[name] for name in constants) == [[1, 1], [2, 2]]
    assert not any(inner.initializer for inner in all_graphs(outer) if inner is not outer)
    assert not any(node.op_type == "Constant" for node in all_nodes(outer))


def test_what_is_read_from_outside_keeps_its_name() -> None:
    outer = graph(branch("then", 1), branch("else", 2))
    share_names(outer)
    first = [node for node in all_nodes(outer) if node.op_type == "Add" and "h" in node.input]
    assert len(first) == 2


def test_what_is_handed_on_passes_through_an_identity() -> None:
    through = helper.make_graph([], "through", [], [value("h")])
    outer = graph(through, branch("else", 2))
    share_names(outer)
    inner = next(a.g for a in outer.node[1].attribute if a.name == "then_branch")
    assert [(n.op_type, list(n.input)) for n in inner.node] == [("Identity", ["h"])]
    assert inner.output[0].name == inner.node[0].output[0] != "h"
