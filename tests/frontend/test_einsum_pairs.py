"""Einsums of several operands are written as Einsums of two, which compute the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxpart import load
from tests.networks.net import Net
from tests.networks.running import run_onnx

SIZES = {letter: size for size, letter in enumerate("abcdef", start=2)}
TERMS = st.lists(st.lists(st.sampled_from("abcde"), max_size=3, unique=True).map("".join), min_size=1, max_size=4)


def network(equation: str) -> ModelProto:
    """An Einsum of the input, [f], with parameters whose sizes are those of their letters."""
    first, *rest = equation.split("->")[0].replace("...", "f").split(",")
    n = Net(("x", [SIZES[c] for c in first]))
    weights = [n.random("w", *(SIZES[c] for c in term)) for term in rest]
    return n.model(n.op("Einsum", "x", *weights, name="sum", equation=equation))


def check(equation: str) -> list[str]:
    """The equations that stand in its place, which compute the same."""
    model = network(equation)
    loaded = load(model).proto
    found = [node.attribute[0].s.decode() for node in loaded.graph.node]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for expected, value in zip(run_onnx(model, x), run_onnx(loaded, x), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    return found


@settings(max_examples=30, deadline=None)
@given(TERMS, st.data())
def test_pairs_compute_the_same(terms: list[str], data: st.DataObject) -> None:
    terms = ["fa", *terms]
    every = sorted(set("".join(terms)))
    out = "".join(data.draw(st.lists(st.sampled_from(every), unique=True)))
    for text in check(",".join(terms) + "->" + out):
        left, _, result = text.partition("->")
        operands = left.split(",")
        assert len(operands) < 3
        if len(operands) == 2:
            assert all(c in result or all(c in term for term in operands) for c in left if c != ",")


@pytest.mark.parametrize(
    ("equation", "pairs"),
    [
        ("fa,ab->fb", ["fa,ab->fb"]),
        ("fa,ab,bc->fc", ["fa,ab->fb", "fb,bc->fc"]),
        ("fa,ab,bc", ["fa,ab->fb", "fb,bc->cf"]),
        ("fa,ab,bc->fb", ["bc->b", "fa,ab->fb", "fb,b->fb"]),
        ("...a,ab,bc->...c", ["...a,ab->...b", "...b,bc->...c"]),
    ],
)
def test_order(equation: str, pairs: list[str]) -> None:
    assert check(equation) == pairs


def test_a_diagonal_stays() -> None:
    assert check("fa,aa,ab->fb") == ["fa,aa,ab->fb"]
