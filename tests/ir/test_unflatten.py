"""A flat list of operators and markers becomes nodes with graphs again."""

from __future__ import annotations

import onnx
import pytest

from models.golden import GOLDEN
from onnxpart.frontend.load import load
from onnxpart.ir.flatten import TOP
from onnxpart.ir.protos import all_nodes
from onnxpart.ir.unflatten import Unflattener
from tests.networks.looping import given, integer, loop, taken
from tests.networks.net import Net


def nested() -> onnx.ModelProto:
    """A loop with an If in it."""
    n = Net(("x", ("N", 5)))
    flag = given(n)

    def body(m: Net, _: str, states: list[str]) -> tuple[list[str], list[str]]:
        deeper = taken(m, flag, lambda q: [q.op("Relu", states[0])], lambda q: [q.op("Tanh", states[0])])
        return [deeper[0]], []

    (last,) = loop(n, integer(n, 3), [n.linear("x", 5, 5)], body)
    return n.model(n.linear(last, 5, 2, name="out"), shape=("N", 2))


def rebuilt(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    loaded = load(model)
    unflattener = Unflattener(loaded.flat.regions, lambda *_: None)
    for node, path in zip(loaded.flat.nodes, loaded.flat.paths, strict=True):
        unflattener.append(node, (path, -1))
    return list(loaded.proto.graph.node), unflattener.nodes


@pytest.mark.parametrize("name", ["chain", "scan", "branches", "recurrent"])
def test_what_was_flattened_comes_back(name: str) -> None:
    before, after = rebuilt(GOLDEN[name]())
    assert [node.op_type for node in after] == [node.op_type for node in before]
    assert [list(node.output) for node in after] == [list(node.output) for node in before]


def test_inner_nodes_stand_where_they_stood() -> None:
    model = load(nested())
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        unflattener.append(node, (path, -1))
    outer = onnx.GraphProto(node=unflattener.nodes)
    assert [n.op_type for n in all_nodes(outer)] == [n.op_type for n in all_nodes(model.proto.graph)]


def test_a_node_is_inserted_as_far_out_as_what_it_reads() -> None:
    model = load(GOLDEN["chain"]())
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    for node in model.flat.nodes:
        unflattener.append(node, TOP)
    unflattener.insert(onnx.helper.make_node("Relu", [model.flat.nodes[0].output[0]], ["more"]))
    assert unflattener.nodes[-1].output == ["more"]
    assert unflattener.home["more"] == TOP


def test_the_copy_of_a_part_has_the_parts_name() -> None:
    n = Net(("x", ("N", 5)))
    flag = given(n)
    h = taken(n, flag, lambda m: [m.op("Relu", "x")], lambda m: [m.op("Tanh", "x")])[0]
    model = load(n.model(n.linear(h, 5, 2), shape=("N", 2)))
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        unflattener.append(node, (path, 1 if path else -1))
    (found,) = (node for node in unflattener.nodes if node.op_type == "If")
    assert found.name == "if__part1"
