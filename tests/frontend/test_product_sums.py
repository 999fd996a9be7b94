"""Contractions spelled as products and sums become Einsums that compute the same; other sums stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxpart import load
from tests.networks.looping import taken
from tests.networks.net import Net
from tests.networks.running import run_onnx

INS, OUTS = 3, 4
Body = Callable[[Net, str], str]


def column(n: Net, x: str) -> str:
    """[N, 3] as [N, 3, 1]."""
    return n.op("Unsqueeze", x, n.ints(-1))


def summed(n: Net, value: str, axis: int = 1, keepdims: int = 0) -> str:
    return n.op("ReduceSum", value, n.ints(axis), keepdims=keepdims)


def several(n: Net, x: str, terms: int) -> str:
    """A sum of several products of the same activations, [N, 3, 4]."""
    total = n.op("Mul", column(n, x), n.random("w", INS, OUTS))
    for _ in range(terms - 1):
        total = n.op("Add", total, n.op("Mul", column(n, x), n.random("w", INS, OUTS)))
    return total


def row(n: Net, x: str) -> str:
    """The weight's rows are units; the activations have an axis of size 1 for them."""
    return summed(n, n.op("Mul", n.random("w", OUTS, INS), n.op("Unsqueeze", x, n.ints(1))), 2)


def curves(n: Net, x: str) -> str:
    """An Einsum that keeps both axes and a product, masked by what has an axis of size 1 in front."""
    powers = n.op("Concat", column(n, x), column(n, n.op("Tanh", x)), axis=2)
    y = n.op("Einsum", powers, n.random("curves", INS, OUTS, 2), equation="bik,iok->bio")
    mask = n.op("Unsqueeze", n.random("mask", INS, OUTS), n.ints(0))
    return summed(n, n.op("Mul", n.op("Mul", n.random("front", 1, INS, OUTS), mask), n.op("Add", y, several(n, x, 1))))


def gated(n: Net, x: str) -> str:
    """Two factors that are activations; what they make together holds no weight."""
    gate = n.op("Mul", column(n, n.op("Sigmoid", x)), column(n, x))
    return summed(n, n.op("Mul", gate, several(n, x, 1)), -2)


def inside(n: Net, x: str) -> str:
    """A sum in each branch of an If."""
    positive = n.op("Greater", n.op("ReduceSum", x, keepdims=0), n.number(0))
    (y,) = taken(n, positive, *[lambda m: [summed(m, several(m, x, 1))]] * 2)
    return n.op("Reshape", y, n.ints(-1, OUTS))


CONTRACTED: dict[str, tuple[Body, int]] = {
    "a product": (lambda n, x: summed(n, several(n, x, 1)), 1),
    "rows": (row, 1),
    "two products": (lambda n, x: summed(n, several(n, x, 2)), 2),
    "curves": (curves, 2),
    "gated": (gated, 1),
    "inside": (inside, 2),
}
"""Networks, and how many contractions of activations and a weight, or weights, they are."""

LEFT: dict[str, Body] = {
    "no units": lambda n, x: summed(n, n.op("Mul", x, n.random("w", INS))),
    "a constant along a summed axis": lambda n, x: summed(n, n.op("Add", several(n, x, 1), n.random("b", OUTS))),
    "nothing in common": lambda n, x: summed(n, n.op("Mul", column(n, x), n.random("w", OUTS))),
    "no product": lambda n, x: summed(n, n.op("Tanh", several(n, x, 1))),
    "too many terms": lambda n, x: summed(n, several(n, x, 9)),
    "the axis stays": lambda n, x: summed(n, several(n, x, 1), keepdims=1),
}
"""Networks whose sums aren't contractions by a weight that makes units, or aren't read as such."""


def network(body: Body) -> onnx.ModelProto:
    n = Net(("x", ("N", INS)), opset=18)
    return n.model(body(n, "x"))


def check(body: Body) -> Counter[str]:
    """How many operators of each kind there are in canonical form, which computes the same."""
    model = network(body)
    loaded = load(model)
    for size in (1, 4):
        x = np.random.default_rng(size).standard_normal((size, INS)).astype(np.float32)
        for found, expected in zip(run_onnx(loaded.proto, {"x": x}), run_onnx(model, {"x": x}), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    onnx.checker.check_model(loaded.proto, full_check=True)
    return Counter(op.op_type for op in loaded.flat.nodes)


@pytest.mark.parametrize("name", CONTRACTED)
def test_a_weight_that_makes_units_is_an_einsums(name: str) -> None:
    body, contractions = CONTRACTED[name]
    loaded = load(network(body))
    known = {t.name for t in loaded.proto.graph.initializer}
    activations = 0
    for node in loaded.flat.nodes:
        if known.issuperset(node.input):
            known.update(node.output)
        elif node.op_type == "Einsum" and not known.isdisjoint(node.input):
            activations += 1
    assert activations == contractions
    assert check(body)["ReduceSum"] == (name == "inside")


@pytest.mark.parametrize("name", LEFT)
def test_other_sums_stay(name: str) -> None:
    found = check(LEFT[name])
    assert found["ReduceSum"] == 1
    assert not found["Einsum"]


def test_a_product_that_is_read_elsewhere_stays() -> None:
    def body(n: Net, x: str) -> str:
        y = several(n, x, 1)
        return n.op("Add", summed(n, y), n.op("ReduceMax", y, n.ints(1), keepdims=0))

    assert not check(body)["Einsum"]
