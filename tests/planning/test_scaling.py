"""An output whose weight is read elsewhere too: 1/K goes upstream of it, where something else can take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxpart
from onnxpart.planning.plan import copy_name
from onnxpart.verification.runtime import Session
from tests.networks.copies import with_arrays
from tests.networks.net import Net

WIDTH, VOCABULARY, SCALE = 8, 6, "scale"
Between = Callable[[Net, str], str]


def tied(between: Between, second: bool = False) -> ModelProto:
    """A matrix from the vocabulary into a hidden layer, what is `between`, and the matrix again, with a bias."""
    n = Net(("x", ("N", VOCABULARY)))
    table = n.random("table", VOCABULARY, WIDTH)
    h = between(n, n.op("Relu", n.op("MatMul", "x", table)))
    y = n.op("MatMul", h, n.op("Transpose", table, perm=[1, 0]), name="meet")
    y = n.op("Add", y, n.random("bias", VOCABULARY), name="y")
    return n.model(y, n.op("Gemm", h, n.random("other", 3, WIDTH), transB=1)) if second else n.model(y)


def gained() -> ModelProto:
    """An output whose weight has a gain that every part trains on its own."""
    n = Net(("x", ("N", VOCABULARY)))
    h = n.op("Gemm", "x", n.random("weight", VOCABULARY, WIDTH), n.random("shift", WIDTH))
    weight = n.op("Mul", n.positive("gain", 3), n.random("inner", WIDTH, 3))
    return n.model(n.op("Add", n.op("MatMul", h, weight, name="meet"), n.random("bias", 3), name="y"), shape=("N", 3))


def batch_norm(n: Net, x: str) -> str:
    parameters = [n.positive(SCALE, WIDTH), *(n.random(name, WIDTH) for name in ("shift", "mean"))]
    return n.op("BatchNormalization", x, *parameters, n.positive("variance", WIDTH))


def layer_norm(n: Net, x: str) -> str:
    return n.op("LayerNormalization", x, n.positive(SCALE, WIDTH), n.random("shift", WIDTH))


def activation_norm(n: Net, x: str) -> str:
    """A batch norm whose scale is computed from what it normalises, and so from an input of the network."""
    n.inputs.append(helper.make_tensor_value_info("gate", TensorProto.FLOAT, ("N", WIDTH)))
    gated = n.op("Mul", x, "gate")
    scale = n.op("ReduceMax", gated, axes=[0], keepdims=0)
    shift, mean = (n.random(name, WIDTH) for name in ("shift", "mean"))
    return n.op("BatchNormalization", gated, scale, shift, mean, n.positive("variance", WIDTH))


def linear(n: Net, x: str) -> str:
    return n.op("Gemm", x, n.random("weight", WIDTH, WIDTH), n.random("shift", WIDTH))


def scaled(n: Net, x: str) -> str:
    return n.op("Mul", x, n.positive(SCALE, WIDTH))


def moved(n: Net, x: str) -> str:
    """Behind a bias of its own, dropout and a reshape."""
    y = n.op("Add", n.op("MatMul", x, n.random("weight", WIDTH, WIDTH)), n.random("shift", WIDTH))
    return n.op("Reshape", n.op("Dropout", y), n.ints(-1, WIDTH))


def summed(n: Net, x: str) -> str:
    """Of two branches."""
    return n.op("Add", linear(n, x), scaled(n, x))


def relu(n: Net, x: str) -> str:
    return n.op("Relu", linear(n, x))


def shared(n: Net, x: str) -> str:
    """A scale that another norm has as well."""
    scale = n.positive(SCALE, WIDTH)
    for name in ("a", "b"):
        rest = [n.random(f"{name}.{what}", WIDTH) for what in ("shift", "mean")]
        x = n.op("BatchNormalization", n.op("Relu", x), scale, *rest, n.positive(f"{name}.variance", WIDTH))
    return x


POSSIBLE = {
    batch_norm: {"scale", "shift"},
    layer_norm: {"scale", "shift"},
    linear: {"weight", "shift"},
    scaled: {"scale"},
    moved: {"weight", "shift"},
    summed: {"weight", "shift", "scale"},
}


def meets(model: ModelProto) -> int:
    """How often the output's product stands in a duplicated whole."""
    return sum(node.name.startswith("meet") for node in model.graph.node)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("between", POSSIBLE)
def test_what_leads_to_the_output_is_divided_in_its_place(between: Between, k: int) -> None:
    model = tied(between)
    done = onnxpart.split(model, k, order="interleaved")
    assert {i.name for i in done.plan.initializers if i.reduces} == POSSIBLE[between]
    assert all(i.stored == "once" for i in done.plan.initializers)
    assert meets(done.whole) == 1
    verdict = onnxpart.verify(done.analysis, done.plan)
    assert verdict.holds, verdict.findings
    assert done.plan.same_graph == (between is not layer_norm)
    if done.plan.same_graph:
        merged = onnxpart.merge(done.plan, [onnxpart.arrays(part) for part in done.parts], into="original")
        x = {"x": np.random.default_rng(0).normal(size=(4, VOCABULARY)).astype(np.float32)}
        mean = np.mean([Session(part).run(x)["y"] for part in done.parts], axis=0)
        np.testing.assert_allclose(Session(with_arrays(model, merged)).run(x)["y"], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [tied(relu), tied(shared), tied(batch_norm, second=True), tied(activation_norm), gained()],
    ids=["relu", "scale", "two", "computed scale", "gain"],
)
def test_where_something_else_would_be_divided_too_the_output_stands_once_per_part(model: ModelProto) -> None:
    done = onnxpart.split(model, 2)
    assert not {i.name for i in done.plan.initializers if i.reduces} - {"other"}
    assert meets(done.whole) == 2
    assert any(node.name == copy_name("meet", 1) for node in done.whole.graph.node)
    assert onnxpart.verify(done.analysis, done.plan).holds


@pytest.mark.parametrize("name", ["scale", "shift"])
def test_oracle_catches_what_is_left_out(name: str) -> None:
    done = onnxpart.split(tied(batch_norm), 2)
    wrong = replace(
        done.plan,
        initializers=tuple(replace(i, reduces=i.reduces and i.name != name) for i in done.plan.initializers),
    )
    assert not onnxpart.verify(done.analysis, wrong).holds


def test_a_weight_with_a_factor_of_every_parts_own_is_not_merged() -> None:
    """The parts' factors have a mean; its product with the weights isn't the parts' products."""
    n = Net(("x", ("N", 5)))
    weight = n.op("Mul", n.random("table", WIDTH, 3), n.random("factor", 3))
    done = onnxpart.split(n.model(n.op("MatMul", linear(n, n.op("Relu", n.linear("x", 5, WIDTH))), weight)), 2)
    assert not done.plan.same_graph
    assert onnxpart.verify(done.analysis, done.plan).holds
