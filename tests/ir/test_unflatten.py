"""A flat list of operators and markers becomes nodes with graphs again."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from models.golden import GOLDEN
from onnxpart.frontend.load import load
from onnxpart.ir.flatten import GRAPHS, TOP, state_of
from onnxpart.ir.model import Model
from onnxpart.ir.protos import all_nodes, graphs_of
from onnxpart.ir.unflatten import Unflattener
from tests.networks.looping import given, integer, loop, taken
from tests.networks.net import Net


def nested() -> onnx.ModelProto:
    """A loop with an If in it, in one of whose branches is a loop again."""
    n = Net(("x", ("N", 5)))
    flag = given(n)

    def deepest(q: Net, start: str) -> list[str]:
        return loop(q, integer(n, 2), [start], lambda r, _, states: ([r.op("Tanh", states[0])], []))

    def body(m: Net, _: str, states: list[str]) -> tuple[list[str], list[str]]:
        deeper = taken(m, flag, lambda q: [q.op("Relu", states[0])], lambda q: deepest(q, q.op("Neg", states[0])))
        return [deeper[0]], []

    (last,) = loop(n, integer(n, 3), [n.linear("x", 5, 5)], body)
    return n.model(n.linear(last, 5, 2, name="out"), shape=("N", 2))


def unflattened(model: Model, part: int = -1) -> Unflattener:
    """The operators of a model put back one by one, those inside others into the copy of a part."""
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        unflattener.append(node, (path, part if path else -1))
    return unflattener


@pytest.mark.parametrize(
    "build",
    [*(GOLDEN[name] for name in ("chain", "scan", "branches", "recurrent")), nested],
    ids=lambda build: build.__name__,
)
def test_what_was_flattened_comes_back(build: Callable[[], onnx.ModelProto]) -> None:
    model = load(build())
    assert unflattened(model).nodes == list(model.proto.graph.node)


@pytest.mark.parametrize("part", [-1, 1])
def test_where_each_value_is_seen(part: int) -> None:
    model = load(nested())
    home = unflattened(model, part).home
    (relu,) = (i for i, node in enumerate(model.flat.nodes) if node.op_type == "Relu")
    assert home[model.flat.nodes[relu].output[0]] == (model.flat.paths[relu], part)
    for region in model.flat.regions.values():
        outside = model.flat.paths[region.start][:-1]
        seen = (outside, part) if outside else TOP
        body = ((*outside, (region.start, 0)), part)
        assert all(home[m.output[0]] == seen for m in region.leaves if m.output)
        assert all(home[m.output[0]] == body for m in region.enters if m.output)


def test_nodes_and_their_graphs_have_the_names_of_what_is_put_back() -> None:
    model = load(nested())
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        renamed = onnx.NodeProto()
        renamed.CopyFrom(node)
        for names in (renamed.input, renamed.output):
            names[:] = [f"{name}_new" if name else "" for name in names]
        unflattener.append(renamed, (path, -1))
    found = list(all_nodes(onnx.GraphProto(node=unflattener.nodes)))
    graphs = [graph for node in found for graph in graphs_of(node)]
    names = [name for node in found for name in (*node.input, *node.output) if name]
    names += [value.name for graph in graphs for value in (*graph.input, *graph.output)]
    assert names
    assert all(name.endswith("_new") for name in names)


def test_what_is_declared_is_of_the_tensor_that_goes_in_or_out() -> None:
    model = load(nested())
    declared: list[tuple[str, str, int]] = []
    unflattener = Unflattener(model.flat.regions, lambda value, name, part: declared.append((value.name, name, part)))
    for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
        unflattener.append(node, (path, 1 if path else -1))
    branches = [r for r in model.flat.regions.values() if r.node.op_type == "If"]
    loops = [r for r in model.flat.regions.values() if r.node.op_type == "Loop"]
    taken_out = [leave.output[0] for region in branches for leave in region.leaves for _ in region.graphs]
    states = [state_of(leave) for region in loops for leave in region.leaves if state_of(leave)]
    names = [name for _, name, _ in declared]
    assert all(names.count(name) == 2 for name in taken_out)
    assert all(names.count(name) == 2 for name in states)  # into the body, and out of it
    assert {part for _, _, part in declared} == {1}


def test_a_node_is_inserted_as_far_out_as_what_it_reads() -> None:
    model = load(nested())
    unflattener = Unflattener(model.flat.regions, lambda *_: None)
    (relu,) = (i for i, node in enumerate(model.flat.nodes) if node.op_type == "Relu")
    for i, (node, path) in enumerate(zip(model.flat.nodes, model.flat.paths, strict=True)):
        unflattener.append(node, (path, -1))
        if i == relu:
            unflattener.insert(onnx.helper.make_node("Neg", [node.output[0], "x"], ["inner"]))
            unflattener.insert(onnx.helper.make_node("Neg", ["x"], ["outer"]))
    assert unflattener.home["inner"] == (model.flat.paths[relu], -1)
    assert unflattener.home["outer"] == TOP
    outer = onnx.GraphProto(node=unflattener.nodes)
    assert ["inner"] not in [list(node.output) for node in outer.node]
    assert ["inner"] in [list(node.output) for node in all_nodes(outer)]


def test_the_copy_of_a_part_has_the_parts_name() -> None:
    model = load(nested())
    named = {node.name for node in all_nodes(model.proto.graph) if node.op_type in GRAPHS}
    copies = onnx.GraphProto(node=unflattened(model, 1).nodes)
    found = {node.name for node in all_nodes(copies) if node.op_type in GRAPHS}
    assert found == {f"{name}__part1" for name in named}
