"""Random inputs that a model can run on: valid indices, lengths, counts and conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnxpart import analyse, load
from onnxpart.verification.feeds import inputs
from tests.networks.looping import given as condition
from tests.networks.looping import loop, taken
from tests.networks.net import Array, Net

ROWS = 7


def feed(model: ModelProto, trial: int = 0, seed: int = 0) -> dict[str, Array]:
    return inputs(analyse(load(model)), trial, np.random.default_rng(seed))


def integers(n: Net, name: str, *shape: int | str) -> str:
    """A second input, of whole numbers."""
    n.inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    return name


def looked_up(cast: bool) -> ModelProto:
    """A table of 7 rows, in which ``tokens`` looks up."""
    n = Net(("x", ("N", 4)))
    tokens = integers(n, "tokens", "N")
    tokens = n.op("Cast", tokens, to=TensorProto.INT32) if cast else tokens
    h = n.op("Add", n.op("Gather", n.random("table", ROWS, 6), tokens), n.linear("x", 4, 6, name="a"))
    return n.model(n.linear(n.op("Relu", h), 6, 3, name="y"))


LOOKED_UP = {cast: analyse(load(looked_up(cast))) for cast in (False, True)}


def test_floats_have_the_shape_and_type_of_the_input() -> None:
    n = Net(("x", ("N", 4)), dtype=np.float64)
    model = n.model(n.linear(n.op("Relu", n.linear("x", 4, 6)), 6, 3))
    first, second = feed(model, 0)["x"], feed(model, 1)["x"]
    assert first.dtype == np.float64
    assert (first.shape[1], second.shape[1]) == (4, 4)
    assert first.shape[0] != second.shape[0], "a symbol has another size in each trial"
    assert not np.array_equal(feed(model, seed=0)["x"], feed(model, seed=1)["x"])


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_looked_up_is_in_the_table(seed: int, cast: bool) -> None:
    tokens = inputs(LOOKED_UP[cast], 0, np.random.default_rng(seed))["tokens"]
    assert tokens.dtype == np.int64
    assert ((tokens >= 0) & (tokens < ROWS)).all()


@pytest.mark.parametrize("cast", [False, True])
def test_all_rows_are_looked_up_at_some_time(cast: bool) -> None:
    rng = np.random.default_rng(0)
    found = np.concatenate([inputs(LOOKED_UP[cast], 0, rng)["tokens"] for _ in range(60)])
    assert set(found.tolist()) == set(range(ROWS))


@pytest.mark.parametrize("trial", [0, 1])
def test_a_branch_of_each_kind_is_taken(trial: int) -> None:
    n = Net(("x", ("N", 4)))
    h = n.op("Tanh", n.linear("x", 4, 6, name="a"))
    decides = condition(n)
    h = taken(n, decides, lambda m: [m.op("Relu", h)], lambda m: [m.op("Neg", h)])[0]
    assert bool(feed(n.model(n.linear(h, 6, 3, name="y")), trial)[decides]) == (trial == 0)


@pytest.mark.parametrize("trial", [0, 1])
def test_a_loop_runs_a_few_times(trial: int) -> None:
    n = Net(("x", ("N", 4)))
    h = n.op("Tanh", n.linear("x", 4, 6, name="a"))
    h = loop(n, integers(n, "trips"), [h], lambda m, _, s: ([m.op("Tanh", m.linear(s[0], 6, 6, name="b"))], []))[0]
    assert int(feed(n.model(n.linear(h, 6, 3, name="y")), trial)["trips"]) == 2 + trial
