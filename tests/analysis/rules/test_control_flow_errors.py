"""Graphs inside graphs that are wrong: one clear error, whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpart import ModelError, PartitionError, analyse, load, split, verify
from tests.networks.looping import FEATURES, SIZE, given, graph, integer, loop, recurrent, taken
from tests.networks.net import Net

Change = Callable[[ModelProto], None]


def before() -> tuple[Net, str]:
    n = Net(("x", ("N", FEATURES)))
    return n, n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before"))


def ended(n: Net, h: str) -> ModelProto:
    """Unchecked, for what is wrong in it."""
    y = helper.make_tensor_value_info(n.linear(h, SIZE, 3, name="y"), TensorProto.FLOAT, ["N", 3])
    made = helper.make_graph(n.nodes, "net", n.inputs, [y], list(n.initializers.values()))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", n.opset)], ir_version=8)


def looped() -> ModelProto:
    n, h = before()

    def step(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        return [m.op("Tanh", m.linear(s[0], SIZE, SIZE, name="a"), name="next")], []

    return ended(n, loop(n, integer(n, 2), [h], step)[0])


def branched() -> ModelProto:
    n, h = before()
    return ended(n, taken(n, given(n), lambda m: [m.op("Relu", h)], lambda m: [m.op("Neg", h)])[0])


def scanned() -> ModelProto:
    return recurrent("elman", "Scan")


def node(model: ModelProto, op_type: str) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == op_type)


def inside(model: ModelProto, op_type: str, i: int = 0) -> GraphProto:
    return [a.g for a in node(model, op_type).attribute if a.HasField("g")][i]


def reads(name: str) -> Change:
    """The body reads another value."""

    def change(model: ModelProto) -> None:
        inside(model, "Loop").node[0].input[0] = name

    return change


def reads_what_follows(model: ModelProto) -> None:
    reads("later")(model)
    model.graph.node.append(helper.make_node("Tanh", [node(model, "Loop").output[0]], ["later"]))


def defines_twice(name: str) -> Change:
    def change(model: ModelProto) -> None:
        inside(model, "Loop").node.append(helper.make_node("Neg", ["s0"], [name]))

    return change


def loses(op_type: str, field: str, at: int, i: int = 0) -> Change:
    """A graph inside has an entry less."""

    def change(model: ModelProto) -> None:
        del getattr(inside(model, op_type, i), field)[at]

    return change


def gives_more(model: ModelProto) -> None:
    body = inside(model, "Loop")
    body.output.append(body.output[1])


def without(op_type: str, attribute: str) -> Change:
    def change(model: ModelProto) -> None:
        attributes = node(model, op_type).attribute
        attributes.remove(next(a for a in attributes if a.name == attribute))

    return change


def setting(attribute: str, value: list[int]) -> Change:
    def change(model: ModelProto) -> None:
        node(model, "Scan").attribute.append(helper.make_attribute(attribute, value))

    return change


def counts(value: int) -> Change:
    def change(model: ModelProto) -> None:
        next(a for a in node(model, "Scan").attribute if a.name == "num_scan_inputs").i = value

    return change


def sequence_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None))


WRONG: dict[str, tuple[Callable[[], ModelProto], Change, str]] = {
    "a cycle through a loop": (looped, reads("loop"), "the graph has a cycle"),
    "a cycle through what follows a loop": (looped, reads_what_follows, "the graph has a cycle"),
    "a cycle within a body": (looped, reads("next"), "topologically sorted"),
    "a capture of nothing": (looped, reads("nothing"), "'nothing'"),
    "a name twice in a body": (looped, defines_twice("next"), "'next' has been used as output names multiple times"),
    "an outer name in a body": (looped, defines_twice("tanh"), "'tanh' has been used as output names multiple times"),
    "a body without an input": (looped, loses("Loop", "input", 0), "Loop 'loop' has 2 inputs of the body, not 3"),
    "a body without an output": (looped, loses("Loop", "output", 1), "Loop 'loop' has 1 outputs of the body, not 2"),
    "a body with another output": (looped, gives_more, "Loop 'loop' has 3 outputs of the body, not 2"),
    "no body": (looped, without("Loop", "body"), "Required attribute 'body' is missing"),
    "no branch": (branched, without("If", "else_branch"), "Required attribute 'else_branch' is missing"),
    "a branch of nothing": (branched, loses("If", "output", 0, 1), "If 'if' has 0 results of a branch, not 1"),
    "an axis too many": (scanned, setting("scan_input_axes", [0, 1]), "Scan 'scan' has 2 axes of its sequences, not 1"),
    "an axis beyond": (
        scanned,
        setting("scan_input_axes", [7]),
        "runs along axis 7 of a tensor that has 3 axes",
    ),
    "an axis of a result beyond": (scanned, setting("scan_output_axes", [-4]), "Scan 'scan' runs along axis -4"),
    "more sequences than inputs": (scanned, counts(5), "Scan 'scan' has 2 sequences among its inputs, not 5"),
    "no sequences": (scanned, counts(0), "Scan 'scan' has 1 sequences among its inputs, not 0"),
    "an input that is a sequence": (looped, sequence_input, "its input 'list' isn't a tensor but sequence"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_said(name: str) -> None:
    build, change, said = WRONG[name]
    model = build()
    analyse(load(model))
    change(model)
    with pytest.raises(ModelError) as error:
        analyse(load(model))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scan_whose_state_changes_shape() -> None:
    n, h = before()
    body = graph(n, "body", {"s": "state", "part": "each"}, lambda m: [m.linear("s", SIZE, SIZE + 1, name="a")])
    model = ended(n, n.op("Scan", h, h, name="scan", body=body, num_scan_inputs=1))
    with pytest.raises(
        ModelError, match=r"the body of Scan 'scan' turns a state of shape \(2, 6\) into one of \(2, 7\)"
    ):
        analyse(load(model))


def test_sequences_of_several_lengths() -> None:
    n, h = before()
    inputs = {"s": "state", "one": "each", "two": "each"}
    body = graph(n, "body", inputs, lambda m: [m.op("Add", m.op("Add", "s", "one"), "two")])
    longer, shorter = n.random("longer", 4, SIZE), n.random("shorter", 3, SIZE)
    model = ended(n, n.op("Scan", h, longer, shorter, name="scan", body=body, num_scan_inputs=2))
    with pytest.raises(ModelError, match="Scan 'scan' runs along sequences of lengths 3, 4"):
        analyse(load(model))


@pytest.mark.parametrize(
    ("op_type", "reason"),
    [
        ("Concat", "the branches give tensors of different sizes"),
        ("Unsqueeze", "its branches give tensors with different numbers of axes"),
    ],
)
def test_branches_of_different_shapes_are_undivided(op_type: str, reason: str) -> None:
    n, h = before()

    def other(m: Net) -> list[str]:
        return [m.op("Concat", h, h, axis=0) if op_type == "Concat" else m.op("Unsqueeze", h, m.ints(0))]

    (both,) = taken(n, given(n), lambda m: [m.op("Relu", h)], other)
    with pytest.raises(PartitionError, match=reason):
        split(ended(n, both), 2)


def test_a_state_of_changing_rank_is_a_barrier() -> None:
    n, h = before()
    (deep,) = loop(n, integer(n, 2), [h], lambda m, _, s: ([m.op("Unsqueeze", s[0], m.ints(0))], []))
    with pytest.raises(PartitionError, match="Loop 'loop', where the shape of 's0' isn't known"):
        split(ended(n, deep), 2)


@pytest.mark.parametrize("never", ["no trips", "a condition that is false"])
def test_a_loop_that_is_never_run(never: str) -> None:
    n, h = before()
    trips = integer(n, 0 if never == "no trips" else 3)

    def step(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
        return [m.op("Tanh", m.linear(s[0], SIZE, SIZE, name="a"))], [m.op("Neg", s[0])]

    model = ended(n, loop(n, trips, [h], step)[0])
    if never != "no trips":
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(False), "no"))
        node(model, "Loop").input[1] = "no"
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds


def deep(levels: int) -> ModelProto:
    """Branches within branches."""
    n, h = before()

    def then(m: Net, level: int) -> list[str]:
        if level == levels:
            return [m.op("Tanh", m.linear(h, SIZE, SIZE, name="a"))]
        return taken(m, "flag", lambda q: then(q, level + 1), lambda q: [q.op("Neg", h)])

    return ended(n, taken(n, given(n), lambda m: then(m, 1), lambda m: [m.op("Neg", h)])[0])


def test_many_levels() -> None:
    done = split(deep(20), 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.by_name["a.weight"].part_shape(0) == (SIZE // 2, SIZE // 2)
