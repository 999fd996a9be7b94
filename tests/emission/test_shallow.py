"""Fewer blocks of a network: the first ones, and everything else as it was."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpart import PartitionError, UsageError, load
from onnxpart.emission.shallow import Depth, shallow
from onnxpart.ir.validate import validate
from tests.networks.deep import residual_mlp
from tests.networks.net import Net
from tests.networks.running import run_onnx

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_shallow_network_is_the_one_with_fewer_blocks(blocks: int) -> None:
    made = shallow(residual_mlp(), blocks)
    validate(load(made))
    names = {name for i in range(1, blocks + 1) for name in (f"up{i if i > 1 else ''}", f"down{i if i > 1 else ''}")}
    assert {tensor.name for tensor in made.graph.initializer} == names | {
        "first.weight",
        "first.bias",
        "last.weight",
        "last.bias",
    }
    (found,) = run_onnx(made, {"x": X})
    (expected,) = run_onnx(residual_mlp(blocks), {"x": X})
    assert np.array_equal(found, expected)


def test_it_says_which_block_starts_as_which() -> None:
    model = load(residual_mlp(5))
    depth = Depth.of(shallow(model, 2))
    assert depth == Depth(model.digest, ((0, 1, 0, 1, 0),))
    assert Depth.of(model.proto) is None


def test_the_last_block_may_be_the_output() -> None:
    model = load(residual_mlp())
    (name,) = model.outputs
    assert [value.name for value in shallow(model, 1).graph.output] == [name]


@pytest.mark.parametrize("blocks", [0, 4, 9])
def test_as_many_blocks_or_none(blocks: int) -> None:
    with pytest.raises(
        UsageError, match=f"has a stack of 4 blocks; keep at least 1 and fewer than 4 of them, not {blocks}."
    ):
        shallow(residual_mlp(), blocks)


def test_nothing_repeats() -> None:
    with pytest.raises(PartitionError, match="has no repeated blocks"):
        shallow(residual_mlp(1), 1)


def test_stacks_that_are_short_enough_stay() -> None:
    net = Net(("x", ("N", 6)))
    x = net.linear("x", 6, 6, name="first")
    for width in (8, 8, 8, 4, 4):
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 6, width)), width, 6))
    model = load(net.model(x))
    assert Depth.of(shallow(model, 2)) == Depth(model.digest, ((0, 1, 0), (0, 1)))
    with pytest.raises(UsageError, match="has stacks of 3, 2 blocks; keep at least 1 and fewer than 3 of them, not 3"):
        shallow(model, 3)


def test_the_model_itself_stays_as_it_is() -> None:
    model = load(residual_mlp())
    before = model.proto.SerializeToString(deterministic=True)
    shallow(model, 1)
    assert model.proto.SerializeToString(deterministic=True) == before
