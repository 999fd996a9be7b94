"""What becomes of layers, as a plan tells it."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from onnxpart import PartitionError, analyse, load, plan
from onnxpart.planning.plan import Layer
from tests.networks.net import Net


def network(*widths: int) -> ModelProto:
    """Layers of some widths, one after the other, from 3 inputs to 2 outputs."""
    n = Net(("x", ("N", 3)))
    h, before = "x", 3
    for i, width in enumerate(widths):
        h, before = n.op("Relu", n.linear(h, before, width, name=f"layer{i}")), width
    return n.model(n.linear(h, before, 2, name="out"), shape=("N", 2))


def test_units_of_each_layer_in_graph_order() -> None:
    layers = plan(analyse(load(network(4, 7))), 2).layers
    assert layers[0] == Layer("Gemm 'layer0'", 4, 4, (2, 2))
    assert layers[1].node == "Gemm 'layer1'"
    assert sorted(layers[1].parts) == [3, 4]
    assert layers[2].parts == ()
    assert layers[2].reason.startswith("it is tied to the output")


def test_a_narrow_layer_is_told() -> None:
    layers = plan(analyse(load(network(5, 2))), 3).layers
    assert layers[0].parts == (2, 2, 1)
    assert layers[1] == Layer("Gemm 'layer1'", 2, 2, (), "its units move in 2 classes, too few for 3 parts")


@pytest.mark.parametrize(
    ("widths", "why"), [((2,), "its units move in 2 classes, too few for 3 parts"), ((), "tied to the")]
)
def test_nothing_divided_names_the_reasons(widths: tuple[int, ...], why: str) -> None:
    with pytest.raises(PartitionError, match=why):
        plan(analyse(load(network(*widths))), 3)
