"""The networkx views say what figure 1 shows."""

from __future__ import annotations

from itertools import product

import networkx as nx
import numpy as np
import onnx
import pytest
from onnx import helper

from models import BUILDERS, GOLDEN, figure1
from onnxpart import Analysis, load, merge
from onnxpart.planning.unit_classes import decide
from onnxpart.verification.unit_graph import operator_graph, part_subgraph, unit_graph
from tests.networks.verified import planned


def hidden(analysis: Analysis, tensor: str, layer: int, part: int, indices: range) -> set[tuple[object, ...]]:
    """Nodes of some neurons of `tensor`, by their places along its only divided axis."""
    (field,) = analysis.fields(tensor)
    classes = decide(analysis, 2).classes[field.ravel()]
    return {("hidden", layer, part, int(classes[i])) for i in indices}


def test_figure_1_neuron_by_neuron() -> None:
    analysis, made = planned("figure1")
    graph = unit_graph(analysis, made, by="class")
    x, y = {("input", "x", i) for i in range(3)}, {("output", "y", i) for i in range(2)}
    l11, l12 = hidden(analysis, "relu1", 0, 0, range(2)), hidden(analysis, "relu1", 0, 1, range(2, 4))
    l21, l22 = hidden(analysis, "relu2", 1, 0, range(2)), hidden(analysis, "relu2", 1, 1, range(2, 4))
    assert set(graph) == x | l11 | l12 | l21 | l22 | y
    assert set(graph.edges) == {*product(x, l11 | l12), *product(l11 | l12, l21 | l22), *product(l21 | l22, y)}
    assert all(size == 1 for _, size in graph.nodes(data="size"))
    cross = {(a, b) for a, b, crosses in graph.edges(data="cross") if crosses}
    assert cross == {*product(l11, l22), *product(l12, l21)}

    first, second = part_subgraph(graph, 0), part_subgraph(graph, 1)
    assert set(first) == x | l11 | l21 | y
    assert set(second) == x | l12 | l22 | y
    assert set(first.edges) == {*product(x, l11), *product(l11, l21), *product(l21, y)}
    assert set(second.edges) == {*product(x, l12), *product(l12, l22), *product(l22, y)}


def test_cross_edges_are_the_zeros_of_the_merged_network() -> None:
    analysis, made = planned("figure1")
    graph = unit_graph(analysis, made, by="class")
    ones = [{i.name: np.ones(i.part_shape(p), np.float32) for i in made.initializers} for p in range(2)]
    weight = merge(made, ones)["L2.weight"]
    rows, columns = analysis.fields("L2.weight")
    classes, nodes = decide(analysis, 2).classes, {node[-1]: node for node in graph if node[0] == "hidden"}
    for (o, i), value in np.ndenumerate(weight):
        edge = nodes[int(classes[columns.flat[i]])], nodes[int(classes[rows.flat[o]])]
        assert graph.edges[edge]["cross"] == (value == 0)


def test_figure_1_by_blocks() -> None:
    analysis, made = planned("figure1")
    graph = unit_graph(analysis, made)
    described = {(d["kind"], d["layer"], d["part"], d["size"]) for _, d in graph.nodes(data=True)}
    assert described == {
        ("input", "x", None, 3),
        *(("hidden", f"Gemm '{layer}'", part, 2) for layer in ("L1", "L2") for part in (0, 1)),
        ("output", "y", None, 2),
    }
    assert graph.number_of_edges() == 2 + 4 + 2
    assert sum(crosses for _, _, crosses in graph.edges(data="cross")) == 2


def test_the_classes_of_a_block_are_its_units() -> None:
    analysis, made = planned("residual")
    blocks, classes = unit_graph(analysis, made), unit_graph(analysis, made, by="class")
    owner = {node: node[:3] if node[0] == "hidden" else node[:2] for node in classes}
    for block, size in blocks.nodes(data="size"):
        assert size == sum(classes.nodes[node]["size"] for node in classes if owner[node] == block)
    edges = {(owner[a], owner[b], cross) for a, b, cross in classes.edges(data="cross") if owner[a] != owner[b]}
    assert edges == set(blocks.edges(data="cross"))


def test_groups_are_not_connected() -> None:
    analysis, made = planned("grouped")
    graph = unit_graph(analysis, made, by="class")
    layers = {layer: {n for n in graph if n[0] == "hidden" and n[1] == layer} for layer in (0, 1)}
    reached = graph.subgraph(layers[0] | layers[1]).to_undirected()
    assert sorted(len(c) for c in nx.connected_components(reached)) == [8, 8]
    assert all(len(set(graph.successors(n)) & layers[1]) == 4 for n in layers[0])


def test_a_narrow_layer_is_replicated() -> None:
    analysis, made = planned("concat", k=3)
    graph = unit_graph(analysis, made)
    (narrow,) = [d for _, d in graph.nodes(data=True) if d["kind"] == "replicated"]
    assert narrow == {"kind": "replicated", "part": None, "layer": "Conv 'right'", "size": 2}
    assert all(narrow in part_subgraph(graph, p).nodes.values() for p in range(3))


@pytest.mark.parametrize("name", [*GOLDEN, "light_squeezenet"])
def test_operator_graph(name: str) -> None:
    model = BUILDERS[name]()
    graph = operator_graph(model)
    operators = {n for n, kind in graph.nodes(data="kind") if kind == "operator"}
    assert len(operators) == len(model.graph.node)
    assert nx.is_directed_acyclic_graph(graph)
    assert all((a in operators) != (b in operators) for a, b in graph.edges)
    weights = {n[1] for n, given in graph.nodes(data="initializer") if given}
    assert weights == {t.name for t in model.graph.initializer}
    sources = {n[1] for n in graph if n not in operators and graph.in_degree(n) == 0}
    assert sources == weights | {value.name for value in model.graph.input}
    if name in GOLDEN and name != "unknown_op":
        assert all(shape is not None for n, shape in graph.nodes(data="shape") if n not in operators)


def test_operator_graph_of_figure_1() -> None:
    graph = operator_graph(load(figure1()))
    assert graph.nodes["tensor", "x"] == {"kind": "tensor", "name": "x", "shape": (None, 3), "initializer": False}
    assert graph.nodes["operator", 0] == {"kind": "operator", "op_type": "Gemm", "domain": "", "name": "L1"}
    path = [n[1] for n in nx.shortest_path(graph, ("tensor", "x"), ("tensor", "y"))]
    assert path == ["x", 0, "L1", 1, "relu1", 2, "L2", 3, "relu2", 4, "y"]


def test_operator_graph_knows_what_a_subgraph_captures() -> None:
    value = helper.make_tensor_value_info
    branches = {
        f"{key}_branch": helper.make_graph(
            [helper.make_node(op_type, ["x"], [key])], key, [], [value(key, onnx.TensorProto.FLOAT, [2])]
        )
        for key, op_type in (("then", "Relu"), ("else", "Neg"))
    }
    node = helper.make_node("If", ["condition"], ["y"], name="choice", **branches)
    inputs = [value("condition", onnx.TensorProto.BOOL, []), value("x", onnx.TensorProto.FLOAT, [2])]
    outputs = [value("y", onnx.TensorProto.FLOAT, [2])]
    model = helper.make_model(helper.make_graph([node], "conditional", inputs, outputs))
    graph = operator_graph(model)
    assert graph.edges[("tensor", "x"), ("operator", 0)]["captured"]
    assert not graph.edges[("tensor", "condition"), ("operator", 0)]["captured"]
    assert ("tensor", "then") not in graph
