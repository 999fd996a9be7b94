"""Graphs of absurd sizes are refused before memory is asked for; long ones meet no limit of recursion."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.parser import parse_graph

from models.builder import GraphBuilder
from onnxpart import ModelError, analyse, load, plan
from onnxpart.analysis import labels
from tests.networks.command import run


def network(graph: str, *weights: TensorProto) -> ModelProto:
    """A model of opset 17 in ONNX's text form, with its initializers."""
    parsed = parse_graph(graph)
    parsed.initializer.extend(weights)
    return onnx.helper.make_model(parsed, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def ones(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def refusal(model: ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        analyse(load(model))
    return str(caught.value)


def test_axis_of_an_initializer() -> None:
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[2**31, 8])
    model = network("g (int64[4] i, float[8] x) => (float[4, 8] y) { e = Gather(table, i) y = Add(e, x) }", table)
    assert refusal(model) == (
        "g: initializer 'table' is too large (axis 0 is 2,147,483,648 long, and at most 134,217,728 units are told "
        "apart); use --outputs to cut the network off before what reads it."
    )


@pytest.mark.parametrize(
    ("place", "shape", "node", "axis"),
    [
        ((16384, 16384), (1, 2**31), "Reshape(h, n)", "axis 1 is 2,147,483,648"),
        ((2**25, 1), (1, 8, 2**26, 1), "Concat <axis = 2> (h, k)", "axis 2 is 67,108,864"),
        ((2, 2), (1, 2**29, 2, 2), "Tile(h, n)", "axis 1 is 536,870,912"),
    ],
    ids=["reshape", "concat", "tile"],
)
def test_places_of_units(place: tuple[int, int], shape: tuple[int, ...], node: str, axis: str) -> None:
    graph = f"""g (float[1, 4, {place[0]}, {place[1]}] x) => (float{list(shape)} y)
        {{ h = Conv(x, w) k = Conv(x, v) [move] y = {node} }}"""
    numbers = {"Reshape": (1, -1), "Tile": (1, 2**26, 1, 1)}.get(node.split("(")[0], ())
    model = network(graph, ones("w", 8, 4, 1, 1), ones("v", 8, 4, 1, 1), integers("n", *numbers))
    assert refusal(model) == (
        f"g: the output of {model.graph.node[-1].op_type} 'move' is too large ({axis} long, and at most 134,217,728 "
        "units are told apart); use --outputs to cut the network off before it."
    )


def test_ties_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sum ties all units of its operands again, whatever memory that takes."""
    sums = " ".join(f"[sum{i}] s{i + 1} = Add(s{i}, k)" for i in range(40))
    graph = f"g (float[1, 4] x) => (float[1, 30] s40) {{ s0 = MatMul(x, w) k = MatMul(x, v) {sums} }}"
    monkeypatch.setattr(labels, "MAX_LABELS", 200)
    assert refusal(network(graph, ones("w", 4, 30), ones("v", 4, 30))) == (
        "g: the output of Add 'sum6' is too large (axis 1 is 30 long, and at most 200 ties of units are kept); use "
        "--outputs to cut the network off before it."
    )


@pytest.mark.parametrize("turned", [False, True], ids=["sorted", "unsorted"])
def test_long_chain(tmp_path: Path, turned: bool) -> None:
    length = 3 * sys.getrecursionlimit()
    g = GraphBuilder("chain")
    h = g.linear("first", g.input("x", 1, 4), (4, 4))
    for i in range(length):
        h = g.relu(f"relu{i}", h)
    model = g.build({g.linear("last", h, (4, 4)): (1, 4)})
    if turned:
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(reversed(nodes))
    analysis = analyse(load(model))
    assert len(analysis.ops) == length + 2
    assert plan(analysis, 2).layers[0].parts == (2, 2)
    onnx.save_model(model, tmp_path / "chain.onnx")
    run("inspect", tmp_path / "chain.onnx", "-k", 2)
