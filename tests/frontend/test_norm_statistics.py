"""Running statistics of batch norms that share an initializer: each norm gets its own, from the parts to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxpart
from models import BUILDERS
from models.builder import GraphBuilder
from onnxpart.frontend.norm_statistics import own_statistics
from onnxpart.ir.arrays import array_of
from onnxpart.ir.protos import SMALL
from onnxpart.torch import export_weights, import_onnx, load_weights, weights
from onnxpart.torch.importer.module import parameters
from tests.networks.command import run
from tests.networks.light import DIFFERENT, grouped, light
from tests.networks.running import Array, run_onnx

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
UNITS = 8
NONE = ("scale{}", "bias{}", "zeros{}", "ones{}")
LAYER = ("scale", "bias", "zeros", "ones")
"""One layer that is applied twice."""
SHARINGS = {
    "norms": ("scale{}", "bias{}", "zeros", "ones"),
    "scale and bias": ("ones", "zeros", "zeros", "ones"),
    "mean and variance": ("scale{}", "bias{}", "ones", "ones"),
    "of one norm": ("scale{}", "bias{}", "ones{}", "ones{}"),
    "identities": ("scale{}", "bias{}", "identity{}.zeros", "identity{}.ones"),
    "constants": ("scale{}", "bias{}", "constant{}.zeros", "constant{}.ones"),
    "constants of both": ("scale{}", "bias{}", "constant.zeros", "constant.ones"),
}
"""What the norms of two hidden layers read as scale, bias, mean and variance."""
sharings = pytest.mark.parametrize("names", SHARINGS.values(), ids=SHARINGS)


def network(names: tuple[str, ...]) -> ModelProto:
    g = GraphBuilder("network", 3)
    h, made = g.input("x", "N", 6), set[str]()
    for i in range(2):
        inputs = [name.format(i) for name in names]
        for name in inputs:
            make(g, name, made)
        h = g.linear(f"layer{i}", h, (UNITS if i else 6, UNITS))
        h = g.relu(f"relu{i}", g.node("BatchNormalization", f"norm{i}", h, *inputs))
    return g.build({g.linear("logits", h, (UNITS, 3)): ("N", 3)})


def make(g: GraphBuilder, name: str, made: set[str]) -> None:
    if name in made:
        return
    made.add(name)
    kind, _, of = name.rpartition(".")
    array = np.full(UNITS, of.startswith("ones"), np.float32)
    if kind.startswith("identity"):
        make(g, of, made)
        g.node("Identity", name, of)
    elif kind.startswith("constant"):
        g.constant(name, array)
    elif of.startswith(("zeros", "ones")):
        g.initializer(name, array)
    else:
        g.values(name, UNITS, center=float("scale" in name))


def vectors(proto: ModelProto) -> dict[tuple[str, int], Array]:
    """Scale, bias, mean and variance of each batch norm, which are all initializers."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    return {(node.name, i): held[node.input[i]] for node in norms for i in range(1, 5)}


def samples() -> Array:
    return (2 + 3 * np.random.default_rng(0).standard_normal((40, 6))).astype(np.float32)


@sharings
def test_the_whole_has_its_parts_statistics(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(network(names), "network.onnx")
    np.savez("data.npz", x=samples(), target=np.arange(40) % 3)
    data = ("--data", "npz:data.npz", "--epochs", 3, "--batch-size", 10, "--lr", 0.05, "--engine", "series")
    run("split", "network.onnx", "-k", 2, "-o", "parts")
    run("train", "parts", *data)
    run("merge", "parts", "-o", "merged.onnx")
    run("fit", "network.onnx", "--merge-at", 3, "-o", "out", *data)
    for folder, file in (("parts", "merged.onnx"), ("out/parts", "out/trained.onnx")):
        parts, whole = [onnx.load(f"{folder}/part{p}.onnx") for p in range(2)], onnx.load(file)
        found = vectors(whole)
        for key, array in found.items():
            np.testing.assert_array_equal(array, np.concatenate([vectors(part)[key] for part in parts]))
        statistics = [array for (_, i), array in found.items() if i > 2]
        assert len(statistics) == len(np.unique(statistics, axis=0)) == 4
        assert not np.isin(statistics, (0, 1)).any()  # all of them have learned
        mean = np.mean([run_onnx(part, {"x": samples()})[0] for part in parts], axis=0)
        np.testing.assert_allclose(run_onnx(whole, {"x": samples()})[0], mean, rtol=1e-5, atol=1e-6)


@sharings
def test_a_network_that_was_never_split_learns_as_if_nothing_were_shared(names: tuple[str, ...]) -> None:
    model, apart = network(names), network(NONE)
    module, expected = import_onnx(model), import_onnx(apart)
    keys = [(f"norm{i}", j) for i in range(2) for j in range(1, 5)]
    start = vectors(onnxpart.load(model).proto)
    load_weights(expected, {NONE[j - 1].format(norm[-1]): start[norm, j] for norm, j in keys})
    x = torch.from_numpy(samples())
    torch.testing.assert_close(module(x), expected(x))
    exported, others = export_weights(module, model), vectors(export_weights(expected, apart))
    for norm, j in keys:
        if j > 2:
            np.testing.assert_allclose(vectors(exported)[norm, j], others[norm, j], rtol=1e-6)
    with torch.no_grad():
        found = module.eval()(x).numpy()
    np.testing.assert_allclose(run_onnx(exported, {"x": samples()})[0], found, rtol=1e-4, atol=1e-5)


def test_scale_and_bias_that_are_shared_stay_so() -> None:
    module = import_onnx(network(SHARINGS["scale and bias"]))
    assert {"zeros", "ones"} < parameters(module).keys()
    found = onnxpart.split(network(SHARINGS["scale and bias"]), 2).parts[0]
    norms = [node for node in found.graph.node if node.op_type == "BatchNormalization"]
    assert [list(node.input[1:3]) for node in norms] == [["ones", "zeros"]] * 2


def unchanged(proto: ModelProto) -> None:
    """Nothing is shared, so nothing is changed."""
    before = proto.SerializeToString(deterministic=True)
    own_statistics(proto)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("model", [*(name for name in BUILDERS if not name.startswith("light_")), "apart", "layer"])
def test_where_nothing_is_shared_nothing_changes(model: str) -> None:
    """The norms of a layer that is applied twice share all."""
    unchanged(BUILDERS[model]() if model in BUILDERS else network(NONE if model == "apart" else LAYER))


@pytest.mark.parametrize("name", grouped(DIFFERENT))
def test_in_light_models_nothing_changes(name: str) -> None:
    unchanged(light(name))


@sharings
def test_in_a_model_that_is_loaded_nothing_is_shared_any_more(names: tuple[str, ...]) -> None:
    unchanged(onnxpart.load(network(names)).proto)


def test_what_is_no_longer_read_is_no_input_either() -> None:
    """Before IR version 4 initializers were listed among the inputs."""
    model = network(SHARINGS["norms"])
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    own_statistics(model)
    assert {"zeros", "ones"}.isdisjoint(value.name for value in (*model.graph.input, *model.graph.initializer))
    onnx.checker.check_model(model)
    result = onnxpart.split(model, 2)
    assert result.analysis.model.inputs == ["x"]
    assert onnxpart.verify(result.analysis, result.plan).holds


def test_within_a_branch() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x, bool first) => (float[N,2] y)
        <float[2] zeros = {0.0, 0.0}, float[2] ones = {1.0, 1.0}, float[2,2] w = {0.5, -0.25, 1.0, 0.75}> {
            h = MatMul(x, w)
            n = BatchNormalization(h, ones, zeros, zeros, ones)
            y = If(first) <
                then_branch = t () => (float[M,2] a) { a = BatchNormalization(n, ones, zeros, zeros, ones) },
                else_branch = e () => (float[M,2] b) { b = BatchNormalization(h, ones, zeros, zeros, ones) }>
        }"""
    )
    module = import_onnx(model)
    x, w = samples()[:, :2], numpy_helper.to_array(model.graph.initializer[2])
    module(torch.from_numpy(x), torch.tensor(False))
    found = weights(module)
    for name in ("n", "b"):
        np.testing.assert_allclose(found[f"{name}/mean"], 0.1 * (x @ w).mean(0), rtol=1e-4)
    np.testing.assert_array_equal(found["a/mean"], [0, 0])
    exported = export_weights(module, model)
    for first in (False, True):
        with torch.no_grad():
            expected = module.eval()(torch.from_numpy(x), torch.tensor(first)).numpy()
        got = run_onnx(exported, {"x": x, "first": np.array(first)})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_statistics_in_a_file_of_their_own(tmp_path: Path) -> None:
    size = 2 * SMALL
    g = GraphBuilder("wide", 0)
    h = g.linear("layer", g.input("x", "N", 1), (1, size))
    for name, center in (("scale", 1.0), ("bias", 0.0), ("ones", 1.0)):
        g.values(name, size, center=center)
    h = g.node("BatchNormalization", "norm", h, "scale", "bias", "ones", "ones")
    model = g.build({g.linear("logits", h, (size, 1)): ("N", 1)})
    path = tmp_path / "wide.onnx"
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0)
    loaded = onnxpart.load(path)
    assert all(loaded.initializers[name].data_location == TensorProto.EXTERNAL for name in ("norm/mean", "norm/var"))
    onnxpart.split(loaded, 2).save(tmp_path / "parts")
    for p in range(2):
        ones = onnxpart.arrays(tmp_path / "parts" / f"part{p}.onnx")
        np.testing.assert_array_equal(ones["norm/mean"], ones["norm/var"])
        np.testing.assert_array_equal(ones["norm/mean"], array_of(loaded, "norm/var")[p * SMALL :][:SMALL])
