"""If, Loop and Scan: what is inside them is divided like everything else, and verified."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import GraphProto, helper

from onnxpart import analyse, load, split
from onnxpart.inspection.explain import why
from onnxpart.verification.conditions import check_conditions
from tests.networks.control_flow import CASES, network
from tests.networks.looping import (
    FEATURES,
    FLOAT,
    SIZE,
    elman,
    given,
    graph,
    integer,
    loop,
    recurrent,
    scan,
    taken,
)
from tests.networks.net import Net
from tests.networks.verified import split_holds


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [2, 3])
def test_divided_and_verified(name: str, k: int) -> None:
    case = CASES[name]
    done = split(network(case), k)
    assert split_holds(done)
    assert done.plan.same_graph is not case.lanes
    assert not check_conditions(done.analysis, done.plan)
    for weight in case.divided.split():
        whole, part = done.plan.by_name[weight].shape, done.plan.by_name[weight].part_shape(0)
        hidden_axes = [axis for axis, size in enumerate(whole) if size == SIZE]
        assert [part[axis] for axis in hidden_axes] == [SIZE // k] * len(hidden_axes), weight
    for weight in case.undivided.split():
        assert done.plan.by_name[weight].part_shape(0)[0] == SIZE, weight
    assert bool(done.plan.blocked) is ("barrier" in name)
    assert all(entry.startswith("Det 'det'") for entry in done.plan.blocked)


@pytest.mark.parametrize("name", CASES)
def test_the_whole_is_the_network_again(name: str) -> None:
    """Where nothing exists once per part, what is read back is the same graph."""
    model = load(network(CASES[name]))
    done = split(model, 2)
    assert (load(done.whole).digest == model.digest) is done.plan.same_graph


@pytest.mark.parametrize("form", ["Scan", "Loop"])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_cell_written_out(cell: str, form: str, learned: bool) -> None:
    """Weights between hidden units shrink by the square of K, those of inputs and outputs by K."""
    gates = {"elman": 1, "gru": 3, "lstm": 4}[cell]
    between, into = ("u", "w") if cell == "elman" else ("wh", "wi")
    for k in (2, 3):
        done = split(recurrent(cell, form, learned=learned), k)
        assert split_holds(done)
        assert done.plan.same_graph
        assert not done.plan.blocked
        shapes = {i.name: i.part_shape(0) for i in done.plan.initializers}
        assert shapes[between] == (SIZE // k, gates * SIZE // k)
        assert shapes[into] == (FEATURES, gates * SIZE // k)
        assert shapes["out"] == (SIZE // k, 4)


def test_the_first_scan() -> None:
    """Opset 8 knows a batch of sequences, which the body doesn't see."""
    n = Net(("x", (2, 3, FEATURES)), opset=8)
    h = n.op("Tanh", n.op("MatMul", "x", n.random("before", FEATURES, SIZE)))

    def build(m: Net) -> list[str]:
        s = elman(m, "xt", "s", SIZE)
        return [s, m.op("Relu", s)]

    body = graph(n, "body", {"s": "state", "xt": "each"}, build, (SIZE,))
    first = n.array("first", np.zeros((2, SIZE), np.float32))
    last, each = n.ops("Scan", "", first, h, count=2, name="scan", body=body, num_scan_inputs=1)
    y = n.op("MatMul", each, n.random("out", SIZE, 3))
    done = split(n.model(y, n.linear(last, SIZE, 3, name="z"), shape={y: (2, 3, 3), "z": (2, 3)}), 2)
    assert split_holds(done)
    assert done.plan.by_name["u"].part_shape(0) == (SIZE // 2, SIZE // 2)


def test_a_convolutional_cell() -> None:
    n = Net(("x", (3, "N", 2, 4, 4)))
    batch = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2), n.ints(0))
    first = n.op("ConstantOfShape", n.op("Concat", batch, n.ints(SIZE, 4, 4), axis=0))

    def step(m: Net, x: str, s: list[str]) -> tuple[list[str], list[str]]:
        both = m.op("Add", m.conv(x, 2, SIZE, kernel=3, name="a"), m.conv(s[0], SIZE, SIZE, kernel=3, name="b"))
        return [m.op("Tanh", both)], []

    h = n.op("Flatten", n.op("GlobalAveragePool", scan(n, [first], step)[0]))
    done = split(n.model(n.linear(h, SIZE, 3, name="y"), shape=("N", 3)), 2)
    assert split_holds(done)
    assert done.plan.by_name["b.weight"].part_shape(0) == (3, 3, 3, 3)


@pytest.mark.parametrize("function", ["Identity", "Softmax"])
def test_contributions_meet_inside(function: str) -> None:
    """Mean results leave a branch as the mean of the parts', and the network stays as it is; others are averaged."""
    n = Net(("x", ("N", FEATURES)))
    h = n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before"))

    def branch(name: str) -> Callable[[Net], list[str]]:
        return lambda m: [m.op(function, m.linear(h, SIZE, 3, name=name))]

    (y,) = taken(n, given(n), branch("a"), branch("b"))
    done = split(n.model(y, shape=("N", 3)), 2)
    assert split_holds(done)
    assert done.plan.same_graph is (function == "Identity")


def test_contributions_that_come_back() -> None:
    """What is fed back differs from part to part, so each has a loop of its own."""
    n = Net(("x", ("N", FEATURES)))
    h = n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before"))

    def step(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        after = m.op("Tanh", m.op("Add", m.linear(s[0], SIZE, SIZE, name="a"), m.linear(s[1], 3, SIZE, name="back")))
        y = m.linear(after, SIZE, 3, name="out")
        return [after, y], [m.op("Identity", y)]

    first = n.op("Mul", n.op("Slice", "x", n.ints(0), n.ints(3), n.ints(1)), n.number(0))
    _, last, each = loop(n, integer(n, 3), [h, first], step)
    done = split(n.model(last, each, shape={last: ("N", 3), each: (3, "N", 3)}), 2)
    assert split_holds(done)
    assert not done.plan.same_graph
    assert set(done.plan.mean) == {last, each}
    assert done.plan.by_name["back.weight"].part_shape(0) == (SIZE // 2, 3)


def test_names_that_come_again_inside() -> None:
    """Both branches may use the same names, and names of what is inside are told apart outside."""
    n = Net(("x", ("N", FEATURES)))
    h = n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before"))

    def branch(function: str) -> GraphProto:
        inner = Net(opset=n.opset)
        inner.op(function, inner.op("MatMul", h, inner.random("w", SIZE, SIZE), name="product"), name="made")
        made = [helper.make_tensor_value_info("made", FLOAT, None)]
        return helper.make_graph(inner.nodes, "branch", [], made, list(inner.initializers.values()))

    chosen = n.op("If", given(n), name="if", then_branch=branch("Relu"), else_branch=branch("Tanh"))
    y = n.linear(chosen, SIZE, 3, name="y")
    done = split(n.model(y, shape=("N", 3)), 2)
    assert split_holds(done)
    assert done.plan.by_name["w"].part_shape(0) == done.plan.by_name["w_1"].part_shape(0) == (3, 3)


def test_why_names_the_loop() -> None:
    analysis = analyse(load(network(CASES["Loop: a barrier in the body"])))
    (axis, _) = why(analysis, "before.weight", 2).axes or (None, None)
    assert axis is not None
    assert axis.cause is not None
    assert axis.cause.node == "Det 'det'"
    assert any(step.node == "Loop 'loop'" for step in axis.chain)


def test_every_part_takes_the_same_branch() -> None:
    """Units that decide which branch is taken aren't divided between parts that would take different ones."""
    done = split(network(CASES["If: a condition on units"]), 2)
    assert "ReduceSum" in done.plan.duplicated[0]


def test_what_only_unread_nodes_in_a_branch_read_is_gone() -> None:
    n = Net(("x", ("N", 3)))
    h, unread = n.linear("x", 3, SIZE, name="stem"), n.op("Det", n.random("square", 2, 2), name="unread")

    def then(m: Net) -> list[str]:
        m.op("Add", h, unread)
        return [m.op("Relu", h)]

    (both,) = taken(n, given(n), then, lambda m: [m.op("Neg", h)])
    model = load(n.model(n.linear(both, SIZE, 2, name="y"), shape=("N", 2)))
    assert "unread" not in {node.name for node in model.flat.nodes}
    assert split_holds(split(model, 2))
