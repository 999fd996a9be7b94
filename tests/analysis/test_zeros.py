"""The zeros by which a residual block adds nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxpart import load, shallow
from onnxpart.analysis.stacks import stacks
from onnxpart.analysis.zeros import zeros
from onnxpart.ir.trainable import FROZEN
from tests.networks.deep import residual_mlp
from tests.networks.net import Net
from tests.networks.running import run_onnx

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def branch(net: Net, x: str, form: str) -> str:
    """What a block adds to its stream, which ends in a certain form."""
    y = net.op("MatMul", net.op("Tanh", net.linear(x, 6, 8)), net.op("Transpose", net.random("w", 6, 8), perm=[1, 0]))
    match form:
        case "scaled":
            return net.op("Mul", net.random("gamma", 6), net.op("Sigmoid", y))
        case "scaled by a constant":
            return net.op("Mul", y, net.op("Sigmoid", net.number(0.5)))
        case "norm":
            return net.op("LayerNormalization", y, net.positive("scale", 6), net.random("bias", 6))
        case "moved":
            y = net.op("Reshape", net.op("Neg", y), net.ints(-1, 6, 1))
            return net.op("Div", net.op("Squeeze", net.op("LeakyRelu", y), net.ints(2)), net.number(2.0))
        case "gated":
            return net.op("Mul", net.op("Sigmoid", net.linear(x, 6, 6, name="gate")), y)
        case "sigmoid":
            return net.op("Sigmoid", y)
        case "two":
            return net.op("Add", y, net.linear(x, 6, 6, name="other"))
    return net.op("Dropout", net.op("Add", y, net.random("bias", 6)))


def blocks(form: str) -> ModelProto:
    """Two blocks; `activated` and `sum` are forms of the stream itself."""
    net = Net(("x", ("N", 5)))
    x = net.op("Relu", net.linear("x", 5, 6, name="first"))
    for _ in range(2):
        y = branch(net, x, form)
        x = net.op("Relu", net.op("Add", y, x)) if form == "activated" else net.op("Sum", x, y)
        x = net.op("Add", x, x) if form == "doubled" else x
    return net.model(net.linear(x, 6, 3, name="last"))


def found(model: ModelProto) -> frozenset[str] | None:
    """The zeros of the second block."""
    loaded = load(model)
    (stack,) = stacks(loaded)
    return zeros(loaded, stack, 1)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("plain", {"w2", "bias2"}),
        ("activated", {"w2", "bias2"}),
        ("scaled", {"gamma2"}),
        ("scaled by a constant", {"w2"}),
        ("norm", {"scale2", "bias2"}),
        ("moved", {"w2"}),
        ("gated", {"w2"}),
        ("two", {"w2", "other2.weight", "other2.bias"}),
    ],
)
def test_by_the_last_weights_of_its_branches_a_block_adds_nothing(form: str, names: set[str]) -> None:
    model = blocks(form)
    assert found(model) == names
    (expected,) = run_onnx(shallow(model, 1), {"x": X})
    assert not np.allclose(run_onnx(model, {"x": X})[0], expected, atol=1e-3)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    assert np.array_equal(run_onnx(model, {"x": X})[0], expected)


@pytest.mark.parametrize("form", ["sigmoid", "doubled"])
def test_no_zeros_do(form: str) -> None:
    assert found(blocks(form)) is None
    assert found(residual_mlp(post_norm=True)) is None


@pytest.mark.parametrize(
    ("form", "held", "names"),
    [("gated", ["w", "w2"], {"linear2.weight", "linear2.bias"}), ("scaled", ["gamma", "gamma2"], None)],
)
def test_what_is_frozen_would_stay_zero_and_is_not_taken(form: str, held: list[str], names: set[str] | None) -> None:
    model = blocks(form)
    helper.set_model_props(model, {FROZEN: json.dumps(held)})
    assert found(model) == names
