"""The branch of an If that is taken stands in its place."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxpart.frontend.branches import take_branches
from onnxpart.ir.protos import all_nodes
from tests.networks.looping import given, integer, loop, taken
from tests.networks.net import Net


def network() -> Net:
    n = Net(("x", ("N", 4)))
    flag = given(n)
    taken(n, flag, lambda m: [m.op("Relu", "x")], lambda m: [m.op("Tanh", m.op("Neg", "x"))])
    return n


@pytest.mark.parametrize(("value", "left"), [(True, ["Relu", "Identity"]), (False, ["Neg", "Tanh", "Identity"])])
def test_the_branch_that_is_taken(value: bool, left: list[str]) -> None:
    n = network()
    graph = helper.make_graph(n.nodes, "g", n.inputs, [])
    assert take_branches(graph, {"flag": np.asarray(value)})
    assert [node.op_type for node in graph.node] == left
    assert graph.node[-1].output[0] == "if"


def test_an_unknown_condition_stays() -> None:
    n = network()
    graph = helper.make_graph(n.nodes, "g", n.inputs, [])
    assert not take_branches(graph, {"another": np.asarray(True)})
    assert [node.op_type for node in graph.node] == ["If"]


def test_one_inside_a_loop() -> None:
    n = Net(("x", ("N", 4)))
    flag = given(n)

    def body(m: Net, _: str, states: list[str]) -> tuple[list[str], list[str]]:
        return taken(m, flag, lambda q: [q.op("Relu", states[0])], lambda q: [q.op("Tanh", states[0])]), []

    loop(n, integer(n, 2), ["x"], body)
    graph = helper.make_graph(n.nodes, "g", n.inputs, [])
    assert take_branches(graph, {"flag": np.asarray(False)})
    types = [node.op_type for node in all_nodes(graph)]
    assert "Tanh" in types
    assert "If" not in types
    assert "Relu" not in types
