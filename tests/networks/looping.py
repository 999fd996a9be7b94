"""Networks with If, Loop and Scan, for the tests: cells written out, branches, and how their bodies are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from tests.networks.net import Net

FEATURES, SIZE = 5, 6
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Inner = Callable[[Net], Sequence[str]]
Step = Callable[[Net, str, list[str]], tuple[list[str], list[str]]]
Dims = Sequence[int | str]


def graph(n: Net, name: str, inputs: Mapping[str, str], build: Inner, dims: Dims | None = None) -> GraphProto:
    """The graph inside a node: `build` adds its nodes and returns its outputs; initializers go to the outer graph.

    :param inputs: what each is: a `state` or one of `each`, both floats of the shape `dims`; the `count` of
        iterations; or whether it is `going` on, which the first output then says too.
    """
    before, n.nodes = n.nodes, [*n.nodes]  # names stay unique
    start = len(before)
    outputs = build(n)
    nodes, n.nodes = n.nodes[start:], before
    n.reserved.update(name for node in nodes for name in (node.name, *node.output))
    kinds = [FLOAT] * len(outputs)
    if "going" in inputs.values():
        kinds[0] = BOOL
    return helper.make_graph(
        nodes,
        name,
        [_value(i, {"count": INT64, "going": BOOL}.get(what, FLOAT), dims) for i, what in inputs.items()],
        [_value(o, kind, dims) for o, kind in zip(outputs, kinds, strict=True)],
    )


def _value(name: str, kind: int, dims: Dims | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims if kind == FLOAT else ())


def given(n: Net, name: str = "flag") -> str:
    """A boolean input."""
    n.inputs.append(helper.make_tensor_value_info(name, BOOL, []))
    return name


def integer(n: Net, value: int) -> str:
    return n.array("integer", np.asarray(value, np.int64))


def elman(n: Net, x: str, h: str, features: int = FEATURES, size: int = SIZE) -> str:
    """x ``[N, features]``, h ``[N, size]`` to the next h."""
    both = n.op("Add", n.op("MatMul", x, n.random("w", features, size)), n.op("MatMul", h, n.random("u", size, size)))
    return n.op("Tanh", n.op("Add", both, n.random("b", size)))


def gru(n: Net, x: str, h: str, features: int = FEATURES, size: int = SIZE) -> str:
    """A gated cell whose gates are cut out of one product, as they are written by hand."""
    gi = n.op("Add", n.op("MatMul", x, n.random("wi", features, 3 * size)), n.random("bi", 3 * size))
    gh = n.op("Add", n.op("MatMul", h, n.random("wh", size, 3 * size)), n.random("bh", 3 * size))
    ir, iz, i_n = n.ops("Split", gi, n.ints(size, size, size), count=3, axis=1)
    hr, hz, hn = n.ops("Split", gh, n.ints(size, size, size), count=3, axis=1)
    r, z = n.op("Sigmoid", n.op("Add", ir, hr)), n.op("Sigmoid", n.op("Add", iz, hz))
    new = n.op("Tanh", n.op("Add", i_n, n.op("Mul", r, hn)))
    return n.op("Add", n.op("Mul", n.op("Sub", n.number(1), z), new), n.op("Mul", z, h))


def lstm(n: Net, x: str, h: str, c: str, features: int = FEATURES, size: int = SIZE) -> tuple[str, str]:
    """The next h and c."""
    g = n.op(
        "Add", n.op("MatMul", x, n.random("wi", features, 4 * size)), n.op("MatMul", h, n.random("wh", size, 4 * size))
    )
    g = n.op("Add", g, n.random("b", 4 * size))
    i, f, o, new = n.ops("Split", g, n.ints(*[size] * 4), count=4, axis=1)
    kept = n.op("Mul", n.op("Sigmoid", f), c)
    cell = n.op("Add", kept, n.op("Mul", n.op("Sigmoid", i), n.op("Tanh", new)))
    return n.op("Mul", n.op("Sigmoid", o), n.op("Tanh", cell)), cell


def zeros(n: Net, size: int = SIZE) -> str:
    """A first state ``[N, size]`` for x ``[T, N, features]``."""
    batch = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2), n.ints(0))
    return n.op("ConstantOfShape", n.op("Concat", batch, n.ints(size), axis=0))


def length(n: Net) -> str:
    """How many iterations x has."""
    return n.op("Gather", n.op("Shape", "x"), n.array("zero", np.asarray(0, np.int64)))


def true(n: Net) -> str:
    return n.array("true", np.asarray(True))


def scan(n: Net, states: Sequence[str], step: Step) -> list[str]:
    """A Scan over x; `step` takes one x and the states, and returns the next ones and what is collected."""
    names = [f"s{i}" for i in range(len(states))]

    def build(m: Net) -> list[str]:
        after, collected = step(m, "xt", names)
        return [*after, *collected]

    inner = graph(n, "body", {**dict.fromkeys(names, "state"), "xt": "each"}, build)
    return n.ops("Scan", *states, "x", count=len(inner.output), name="scan", body=inner, num_scan_inputs=1)


def loop(n: Net, trips: str, states: Sequence[str], step: Step, going: Callable[[Net], str] = true) -> list[str]:
    """A Loop; `step` takes the iteration's number and the states, and returns the next ones and what is collected."""
    names = [f"s{i}" for i in range(len(states))]

    def build(m: Net) -> list[str]:
        after, collected = step(m, "t", names)
        return [m.op("Identity", going(m)), *after, *collected]

    inner = graph(n, "body", {"t": "count", "going": "going", **dict.fromkeys(names, "state")}, build)
    return n.ops("Loop", trips, "", *states, count=len(inner.output) - 1, name="loop", body=inner)


def taken(n: Net, condition: str, then: Inner, otherwise: Inner, count: int = 1) -> list[str]:
    """An If."""
    branches = {"then_branch": graph(n, "then", {}, then), "else_branch": graph(n, "else", {}, otherwise)}
    return n.ops("If", condition, count=count, name="if", **branches)


def recurrent(cell: str, form: str, *, opset: int = 17, learned: bool = False, each_inside: bool = False) -> ModelProto:
    """x ``[T, N, 5]`` through a cell, as a Scan or a Loop, to logits of all steps and of the last one.

    `learned`: the first states are. `each_inside`: the logits of all steps are computed in the body.
    """
    n = Net(("x", ("T", "N", FEATURES)), opset=opset)
    count = 2 if cell == "lstm" else 1

    def step(m: Net, x: str, states: list[str]) -> tuple[list[str], list[str]]:
        made = [*lstm(m, x, states[0], states[1])] if cell == "lstm" else [CELLS[cell](m, x, *states)]
        return made, [m.op("MatMul", made[0], m.random("out", SIZE, 4)) if each_inside else m.op("Identity", made[0])]

    first = [n.op("Add", zeros(n), n.random(f"first{i}", 1, SIZE)) if learned else zeros(n) for i in range(count)]
    if form == "Scan":
        found = scan(n, first, step)
    else:
        found = loop(n, length(n), first, lambda m, t, s: step(m, m.op("Gather", "x", t), s))
    each = found[-1] if each_inside else n.op("MatMul", found[-1], n.random("out", SIZE, 4))
    return n.model(each, n.linear(found[0], SIZE, 3, name="last"), shape={each: ("T", "N", 4), "last": ("N", 3)})


CELLS: dict[str, Callable[..., str]] = {"elman": elman, "gru": gru}
