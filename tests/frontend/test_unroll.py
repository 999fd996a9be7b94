"""Loops over sequences that run a known number of times are written out; what comes out is what they computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnxpart import load, split, verify
from onnxpart.frontend import unroll
from tests.networks.looping import FEATURES, FLOAT, SIZE, given, graph, integer, length, true
from tests.networks.net import Net
from tests.networks.running import run_onnx

Count = Callable[[Net], str]
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))


def network(build: Callable[[Net, str], str]) -> ModelProto:
    n = Net(("x", ("N", FEATURES)))
    h = n.op("Tanh", n.linear("x", FEATURES, 4 * SIZE, name="before"))
    return n.model(n.linear(build(n, h), SIZE, 3, name="y"), shape=("N", 3))


def three(n: Net) -> str:
    """As exporters write it: the length of a table."""
    return n.op("Unsqueeze", n.op("Gather", n.op("Shape", n.ints(0, 1, 2)), integer(n, 0)), n.ints(0))


def cut(n: Net, h: str, count: Count = three, condition: str = "", going: Callable[[Net], str] = true) -> str:
    """What PyTorch's exporter writes for `tensor_split`: pieces of different lengths, the last behind the loop."""
    cube = n.op("Reshape", h, n.ints(-1, 4, SIZE))
    bounds, axis = n.ints(0, 1, 2, 4), n.ints(1)

    def build(m: Net) -> list[str]:
        after = m.op("Add", "t", m.op("Squeeze", m.ints(1)))
        ends = [m.op("Unsqueeze", m.op("Gather", bounds, i), m.ints(0)) for i in ("t", after)]
        return [m.op("Identity", going(m)), m.op("SequenceInsert", "list", m.op("Slice", cube, *ends, axis))]

    body = graph(n, "body", {"t": "count", "going": "going", "list": "state"}, build)
    for value in (body.input[2], body.output[1]):
        value.type.CopyFrom(SEQUENCE)
    found = n.op("Loop", count(n), condition, n.op("SequenceEmpty"), name="loop", body=body)
    rest = n.op("Slice", cube, n.ints(3), n.ints(4), axis)
    pieces = n.op("SequenceInsert", found, rest)
    total = n.op("Reshape", n.op("SequenceAt", pieces, integer(n, 0)), n.ints(-1, SIZE))
    for i in (1, 2, -1):
        piece = n.op("ReduceMean", n.op("SequenceAt", pieces, integer(n, i)), axes=[1], keepdims=0)
        total = n.op("Add", total, n.op("Tanh", n.linear(piece, SIZE, SIZE, name=f"piece{i}")))
    return total


def cut_by_a_list(n: Net, h: str) -> str:
    """The same where the count of iterations is declared as a list of one, and so are the bounds that it looks up."""
    result = cut(n, h)
    body = next(node for node in n.nodes if node.name == "loop").attribute[0].g
    body.input[0].type.tensor_type.shape.dim.add(dim_value=1)
    replaced = {}
    for node in [node for node in body.node if node.op_type == "Unsqueeze"]:
        replaced[node.output[0]] = node.input[0]
        body.node.remove(node)
    for node in body.node:
        node.input[:] = [replaced.get(name, name) for name in node.input]
    return result


def growing(n: Net, h: str) -> str:
    """Every iteration appends a longer tensor than the one before, made with the same weights."""
    h = n.op("Tanh", n.linear(h, 4 * SIZE, SIZE, name="narrow"))
    weight = n.random("inner", SIZE, SIZE)

    def build(m: Net) -> list[str]:
        longer = m.op("Concat", "cache", m.op("Tanh", m.op("MatMul", h, weight)), axis=0)
        return [m.op("Identity", "going"), longer, m.op("SequenceInsert", "list", longer)]

    body = graph(n, "body", {"t": "count", "going": "going", "cache": "state", "list": "state"}, build)
    for value in (body.input[3], body.output[2]):
        value.type.CopyFrom(SEQUENCE)
    last, found = n.ops("Loop", integer(n, 2), "", h, n.op("SequenceEmpty"), count=2, name="loop", body=body)
    joined = n.op("Concat", n.op("ConcatFromSequence", found, axis=0), last, axis=0)
    joined = n.op("Reshape", n.op("ReduceMean", joined, axes=[0], keepdims=1), n.ints(1, SIZE))
    return n.op("Tanh", n.linear(n.op("Add", joined, h), SIZE, SIZE, name="after"))


def outputs(model: ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, FEATURES)).astype(np.float32)
    return np.asarray(run_onnx(model, {"x": x})[0])


@pytest.mark.parametrize(
    ("build", "weight"),
    [
        (cut, "piece1.weight"),
        (cut_by_a_list, "piece1.weight"),
        (growing, "inner"),
        (lambda n, h: cut(n, h, condition=n.op("Not", n.op("Not", true(n)))), "piece1.weight"),
        (lambda n, h: cut(n, h, going=lambda m: "going"), "piece1.weight"),
    ],
    ids=["cut", "by a list", "growing", "with a condition", "handed on"],
)
def test_what_is_known_is_written_out(build: Callable[[Net, str], str], weight: str) -> None:
    original = network(build)
    model = load(original)
    assert not {kind for kind in model.op_types if kind == "Loop" or "Sequence" in kind}
    np.testing.assert_allclose(outputs(model.proto), outputs(original), atol=1e-5)
    done = split(model, 2)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
    assert not done.plan.blocked
    assert done.plan.by_name[weight].part_shape(0) == (SIZE // 2, SIZE // 2)


def test_a_wrong_iteration_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    original, constant = network(cut), unroll.constant
    monkeypatch.setattr(unroll, "constant", lambda graph, value, taken: constant(graph, np.minimum(value, 1), taken))
    assert not np.allclose(outputs(load(original).proto), outputs(original), atol=1e-3)


def until(m: Net) -> str:
    return m.op("Less", "t", integer(m, 5))


@pytest.mark.parametrize(
    "build",
    [
        lambda n, h: cut(n, h, going=until),
        lambda n, h: cut(n, h, condition=given(n)),
        lambda n, h: cut(n, h, count=length),
        lambda n, h: cut(n, h, count=lambda m: integer(m, unroll.MOST + 1)),
    ],
    ids=["until something", "perhaps", "as often as there are samples", "too often"],
)
def test_what_is_not_known_stays_a_loop(build: Callable[[Net, str], str]) -> None:
    assert "Loop" in load(network(build)).op_types
