"""Random networks with look-ups, resizes and further inputs made of hidden units: refused, or divided and verified."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart import split, verify
from scripts.fuzz import Way, divide
from tests.networks.ensemble import deviation
from tests.networks.growing import Recipe
from tests.networks.index_steps import INDEXING
from tests.networks.net import Net
from tests.networks.steps import COMMON


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_divided_and_verified(first: int) -> None:
    found: Counter[str] = Counter()
    for seed in range(first, first + 40):
        rng = np.random.default_rng(seed)
        model = Recipe(lambda n, rng=rng: int(rng.integers(n)), (*COMMON, *INDEXING), 6).network()
        result = divide(model, Way(2 + seed % 3, ("contiguous", "interleaved", "random")[seed % 3], seed))
        assert not result.failed, (seed, result)
        found[result.kind] += 1
    assert found["divided"] > found["refused"] / 4


def resized() -> ModelProto:
    """Sizes for the divided axis, which come to what it has."""
    n = Net(("x", ("N", 3)), opset=19)
    h = n.op("Resize", n.linear("x", 3, 8), "", "", n.ints(8), axes=[1], mode="nearest")
    return n.model(n.linear(h, 8, 2), shape=("N", 2))


def added_by_gemm(places: bool = False) -> ModelProto:
    """A Gemm whose addend is no mean of the parts': it comes from units behind an activation."""
    n = Net(("x", ("N", 3)))
    h = n.linear("x", 3, 6)
    beside = n.op("Sigmoid", n.op("Gemm", h, n.random("beside", 6, 4)))
    y = n.op("Gemm", h, n.random("weight", 6, 4), beside)
    return n.model(n.op("Relu", y) if places else y, shape=("N", 4))


def scaled_by_a_mixture() -> ModelProto:
    """A BatchNormalization of sums over units, with a scale made of them and a shift that is an input."""
    n = Net(("x", (2, 4)), ("z", ("N", 4)), ("shift", (7,)))
    weight = n.op("ReduceMax", n.op("MatMul", "x", n.random("first", 4, 28)), axes=[0], keepdims=0)
    sums = n.op("MatMul", "z", n.op("Reshape", weight, n.ints(4, 7)))
    scale = n.op("ReduceMean", n.op("MatMul", sums, n.random("second", 7, 7)), axes=[0], keepdims=0)
    y = n.op("BatchNormalization", sums, scale, "shift", n.random("mean", 7), n.positive("variance", 7))
    return n.model(y, shape=("N", 7))


def sloped_along_places() -> ModelProto:
    """A PRelu of units by place with a slope that differs by place alone, which is made of other units."""
    n = Net(("x", ("N", 5, 6)), opset=19)
    h = n.op("MatMul", "x", n.random("first", 6, 4))
    both = n.op("Concat", h, n.op("MatMul", h, n.random("second", 4, 4)), h, axis=1)
    made = n.op("MatMul", n.op("Gather", both, n.ints(0), axis=1), n.random("third", 4, 15))
    slope = n.op("Reshape", n.op("ReduceMean", made, n.ints(0, 1), keepdims=0), n.ints(15, 1))
    y = n.op("MatMul", n.op("PRelu", both, slope), n.random("last", 4, 3))
    return n.model(y, shape=("N", 15, 3))


def resized_beside_a_mixture() -> ModelProto:
    """Sums over units beside units, resized: places of both meet."""
    n = Net(("x", ("N", 3, 5)), ("z", ("N", 4, 3)), opset=14)
    h = n.op("MatMul", "x", n.random("first", 5, 4))
    both = n.op("Concat", n.op("MatMul", h, "z"), h, h, axis=2)
    wide = n.op("Resize", both, "", n.array("scales", np.array([1, 1, 2], np.float32)), mode="nearest")
    beside = n.op("Tanh", n.op("MatMul", "x", n.random("beside", 5, 8)))
    y = n.op("Add", n.op("MatMul", wide, n.random("last", 22, 3)), n.op("MatMul", beside, n.random("out", 8, 3)))
    return n.model(y, shape=("N", 3, 3))


MODELS = {
    "resized": resized(),
    "added": added_by_gemm(),
    "added at places": added_by_gemm(True),
    "scaled": scaled_by_a_mixture(),
    "sloped": sloped_along_places(),
    "beside a mixture": resized_beside_a_mixture(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("k", [2, 4])
def test_further_inputs_go_with_the_units(model: ModelProto, k: int) -> None:
    done = split(model, k)
    assert verify(done.analysis, done.plan).holds
    rng = np.random.default_rng(0)
    shapes = {v.name: [d.dim_value or 3 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if set(done.plan.mean) >= {v.name for v in model.graph.output}:
        assert deviation(done, feed) < 1e-5
