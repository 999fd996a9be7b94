"""Local functions within graphs, and graphs within local functions: inlined, divided, verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from onnx import FunctionProto, ModelProto, helper

from onnxpart import split, verify
from tests.networks.looping import BOOL, FEATURES, FLOAT, INT64, SIZE, given, integer, loop, taken
from tests.networks.net import Net

OWN = "own"
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(OWN, 1)]


def function(name: str, inputs: Sequence[str], *nodes: object) -> FunctionProto:
    return helper.make_function(OWN, name, inputs, ["r"], nodes, OPSETS)


def swish() -> FunctionProto:
    nodes = helper.make_node("Sigmoid", ["v"], ["s"]), helper.make_node("Mul", ["v", "s"], ["r"])
    return function("Swish", ["v"], *nodes)


def repeat() -> FunctionProto:
    """A function that holds a loop, whose body captures its weight and calls another function."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["z", "w"], ["p"]),
            helper.make_node("Swish", ["p"], ["q"], domain=OWN),
            helper.make_node("Identity", ["g"], ["g2"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("t", INT64, []),
            helper.make_tensor_value_info("g", BOOL, []),
            helper.make_tensor_value_info("z", FLOAT, None),
        ],
        [helper.make_tensor_value_info("g2", BOOL, []), helper.make_tensor_value_info("q", FLOAT, None)],
    )
    return function("Repeat", ["v", "w", "trips"], helper.make_node("Loop", ["trips", "", "v"], ["r"], body=body))


def in_a_body(n: Net, h: str) -> str:
    def step(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        return [m.op("Swish", m.op("MatMul", s[0], m.random("w", SIZE, SIZE)), domain=OWN)], []

    return loop(n, integer(n, 3), [h], step)[0]


def in_branches(n: Net, h: str) -> str:
    def then(m: Net) -> list[str]:
        return [m.op("Swish", m.op("MatMul", h, m.random("w", SIZE, SIZE)), domain=OWN)]

    return taken(n, given(n), then, lambda m: [m.op("Swish", h, domain=OWN)])[0]


def around_a_body(n: Net, h: str) -> str:
    """The same function twice, with the same weight."""
    w, trips = n.random("w", SIZE, SIZE, spread=1.0), integer(n, 2)
    return n.op("Repeat", n.op("Repeat", h, w, trips, domain=OWN), w, trips, domain=OWN)


@pytest.mark.parametrize("build", [in_a_body, in_branches, around_a_body])
def test_functions_and_graphs(build: Callable[[Net, str], str]) -> None:
    n = Net(("x", ("N", FEATURES)))
    h = build(n, n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before")))
    y = helper.make_tensor_value_info(n.linear(h, SIZE, 3, name="y"), FLOAT, ["N", 3])
    made = helper.make_graph(n.nodes, "net", n.inputs, [y], list(n.initializers.values()))
    model: ModelProto = helper.make_model(made, opset_imports=OPSETS, ir_version=8, functions=[swish(), repeat()])
    done = split(model, 2)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
    assert not done.plan.blocked
    assert done.plan.by_name["w"].part_shape(0) == (SIZE // 2, SIZE // 2)
