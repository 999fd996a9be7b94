"""Fresh weights of parts: their size follows from the part's own fan-in."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper

from models import BUILDERS
from onnxpart import arrays, split
from onnxpart.emission.initial import fans, initial
from onnxpart.ir.trainable import FROZEN
from tests.networks.net import Net

INPUTS, WIDTH, OUTPUTS = 40, 64, 30


def network() -> ModelProto:
    n = Net(("x", ("N", INPUTS)))
    h = n.op("Relu", n.linear("x", INPUTS, WIDTH, name="in"))
    return n.model(n.linear(h, WIDTH, OUTPUTS, name="out"), shape=("N", OUTPUTS))


def test_fans_are_the_parts_own() -> None:
    made = split(network(), 2).partition
    assert fans(made, "in.weight", 0) == (INPUTS, WIDTH // 2)
    assert fans(made, "out.weight", 1) == (WIDTH // 2, OUTPUTS)


@pytest.mark.parametrize("init", ["he", "glorot"])
def test_variance_and_biases(init: str) -> None:
    made = split(network(), 2).partition
    found = {name: values.array() for name, values in initial(made, 0, init, 5).items()}
    assert set(found) == {"in.weight", "in.bias", "out.weight", "out.bias"}
    assert not found["in.bias"].any()
    for name in ("in.weight", "out.weight"):
        fan_in, fan_out = fans(made, name, 0)
        gain = made.analysis.state.weights[name].gain
        wanted = gain / fan_in if init == "he" else 2 / (fan_in + fan_out)
        assert found[name].var() == pytest.approx(wanted, rel=0.25)
    bound = np.sqrt(6 / sum(fans(made, "in.weight", 0)))
    assert init == "he" or np.abs(found["in.weight"]).max() <= bound


def test_slices_are_scaled_by_what_their_fan_in_lost() -> None:
    sliced, scaled = (split(network(), 2, init=init).parts[1] for init in ("slices", "scaled"))
    before, after = arrays(sliced), arrays(scaled)
    assert np.allclose(after["out.weight"], before["out.weight"] * np.sqrt(2), rtol=1e-6)
    for name in ("in.weight", "in.bias", "out.bias"):  # their inputs are as many as before
        assert np.array_equal(after[name], before[name])


def test_parts_and_seeds_differ_and_the_same_seed_repeats() -> None:
    made = split(network(), 2).partition

    def drawn(part: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return initial(made, part, "he", seed)["in.weight"].array()

    assert np.array_equal(drawn(0, 1), drawn(0, 1))
    assert not np.array_equal(drawn(0, 1), drawn(0, 2))
    assert not np.array_equal(drawn(0, 1), drawn(1, 1))


@pytest.mark.parametrize("init", ["he", "glorot", "scaled"])
def test_frozen_parameters_stay_as_sliced(init: str) -> None:
    model = BUILDERS["chain"]()
    helper.set_model_props(model, {FROZEN: '["conv2.weight"]'})
    slices, fresh = (arrays(split(model, 2, init=each).parts[0]) for each in ("slices", init))
    assert np.array_equal(fresh["conv2.weight"], slices["conv2.weight"])
    assert not np.array_equal(fresh["conv1.weight"], slices["conv1.weight"]) or init == "scaled"
    assert not np.array_equal(fresh["logits.weight"], slices["logits.weight"])
