"""If, Loop and Scan: what is inside them is divided like everything else, and verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, helper

from onnxpart import Split, analyse, load, split, verify
from onnxpart.inspection.explain import why
from onnxpart.verification.conditions import check_conditions
from tests.networks.looping import (
    FEATURES,
    FLOAT,
    INT64,
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


@dataclass(frozen=True)
class Case:
    """A network, the initializers that are divided along all their hidden axes and those that aren't.

    `lanes`: the operator must exist once per part.
    """

    build: Callable[[Net, str], str]
    divided: str
    undivided: str = ""
    lanes: bool = False
    opset: int = 17


def hidden(n: Net, h: str, name: str) -> str:
    """h ``[N, 6]`` through a layer of 6 units."""
    return n.op("Tanh", n.linear(h, SIZE, SIZE, name=name))


def either(n: Net, h: str) -> str:
    return taken(
        n, given(n), lambda m: [hidden(m, h, "a")], lambda m: [m.op("Relu", m.linear(h, SIZE, SIZE, name="b"))]
    )[0]


def handed_on(n: Net, h: str) -> str:
    return taken(n, given(n), lambda m: [m.op("Identity", h)], lambda m: [hidden(m, h, "a")])[0]


def or_zeros(n: Net, h: str) -> str:
    """One branch gives what every part has: it is cut to the part's share."""
    zeros = taken(n, given(n), lambda m: [m.op("ConstantOfShape", m.op("Shape", h))], lambda m: [hidden(m, h, "a")])[0]
    return n.op("Add", h, zeros)


def longer(n: Net, h: str) -> str:
    """One branch gives more rows than the other: what both give is in every part, what follows is divided."""
    rows = taken(n, given(n), lambda m: [hidden(m, h, "a")], lambda m: [m.op("Concat", h, h, axis=0)])[0]
    return hidden(n, n.op("Add", h, n.op("ReduceMean", rows, axes=[0], keepdims=1)), "behind")


def by_units(n: Net, h: str) -> str:
    """The condition depends on what every part computes for itself."""
    condition = n.op("Greater", n.op("ReduceSum", h, keepdims=0), n.number(0))
    return taken(n, condition, lambda m: [hidden(m, h, "a")], lambda m: [m.op("Neg", h)])[0]


def normalised(n: Net, h: str) -> str:
    def norm(m: Net) -> list[str]:
        return [m.op("LayerNormalization", m.linear(h, SIZE, SIZE, name="a"), m.positive("scale", SIZE))]

    return hidden(n, taken(n, given(n), norm, lambda m: [hidden(m, h, "b")])[0], "behind")


def two_results(n: Net, h: str) -> str:
    a, b = taken(
        n, given(n), lambda m: [m.op("Relu", h), hidden(m, h, "a")], lambda m: [hidden(m, h, "b"), m.op("Neg", h)], 2
    )
    return n.op("Mul", n.op("Sigmoid", a), b)


def with_barrier(n: Net, h: str) -> str:
    def det(m: Net) -> list[str]:
        return [m.op("Add", h, m.op("Det", m.op("MatMul", m.op("Transpose", h), h), name="det"))]

    return hidden(n, taken(n, given(n), det, lambda m: [m.op("Relu", h)])[0], "behind")


def nested_branches(n: Net, h: str) -> str:
    first, second = given(n), given(n, "second")

    def inner(m: Net) -> list[str]:
        return taken(m, second, lambda q: [hidden(q, h, "a")], lambda q: [q.op("Neg", h)])

    return taken(n, first, inner, lambda m: [hidden(m, h, "b")])[0]


def repeated(n: Net, h: str) -> str:
    return loop(n, integer(n, 3), [h], lambda m, _, s: ([hidden(m, s[0], "a")], []))[0]


def as_often_as_asked(n: Net, h: str) -> str:
    n.inputs.append(helper.make_tensor_value_info("trips", INT64, []))
    h, each = loop(n, "trips", [h], lambda m, _, s: ([hidden(m, s[0], "a")], [m.op("Neg", s[0])]))
    return n.op("Add", h, n.op("ReduceMean", each, axes=[0], keepdims=0))


def normalised_state(n: Net, h: str) -> str:
    def body(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        return [m.op("LayerNormalization", m.linear(s[0], SIZE, SIZE, name="a"), m.positive("scale", SIZE))], []

    return hidden(n, loop(n, integer(n, 3), [h], body)[0], "behind")


def until_told(n: Net, h: str) -> str:
    """It ends when the units say so."""

    def going(m: Net) -> str:
        return m.op("Less", m.op("ReduceSum", m.op("Abs", "s0"), keepdims=0), m.number(1000))

    return loop(n, integer(n, 3), [h], lambda m, _, s: ([hidden(m, s[0], "a")], []), going)[0]


def counting(n: Net, h: str) -> str:
    """A counter is the same in every part, and what ends the loop."""

    def body(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        return [m.op("Add", hidden(m, s[0], "a"), s[1]), m.op("Add", s[1], m.number(1))], []

    h, count = loop(n, "", [h, n.number(0)], body, lambda m: m.op("Less", "s1", m.number(2)))
    return n.op("Add", h, count)


def growing(n: Net, h: str) -> str:
    """Each iteration adds what it makes to what was there."""

    def body(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        new = hidden(m, m.op("ReduceMean", s[0], axes=[1], keepdims=0), "a")
        return [m.op("Concat", s[0], m.op("Unsqueeze", new, m.ints(1)), axis=1)], []

    (cache,) = loop(n, integer(n, 3), [n.op("Unsqueeze", h, n.ints(1))], body)
    return n.op("ReduceMean", cache, axes=[1], keepdims=0)


def growing_units(n: Net, h: str) -> str:
    (wide,) = loop(n, integer(n, 2), [h], lambda m, _, s: ([m.op("Concat", s[0], h, axis=1)], []))
    return n.op("Add", hidden(n, h, "behind"), n.op("ReduceMean", wide, axes=[1], keepdims=1))


def nested_loops(n: Net, h: str) -> str:
    def within(q: Net) -> list[str]:
        return [q.op("Identity", "going2"), q.op("Tanh", q.op("Add", q.linear("z", SIZE, SIZE, name="b"), h))]

    def body(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        inner = graph(m, "inner", {"t2": "count", "going2": "going", "z": "state"}, within)
        return [hidden(m, m.op("Loop", integer(m, 2), "", s[0], name="inner", body=inner), "a")], []

    return loop(n, integer(n, 3), [h], body)[0]


def branch_in_loop(n: Net, h: str) -> str:
    def body(m: Net, t: str, s: list[str]) -> tuple[list[str], list[str]]:
        even = m.op("Equal", m.op("Mod", t, integer(m, 2)), integer(m, 0))
        return taken(
            m, even, lambda q: [hidden(q, s[0], "a")], lambda q: [q.op("Relu", q.linear(s[0], SIZE, SIZE, name="b"))]
        ), []

    return loop(n, integer(n, 3), [h], body)[0]


def barrier_in_loop(n: Net, h: str) -> str:
    def body(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        det = m.op("Det", m.op("MatMul", m.op("Transpose", s[0]), s[0]), name="det")
        return [m.op("Tanh", m.op("Add", m.linear(s[0], SIZE, SIZE, name="a"), det))], []

    return hidden(n, loop(n, integer(n, 2), [h], body)[0], "behind")


def stacked_layers(n: Net, h: str) -> str:
    """Layers of one size, their weights in one tensor, which a Scan takes apart."""
    weights, biases = n.random("a.weight", 3, SIZE, SIZE), n.random("a.bias", 3, SIZE)
    inputs = {"s": "state", "w": "each", "b": "each"}
    body = graph(n, "body", inputs, lambda m: [m.op("Tanh", m.op("Add", m.op("MatMul", "s", "w"), "b"))])
    return n.op("Scan", h, weights, biases, name="scan", body=body, num_scan_inputs=2)


def looked_up_layers(n: Net, h: str) -> str:
    weights, biases = n.random("a.weight", 3, SIZE, SIZE), n.random("a.bias", 3, SIZE)

    def body(m: Net, t: str, s: list[str]) -> tuple[list[str], list[str]]:
        product = m.op("MatMul", s[0], m.op("Gather", weights, t))
        return [m.op("Tanh", m.op("Add", product, m.op("Gather", biases, t)))], []

    return loop(n, integer(n, 3), [h], body)[0]


def backwards(n: Net, h: str) -> str:
    """Along another axis, from its end."""

    def build(m: Net) -> list[str]:
        s = elman(m, "part", "s", SIZE)
        return [s, m.op("Relu", s)]

    rows = n.op("Reshape", n.linear(h, SIZE, 3 * SIZE, name="a"), n.ints(-1, 3, SIZE))
    body = graph(n, "body", {"s": "state", "part": "each"}, build)
    settings = {
        "scan_input_axes": [-2],
        "scan_input_directions": [1],
        "scan_output_axes": [1],
        "scan_output_directions": [1],
    }
    last, each = n.ops("Scan", h, rows, count=2, name="scan", body=body, num_scan_inputs=1, **settings)
    return n.op("Add", last, n.op("ReduceMean", each, axes=[1], keepdims=0))


CASES = {
    "If": Case(either, "a.weight b.weight"),
    "If: opset 11": Case(either, "a.weight b.weight", opset=11),
    "If: opset 25": Case(either, "a.weight b.weight", opset=25),
    "If: a branch hands on": Case(handed_on, "a.weight before.weight"),
    "If: a branch of zeros": Case(or_zeros, "a.weight before.weight"),
    "If: a longer branch": Case(longer, "behind.bias", "before.weight a.weight", lanes=True),
    "If: a condition on units": Case(by_units, "a.weight", lanes=True),
    "If: a mix in a branch": Case(normalised, "a.weight b.weight behind.weight", lanes=True),
    "If: two results": Case(two_results, "a.weight b.weight"),
    "If: a barrier in a branch": Case(with_barrier, "behind.bias", "before.weight", lanes=True),
    "If: within If": Case(nested_branches, "a.weight b.weight"),
    "Loop": Case(repeated, "a.weight before.weight"),
    "Loop: opset 8": Case(repeated, "a.weight before.weight", opset=8),
    "Loop: trips at run time": Case(as_often_as_asked, "a.weight"),
    "Loop: a mix in the body": Case(normalised_state, "a.weight behind.weight", lanes=True),
    "Loop: ended by units": Case(until_told, "a.weight", lanes=True),
    "Loop: a counter": Case(counting, "a.weight before.weight"),
    "Loop: a state that grows": Case(growing, "a.weight before.weight"),
    "Loop: units that grow": Case(growing_units, "behind.bias", "before.weight", lanes=True),
    "Loop: within Loop": Case(nested_loops, "a.weight b.weight"),
    "Loop: If within": Case(branch_in_loop, "a.weight b.weight"),
    "Loop: a barrier in the body": Case(barrier_in_loop, "behind.bias", "a.weight before.weight", lanes=True),
    "Loop: layers looked up": Case(looked_up_layers, "a.weight"),
    "Scan: stacked layers": Case(stacked_layers, "a.weight"),
    "Scan: axes and directions": Case(backwards, "before.weight w u"),
}


def network(case: Case) -> ModelProto:
    """x ``[N, 5]``, a layer of 6 units, the case, 3 outputs."""
    n = Net(("x", ("N", FEATURES)), opset=case.opset)
    h = case.build(n, n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before")))
    return n.model(n.linear(h, SIZE, 3, name="y"), shape=("N", 3))


def holds(done: Split) -> bool:
    return verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [2, 3])
def test_divided_and_verified(name: str, k: int) -> None:
    case = CASES[name]
    done = split(network(case), k)
    assert holds(done)
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
        assert holds(done)
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
    assert holds(done)
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
    assert holds(done)
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
    assert holds(done)
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
    assert holds(done)
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
    assert holds(done)
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
    assert holds(split(model, 2))
