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


def test_what_is_taken_in_the_outer_graph_is_no_name_of_an_inner_value() -> None:
    inner = branch("then", 1)
    outer = graph(inner, branch("else", 2))
    outer.input.append(value("t"))
    outer.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "c"))
    sparse = outer.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    share_names(outer)
    names = [v.name for v in outer.input] + [t.name for t in outer.initializer] + ["w"]
    names += [name for node in all_nodes(outer) for name in node.output]
    assert len(names) == len(set(names))


def test_a_result_given_twice_passes_through_an_identity() -> None:
    twice = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["t"]), helper.make_node("Identity", ["t"], ["u"])],
        "twice", [], [value("t"), value("t")],
    )  # fmt: skip
    outer = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("If", ["flag"], ["y", "z"], then_branch=twice)],
        "outer", [value("x")], [value("y"), value("z")],
    )  # fmt: skip
    share_names(outer)
    inner = outer.node[1].attribute[0].g
    assert [node.op_type for node in inner.node] == ["Relu", "Identity"]
    assert [v.name for v in inner.output] == [inner.node[0].output[0], inner.node[1].output[0]]


def test_what_is_declared_within_has_the_new_names_and_is_of_what_is_made_there() -> None:
    inner = branch("then", 1)
    inner.value_info.extend([value("t"), value("c"), value("h"), value("nothing")])
    outer = graph(inner, branch("else", 2))
    share_names(outer)
    found = next(a.g for a in outer.node[1].attribute if a.name == "then_branch")
    assert [v.name for v in found.value_info] == [found.node[0].output[0]]


def test_graphs_within_graphs_see_what_is_around_them() -> None:
    deepest = helper.make_graph([helper.make_node("Neg", ["t"], ["y"])], "deepest", [], [value("y")])
    nodes = [
        helper.make_node("Relu", ["h"], ["t"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=deepest, else_branch=deepest),
    ]
    outer = graph(helper.make_graph(nodes, "then", [], [value("y")]), branch("else", 2))
    share_names(outer)
    made = [name for node in all_nodes(outer) for name in node.output]
    assert len(made) == len(set(made))
    found = next(a.g for a in outer.node[1].attribute if a.name == "then_branch")
    within = next(node for node in found.node if node.op_type == "If").attribute
    assert [list(a.g.node[0].input) for a in within] == [list(found.node[0].output)] * 2


def test_outputs_that_are_left_out_stay_so() -> None:
    normed = helper.make_node("LayerNormalization", ["h", "s"], ["y", "", "deviation"])
    outer = graph(helper.make_graph([normed], "then", [], [value("y"), value("deviation")]), branch("else", 2))
    share_names(outer)
    found = next(a.g for a in outer.node[1].attribute if a.name == "then_branch")
    assert [bool(name) for name in found.node[0].output] == [True, False, True]
