"""Where the original graph differs from the parts' mean, and why."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from onnxpart import split
from onnxpart.inspection.obstacles import obstacles
from tests.networks.net import Net


def found(model: ModelProto, k: int = 2) -> dict[str, str]:
    """Titles of the operators in the way, with the reasons."""
    done = split(model, k)
    return {done.analysis.ops[i].title: reason for i, reason in obstacles(done).items()}


def perceptron(activation: str, **attributes: int) -> ModelProto:
    n = Net(("x", ("N", 5)))
    h = n.op(activation, n.linear("x", 5, 6, name="a"), name="act", **attributes)
    return n.model(n.linear(h, 6, 3, name="y"), shape=("N", 3))


@pytest.mark.parametrize("k", [2, 3])
def test_nothing_is_in_the_way_where_units_are_apart(k: int) -> None:
    assert found(perceptron("Relu"), k) == {}


def test_a_mix_of_divided_units_is() -> None:
    assert found(perceptron("Softmax", axis=1)) == {"Softmax 'act'": "Softmax 'act' mixes units, which are divided"}


def test_so_is_what_reads_parameters_that_every_part_has_its_own_of() -> None:
    n = Net(("x", ("N", 3)))
    features = n.op("Tanh", n.linear("x", 3, 4, name="tied"), name="act")
    h = n.op("Relu", n.linear(features, 4, 6, name="behind"), name="last")
    reasons = found(n.model(features, n.linear(h, 6, 2, name="y")))
    assert reasons == {
        "Gemm 'tied'": "Gemm 'tied' reads 'tied.weight', of which every part has its own",
        "Tanh 'act'": "Tanh 'act' reads 'tied', of which every part has its own",
        "Gemm 'behind'": "Gemm 'behind' reads 'act', of which every part has its own",
    }
