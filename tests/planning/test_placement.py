"""The modes of operators, and where contributions meet, on networks small enough to tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import ModelProto

from onnxpart import analyse, load
from onnxpart.planning.partition import Partition
from onnxpart.planning.planner import partition
from tests.networks.net import Net

WIDTH = 4
Body = Callable[[Net, str], str]


def network(body: Body, output: str = "Sigmoid") -> ModelProto:
    """A layer, a body on [N, 4], a layer, and an output function."""
    n = Net(("x", ("N", 3)))
    h = body(n, n.op("Relu", n.linear("x", 3, WIDTH, name="in"), name="act"))
    return n.model(n.op(output, n.linear(h, WIDTH, 2, name="out"), name="y"), shape=("N", 2))


def plain(n: Net, h: str) -> str:
    """Nothing but an activation."""
    return n.op("Tanh", h, name="tanh")


def mixed(n: Net, h: str) -> str:
    return n.op("LayerNormalization", h, n.positive("scale", WIDTH), n.random("shift", WIDTH), name="mix")


def replicated(n: Net, h: str) -> str:
    """A layer of one unit, which can't be divided, and a layer behind it."""
    return n.linear(n.op("Relu", n.linear(h, WIDTH, 1, name="narrow"), name="one"), 1, WIDTH, name="wide")


def modes(made: Partition) -> dict[str, str]:
    """Mode of each node by its name."""
    return {op.node.name: mode for op, mode in zip(made.analysis.ops, made.placement.modes, strict=True)}


def placed(body: Body, k: int = 2) -> Partition:
    return partition(analyse(load(network(body))), k)


def test_all_stands_once_where_nothing_mixes() -> None:
    made = placed(plain)
    assert modes(made) == {
        "in": "joint", "act": "joint", "tanh": "joint", "out": "after_reduction", "y": "after_reduction",
    }  # fmt: skip
    assert [made.analysis.ops[i].node.name for i in made.placement.reductions] == ["out"]
    assert made.placement.mean == {"out"}
    assert made.placement.scaling.scaled == {"out.weight"}
    assert not made.placement.unscaled
    assert made.plan.mean == ("out",)
    assert made.plan.same_graph


def test_a_mix_stands_per_part_and_is_joined_behind() -> None:
    made = placed(mixed)
    assert modes(made) == {
        "in": "joint", "act": "joint", "mix": "per_part", "out": "after_reduction", "y": "after_reduction",
    }  # fmt: skip
    assert made.per_part("mix")
    assert not made.per_part("act")
    assert not made.per_part("x")
    assert not made.plan.same_graph


def test_what_follows_a_replicated_unit_stands_per_part() -> None:
    made = placed(replicated)
    found = modes(made)
    assert found["one"] == found["wide"] == "per_part"
    assert found["in"] == "joint"
    assert found["out"] == "after_reduction"


@pytest.mark.parametrize("body", [plain, mixed, replicated])
def test_one_part_is_the_whole(body: Body) -> None:
    made = placed(body, 1)
    assert "per_part" not in made.placement.modes
    assert made.plan.same_graph


def test_a_weight_that_is_read_elsewhere_too_is_not_scaled() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"), name="act")
    w = n.random("shared", WIDTH, 2)
    y = n.op("MatMul", h, w, name="meet")
    z = n.op("Sigmoid", n.op("MatMul", n.op("Tanh", h, name="tanh"), n.op("Exp", w, name="exp"), name="other"))
    made = partition(analyse(load(n.model(n.op("Sigmoid", y, name="y"), z))), 2)
    index = next(op.index for op in made.analysis.ops if op.node.name == "meet")
    assert index in made.placement.unscaled
    assert modes(made)["meet"] == "per_part"
    assert "shared" not in made.placement.scaling.scaled


def test_a_weight_that_serves_a_layer_on_the_way_too_is_not_scaled() -> None:
    """Contributions can't meet at its first reader, whose result a hidden layer reads; so not at its second."""
    n = Net(("x", ("N", 3)))
    w = n.random("shared", WIDTH, 2)
    first = n.op("MatMul", n.op("Relu", n.linear("x", 3, WIDTH, name="in"), name="act"), w, name="first")
    h = n.op("Relu", n.linear(first, 2, WIDTH, name="inner"), name="relu")
    made = partition(analyse(load(n.model(n.op("MatMul", h, w, name="second"), shape=("N", 2)))), 2)
    found = modes(made)
    assert found["first"] == found["second"] == "per_part"
    assert found["act"] == "joint"
    assert not made.placement.reductions
