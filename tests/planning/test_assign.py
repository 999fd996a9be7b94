"""Which part each class goes to: as many as its share, in the order asked for, of every group alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from onnxpart import analyse, load
from onnxpart.planning.assign import ANYWHERE, Order, apart, assign
from onnxpart.planning.unit_classes import decide
from tests.networks.net import Net

CONTIGUOUS = Order("contiguous", 0)


def classifier(channels: int = 12, group: int = 1) -> ModelProto:
    """Conv ``c1``, grouped conv ``c2``, pooling, linear."""
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.op("Relu", n.conv("x", 2, channels, name="c1"))
    h = n.op("Relu", n.conv(h, channels, channels, group=group, name="c2"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    return n.model(n.linear(h, channels, 3, name="y"), shape=("N", 3))


def parts(model: ModelProto, name: str, shares: list[int], order: Order = CONTIGUOUS) -> list[int]:
    """The part of each row of a weight."""
    analysis = analyse(load(model))
    found = assign(analysis, decide(analysis, len(shares)), shares, order)
    return [int(p) for p in found[analysis.fields(name)[0]].ravel()]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.sampled_from(["contiguous", "interleaved", "random"]))
def test_an_order_gives_each_part_its_count(counts: list[int], kind: str) -> None:
    found = Order(kind, 3).deal(counts, 7)
    assert np.bincount(found, minlength=len(counts)).tolist() == counts


def test_orders() -> None:
    assert Order("contiguous", 0).deal([2, 3], 0).tolist() == [0, 0, 1, 1, 1]
    assert Order("interleaved", 0).deal([2, 2], 0).tolist() == [0, 1, 0, 1]
    assert Order("interleaved", 0).deal([1, 3], 0).tolist() == [1, 0, 1, 1]
    first, again, other = (Order("random", 5).deal([20, 20], salt).tolist() for salt in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("shares", "counts"), [([1, 1], [6, 6]), ([1, 1, 1], [4, 4, 4]), ([2, 1], [8, 4])])
def test_a_layer_is_divided_in_proportion(shares: list[int], counts: list[int]) -> None:
    found = parts(classifier(), "c1.weight", shares)
    assert found == sorted(found)
    assert np.bincount(found).tolist() == counts


def test_every_group_is_divided_alike() -> None:
    assert parts(classifier(group=3), "c2.weight", [1, 1]) == [0, 0, 1, 1] * 3


def test_outputs_are_in_every_part() -> None:
    assert parts(classifier(), "y.weight", [1, 1]) == [ANYWHERE] * 3


@pytest.mark.parametrize(
    ("inputs", "outputs", "torn"),
    [
        ([[1, 1], [2, 2]], [[1, 1], [2, 2]], False),
        ([[1, 1], [2, 2]], [[1, 1], [1, 1]], True),
        ([[1, 1], [2, 2]], [[3, 4], [5, 6]], True),
        ([[1, 2], [3, 4]], [[5, 6], [7, 8]], False),
        ([[0, 0], [0, 0]], [[5, 6], [7, 8]], False),
    ],
    ids=["with its inputs", "elsewhere", "scattered", "inputs are divided, too", "shared inputs"],
)
def test_whole_groups_need_their_inputs(inputs: list[list[int]], outputs: list[list[int]], torn: bool) -> None:
    assert apart(np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)) == torn
