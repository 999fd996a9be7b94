"""Merging is a scatter that can be done by hand: blocks side by side, means where parts overlap, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import figure1
from onnxpart import MergeError, Plan, analyse, load, merge, plan, unmerge
from onnxpart.merging.merge import copies
from onnxpart.planning.plan import copy_name
from tests.networks.net import Net

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def planned() -> Plan:
    """Figure 1: 3 inputs, two hidden layers of 4 units, 2 outputs, in two parts."""
    return plan(analyse(load(figure1())), 2)


def full(made: Plan, value: Callable[[int], float]) -> list[Arrays]:
    """For each part arrays that hold the same number everywhere."""
    return [{i.name: np.full(i.part_shape(p), value(p), np.float32) for i in made.initializers} for p in range(made.k)]


def test_figure_1_by_hand(planned: Plan) -> None:
    whole = merge(planned, full(planned, lambda p: 2.0 * (p + 1)))
    assert whole["L1.weight"].tolist() == [[2.0] * 3] * 2 + [[4.0] * 3] * 2
    assert whole["L1.bias"].tolist() == [2.0, 2.0, 4.0, 4.0]
    assert whole["L2.weight"].tolist() == [[2.0, 2.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 4.0, 4.0]] * 2
    assert whole["y.weight"].tolist() == [[1.0, 1.0, 2.0, 2.0]] * 2, "divided by K"
    assert whole["y.bias"].tolist() == [3.0, 3.0], "in both parts: the mean"


def test_the_output_may_be_scaled_in_place_of_its_weights(planned: Plan) -> None:
    whole = merge(planned, full(planned, lambda p: 2.0 * (p + 1)), normalize="output")
    assert whole["y.weight"].tolist() == [[2.0, 2.0, 4.0, 4.0]] * 2
    assert whole["y.bias"].tolist() == [6.0, 6.0]


@given(st.integers(0, 2**32 - 1))
def test_merging_is_linear(planned: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (
        [{i.name: rng.normal(size=i.part_shape(p)) for i in planned.initializers} for p in range(2)] for _ in range(2)
    )
    both = merge(planned, [{n: a[n] + 3 * b[n] for n in a} for a, b in zip(one, other, strict=True)])
    first, second = merge(planned, one), merge(planned, other)
    for name, array in both.items():
        np.testing.assert_allclose(array, first[name] + 3 * second[name], atol=1e-12)


def test_unmerging_gives_what_merges_to_the_whole(planned: Plan) -> None:
    rng = np.random.default_rng(0)
    whole = {i.name: rng.normal(size=i.shape).astype(np.float32) for i in planned.initializers}
    parts = unmerge(planned, whole)
    assert np.array_equal(parts[1]["y.weight"], 2 * whole["y.weight"][:, 2:])
    again = merge(planned, parts)
    for name in set(whole) - {"L2.weight"}:
        np.testing.assert_allclose(again[name], whole[name], rtol=1e-6)
    kept = np.kron(np.eye(2), np.ones((2, 2)))
    np.testing.assert_array_equal(again["L2.weight"], whole["L2.weight"] * kept)


def test_what_the_whole_holds_once_per_part_comes_once_per_part_too() -> None:
    """A layer that is tied to an output: both parts have values of their own of it."""
    n = Net(("x", ("N", 3)))
    features = n.op("Tanh", n.linear("x", 3, 4, name="tied"))
    h = n.op("Relu", n.linear(features, 4, 6, name="behind"))
    made = plan(analyse(load(n.model(features, n.linear(h, 6, 2, name="y")))), 2)
    whole = merge(made, full(made, lambda p: p + 1.0))
    assert made.by_name["tied.bias"].stored == "apart"
    assert [whole[copy_name("tied.bias", p)].tolist() for p in range(2)] == [[1.0] * 4, [2.0] * 4]
    assert whole["tied.bias"].tolist() == [1.5] * 4
    assert copy_name("tied.bias", 0) not in merge(made, full(made, float), into="original")


def test_copies_of_a_part_that_was_merged() -> None:
    one, two = np.zeros(1), np.ones(1)
    assert copies({"w": one}, "w") == [one]
    assert copies({copy_name("w", 0): one, copy_name("w", 1): two, "w": two}, "w") == [one, two]
    assert copies({}, "w") == []


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_parts_type_is_kept(planned: Plan, dtype: type) -> None:
    parts = [{name: array.astype(dtype) for name, array in part.items()} for part in full(planned, float)]
    assert {array.dtype for array in merge(planned, parts).values()} == {np.dtype(dtype)}


def test_values_that_are_not_finite_are_said(planned: Plan) -> None:
    parts = full(planned, float)
    parts[1]["L1.bias"][0] = np.nan
    with pytest.warns(UserWarning, match="part 1: 'L1.bias' holds NaN or infinite values"):
        whole = merge(planned, parts)
    assert np.isnan(whole["L1.bias"]).tolist() == [False, False, True, False]


def too_few(parts: list[Arrays]) -> None:
    del parts[1]


def without_a_weight(parts: list[Arrays]) -> None:
    del parts[1]["L1.weight"]


def of_another_shape(parts: list[Arrays]) -> None:
    parts[0]["L1.weight"] = np.zeros((3, 3), np.float32)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (too_few, r"the plan has 2 parts, but 1 were given"),
        (without_a_weight, r"part 1 has no initializer 'L1.weight'"),
        (of_another_shape, r"part 0: 'L1.weight' has shape \(3, 3\), but the plan says \(2, 3\)"),
    ],
)
def test_parts_that_do_not_fit(planned: Plan, spoil: Callable[[list[Arrays]], None], sentence: str) -> None:
    parts = full(planned, float)
    spoil(parts)
    with pytest.raises(MergeError, match=sentence):
        merge(planned, parts)
