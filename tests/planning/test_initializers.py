"""How initializers are divided and merge, where it can be written down by hand."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from onnxpart import Plan, analyse, load, plan
from onnxpart.planning.plan import InitializerPlan
from tests.networks.net import Net

WIDTH = 4
ALL = None


def two_layers(width: int = WIDTH) -> ModelProto:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, width, name="in"))
    return n.model(n.linear(h, width, 2, name="out"), shape=("N", 2))


def of(model: ModelProto, order: str = "contiguous") -> Plan:
    return plan(analyse(load(model)), 2, order=order)


def test_weights_and_biases_of_two_layers() -> None:
    left, right = ((0, 2, 1),), ((2, 4, 1),)
    assert of(two_layers()).initializers == (
        InitializerPlan("in.weight", (WIDTH, 3), (((left, ALL),), ((right, ALL),))),
        InitializerPlan("in.bias", (WIDTH,), (((left,),), ((right,),))),
        InitializerPlan("out.weight", (2, WIDTH), (((ALL, left),), ((ALL, right),)), reduces=True),
        InitializerPlan("out.bias", (2,), (((ALL,),), ((ALL,),)), after_reduction=True),
    )


def test_a_bias_behind_the_meeting_point() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    y = n.op("Add", n.op("MatMul", h, n.random("out.weight", WIDTH, 2)), n.random("out.bias", 2))
    planned = of(n.model(y, shape=("N", 2))).by_name
    assert planned["out.bias"].after_reduction
    assert not planned["out.bias"].reduces
    assert not planned["in.bias"].after_reduction
    assert planned["out.weight"].reduces


def test_interleaved_units_are_ranges_with_a_step() -> None:
    (first, *_) = of(two_layers(6), "interleaved").initializers
    assert [rows for ((rows, _),) in first.blocks] == [((0, 5, 2),), ((1, 6, 2),)]


def test_a_grouped_weight_is_a_block_per_group() -> None:
    n = Net(("x", ("N", 3, 5, 5)))
    h = n.op("Relu", n.conv("x", 3, 8, name="in"))
    h = n.conv(h, 8, 8, group=2, name="grouped")
    model = n.model(n.conv(n.op("Relu", h), 8, 2, name="out"), shape=("N", 2, 5, 5))
    planned = of(model).by_name["grouped.weight"]
    assert planned.shape == (8, 4, 1, 1)
    assert [planned.part_shape(p) for p in range(2)] == [(4, 2, 1, 1)] * 2
    held = sorted({tuple(range(*r)) for part in planned.blocks for block in part for r in block[0] or ()})
    assert [row for rows in held for row in rows] == list(range(8))


def test_what_is_read_per_part_and_undivided_is_stored_apart() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    h = n.op("Relu", n.linear(h, WIDTH, 1, name="narrow"))
    planned = of(n.model(n.linear(n.linear(h, 1, WIDTH, name="wide"), WIDTH, 2, name="out"), shape=("N", 2)))
    assert planned.by_name["narrow.bias"].stored == "apart"
    assert planned.by_name["in.weight"].stored == "once"
    assert set(planned.replicated) >= {"narrow.bias"}


@pytest.mark.parametrize("name", ["in.weight", "in.bias", "out.weight"])
def test_every_element_of_a_divided_initializer_is_in_one_part(name: str) -> None:
    assert (of(two_layers()).by_name[name].counts() == 1).all()
