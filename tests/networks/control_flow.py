"""If, Loop and Scan, each in a network of its own: linear, OPERATOR, linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import ModelProto, helper

from tests.networks.looping import (
    FEATURES,
    INT64,
    SIZE,
    elman,
    given,
    graph,
    integer,
    loop,
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
