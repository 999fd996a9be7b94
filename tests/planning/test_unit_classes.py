"""K comes in: classes of units, layers too narrow for K, and what is given up so that K classes remain."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart import Analysis, analyse, load, split, verify
from onnxpart.planning.unit_classes import Decision, decide, held_classes, selections
from tests.networks.net import Net


def decided(model: ModelProto, k: int = 2) -> tuple[Analysis, Decision]:
    analysis = analyse(load(model))
    return analysis, decide(analysis, k)


def perceptron(*widths: int) -> ModelProto:
    """x ``[N, 5]`` through layers ``l0``, ``l1``, .. to 3 outputs ``y``."""
    n, h, before = Net(("x", ("N", 5))), "x", 5
    for i, width in enumerate(widths):
        h, before = n.op("Relu", n.linear(h, before, width, name=f"l{i}")), width
    return n.model(n.linear(h, before, 3, name="y"), shape=("N", 3))


def classes(analysis: Analysis, decision: Decision, name: str) -> list[int]:
    """The class of each row of a weight."""
    return [int(c) for c in decision.classes[analysis.fields(name)[0]].ravel()]


def test_each_unit_is_a_class_and_outputs_are_shared() -> None:
    analysis, found = decided(perceptron(4, 6))
    first, second = classes(analysis, found, "l0.weight"), classes(analysis, found, "l1.weight")
    assert len({*first, *second}) == 10
    assert 0 not in {*first, *second}
    assert classes(analysis, found, "y.weight") == [0, 0, 0]
    assert not found.narrow
    assert not found.failed


def test_what_is_added_up_is_one_class() -> None:
    n = Net(("x", ("N", 5)))
    h = n.op("Relu", n.linear("x", 5, 4, name="a"))
    h = n.op("Add", h, n.linear(h, 4, 4, name="b"))
    analysis, found = decided(n.model(n.linear(h, 4, 3, name="y"), shape=("N", 3)))
    assert classes(analysis, found, "a.weight") == classes(analysis, found, "b.weight")


@pytest.mark.parametrize(("k", "narrow"), [(2, []), (3, []), (4, [3]), (5, [3, 4]), (7, [3, 4, 6])])
def test_layers_of_fewer_classes_than_parts_are_shared(k: int, narrow: list[int]) -> None:
    analysis, found = decided(perceptron(6, 3, 4), k)
    assert sorted(found.narrow.values()) == narrow
    for name, width in (("l0", 6), ("l1", 3), ("l2", 4)):
        assert (set(classes(analysis, found, f"{name}.weight")) == {0}) == (width in narrow)


def test_a_mix_is_given_up_where_it_leaves_too_few_classes() -> None:
    n = Net(("x", ("N", 5)))
    h = n.op("Softmax", n.linear("x", 5, 6, name="a"), axis=1, name="mix")
    analysis, found = decided(n.model(n.linear(h, 6, 3, name="y"), shape=("N", 3)))
    assert [(analysis.ops[c.node].title, c.mix) for c in found.failed] == [("Softmax 'mix'", True)]
    assert not found.granted
    assert len(set(classes(analysis, found, "a.weight"))) == 6


@pytest.mark.parametrize(("k", "together"), [(2, True), (3, True), (4, False)])
def test_groups_that_are_normalised_stay_whole_while_there_are_enough(k: int, together: bool) -> None:
    n = Net(("x", ("N", 2, 4, 4)), opset=21)
    h = n.conv("x", 2, 12, name="a")
    h = n.op("GroupNormalization", h, n.positive("scale", 12), n.random("shift", 12), num_groups=3)
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    analysis, found = decided(n.model(n.linear(h, 12, 3, name="y"), shape=("N", 3)), k)
    assert len(set(classes(analysis, found, "a.weight"))) == (3 if together else 12)
    assert bool(found.granted) == together
    assert bool(found.failed) != together


@pytest.mark.parametrize(("k", "count"), [(2, 12), (3, 12), (4, 4)])
def test_groups_narrower_than_the_number_of_parts_stay_whole(k: int, count: int) -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.op("Relu", n.conv("x", 2, 12, name="a"))
    h = n.op("Relu", n.conv(h, 12, 12, group=4, name="b"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    analysis, found = decided(n.model(n.linear(h, 12, 3, name="y"), shape=("N", 3)), k)
    assert len(set(classes(analysis, found, "b.weight"))) == count


def test_classes_without_the_shared_one() -> None:
    assert held_classes(np.asarray([0, 3, 3, 1, 0], np.int32)).tolist() == [1, 3]
    assert held_classes(np.zeros(4, np.int32)).tolist() == []


def test_selections_are_what_is_cut_out() -> None:
    n = Net(("x", ("N", 5)))
    h = n.linear("x", 5, 6, name="a")
    left, right = n.ops("Split", h, n.ints(4, 2), count=2, axis=1)
    h = n.op("Concat", n.op("Relu", left), n.op("Tanh", right), axis=1)
    analysis, _ = decided(n.model(n.linear(h, 6, 3, name="y"), shape=("N", 3)))
    assert [f.size for f in selections(analysis)] == [4, 2]


@pytest.mark.parametrize("op_type", ["Softmax", "LayerNormalization"])
def test_a_mix_of_what_is_shared_until_another_is_given_up_is_duplicated(op_type: str) -> None:
    """Units that meet a mixture are in every part while it's the output's, and divided once it's duplicated."""
    n = Net(("x", ("N", 5)))
    wide = n.op("Reshape", n.linear("x", 5, 24, name="wide"), n.ints(0, 4, 6))
    total = n.op("ReduceSum", wide, n.ints(2), keepdims=0, name="total")
    h = n.op("Add", n.linear("x", 5, 4, name="a"), total)
    h = n.op(op_type, h, *([n.positive("scale", 4)] if op_type != "Softmax" else []), axis=1, name="mix")
    model = n.model(n.linear(h, 4, 3, name="y"), total, shape={"y": ("N", 3), total: ("N", 4)})
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert done.analysis.producer["mix"] in done.plan.duplicated_nodes
