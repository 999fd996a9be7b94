"""Float16, bfloat16 and float64 networks, and mixed ones: divided, merged and verified as float32 ones are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from onnxpart import Plan, arrays, load, merge, split, verify
from onnxpart.ir.arrays import array_of
from onnxpart.storage.safetensors import save_arrays
from onnxpart.verification.oracles import TOLERANCE, TOLERANCE_DOUBLE
from tests.networks.command import run, run_json
from tests.networks.net import Net

BF16 = ml_dtypes.bfloat16
DTYPES = {"float16": np.float16, "bfloat16": BF16, "float64": np.float64}
ELEMENTS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float64": TensorProto.DOUBLE}
ORACLES = import_module("onnxpart.verification.oracles")  # the package has a function of this name


def mlp(dtype: type) -> ModelProto:
    n = Net(("x", ("N", 5)), dtype=dtype, opset=22)
    h = n.op("Tanh", n.linear("x", 5, 12))
    h = n.op("Relu", n.linear(h, 12, 18))
    return n.model(n.linear(h, 18, 3, name="y"), shape=("N", 3))


def cnn(dtype: type) -> ModelProto:
    n = Net(("x", ("N", 2, 6, 6)), dtype=dtype, opset=22)
    h = "x"
    for i, o in ((2, 6), (6, 12)):
        h = n.conv(h, i, o, kernel=3)
        scale, shift = n.positive("scale", o), n.random("shift", o)
        h = n.op("BatchNormalization", h, scale, shift, n.random("mean", o), n.positive("variance", o))
        h = n.op("Relu", h)
    h = n.op("Flatten", n.op("GlobalAveragePool", n.op("MaxPool", h, kernel_shape=[2, 2])), axis=1)
    return n.model(n.linear(h, 12, 3, name="y"), shape=("N", 3))


def attention(dtype: type) -> ModelProto:
    """Six heads of two, LayerNormalization in front, a residual around."""
    n = Net(("x", ("N", 4, 5)), dtype=dtype, opset=22)
    stream = n.op("MatMul", "x", n.random("embed.weight", 5, 12))
    h = n.op("LayerNormalization", stream, n.positive("scale", 12), n.random("shift", 12), axis=-1)
    shape = n.ints(0, 4, 6, 2)
    q, k, v = (
        n.op("Transpose", n.op("Reshape", n.op("MatMul", h, n.random(f"{c}.weight", 12, 12)), shape), perm=perm)
        for c, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    weights = n.op("Softmax", n.op("Mul", n.op("MatMul", q, k), n.number(0.7)), axis=-1)
    mixed = n.op("Reshape", n.op("Transpose", n.op("MatMul", weights, v), perm=[0, 2, 1, 3]), n.ints(0, 4, 12))
    stream = n.op("Add", stream, n.op("MatMul", mixed, n.random("project.weight", 12, 12)))
    return n.model(n.op("MatMul", stream, n.random("y.weight", 12, 3)), shape=("N", 4, 3))


def mixed(dtype: type) -> ModelProto:
    """Float32 outside; weights and products in `dtype`, one weight cast up, a constant of that type."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    n = Net(("x", ("N", 5)), dtype=np.float32, opset=22)
    low = Net(dtype=dtype, opset=22)
    low.nodes, low.initializers = n.nodes, n.initializers
    h = low.linear(n.op("Cast", "x", to=element), 5, 12, name="fc1")
    like = onnx.numpy_helper.from_array(np.asarray([0.5], dtype))
    ones = n.op("ConstantOfShape", n.op("Shape", h), value=like)
    h = n.op("Softplus", n.op("Cast", n.op("Mul", h, ones), to=TensorProto.FLOAT))
    weight = n.op("Cast", low.random("fc2.weight", 12, 18), to=TensorProto.FLOAT)
    h = n.op("Relu", n.op("MatMul", h, weight))
    return n.model(n.linear(h, 18, 3, name="y"), shape=("N", 3))


NETWORKS: dict[str, Callable[[type], ModelProto]] = {"mlp": mlp, "cnn": cnn, "attention": attention, "mixed": mixed}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_identities(dtype: str, name: str, k: int) -> None:
    done = split(NETWORKS[name](DTYPES[dtype]), k, order="interleaved")
    assert any(layer.parts for layer in done.plan.layers)
    for model in (*done.parts, done.whole):
        onnx.checker.check_model(model, full_check=True)
        assert ELEMENTS[dtype] in {t.data_type for t in model.graph.initializer}
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    assert {f.oracle for f in verdict.findings} == {"ensemble identity", "block identity"}
    assert all(f.compared > 0 for f in verdict.findings)


@pytest.mark.parametrize(
    ("dtype", "network", "tolerance"),
    [
        ("float64", mlp, TOLERANCE_DOUBLE),  # every operator has a kernel for it
        ("float64", cnn, TOLERANCE),  # Conv has none
        ("float64", mixed, TOLERANCE),  # some of it is float32
        ("bfloat16", mlp, TOLERANCE),
    ],
)
def test_tolerance_is_that_of_the_type_computed_in(
    dtype: str, network: Callable[[type], ModelProto], tolerance: float
) -> None:
    done = split(network(DTYPES[dtype]), 2)
    verdict = verify(done.analysis, done.plan)
    assert {f.tolerance for f in verdict.findings} == {tolerance}
    assert verdict.holds


Arrays = Mapping[str, NDArray[Any]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("network", [mlp, cnn, attention])
def test_a_wrong_merge_is_found(
    network: Callable[[type], ModelProto], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(planned: Plan, parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        return {n: v * planned.k if planned.by_name[n].reduces else v for n, v in merge(planned, parts).items()
                if n in planned.by_name}  # fmt: skip

    done = split(network(DTYPES[dtype]), 2)
    assert verify(done.analysis, done.plan).holds
    monkeypatch.setattr(ORACLES, "merge", forgetful)
    assert not verify(done.analysis, done.plan).holds


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_are_rounded_once(name: str, dtype: str, k: int) -> None:
    """Merging in the type gives what merging in float64 gives, rounded to the type."""
    done = split(NETWORKS[name](DTYPES[dtype]), k)
    rng = np.random.default_rng(0)
    found = [arrays(part) for part in done.parts]
    parts = [
        {n: rng.standard_normal(a.shape).astype(a.dtype) for n, a in values.items() if a.dtype.kind in "fV"}
        for values in found
    ]
    wide = merge(done.plan, [{n: a.astype(np.float64) for n, a in values.items()} for values in parts])
    for key, array in merge(done.plan, parts).items():
        assert array.dtype == array_of(load(done.parts[0]), key.split("__part")[0]).dtype
        digits = -np.finfo(array.dtype).machep if array.dtype != BF16 else 7
        np.testing.assert_allclose(array.astype(np.float64), wide[key], rtol=2.0 ** -(digits + 1) * 1.01, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cnn", "mixed"])
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(NETWORKS[name](DTYPES[dtype]), "m.onnx")

    run("split", "m.onnx", "-k", "2", "-o", "parts", "--init", "he")
    run("merge", "parts")
    run("merge", "parts", "--normalize", "output", "-o", "scaled.onnx")
    run("merge", "parts", "--initializers", "m.safetensors")
    for path in ("parts/merged.onnx", "scaled.onnx"):
        onnx.checker.check_model(path, full_check=True)
    merged = arrays("parts/merged.onnx")
    for key, array in arrays("m.safetensors").items():
        assert array.dtype == merged[key].dtype
        np.testing.assert_array_equal(array, merged[key])
    for p in range(2):
        save_arrays(arrays(f"parts/part{p}.onnx"), f"p{p}.safetensors")
    run("merge", "parts", "--parts", "p0.safetensors", "--parts", "p1.safetensors", "-o", "again.onnx")
    assert Path("again.onnx").read_bytes() == Path("parts/merged.onnx").read_bytes()
    findings = run_json("verify", "parts")["findings"]
    assert all(f["holds"] and f["deviation"] <= f["tolerance"] for f in findings)
