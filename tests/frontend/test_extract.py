"""A network cut down to some of its values: what vanishes, what is refused, and that the commands agree afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from onnxpart import PartitionError, UsageError, cut, load, merge, split, verify
from onnxpart.ir.arrays import array_of
from onnxpart.merging.folder import original, part_arrays, read_plan
from tests.networks.command import run, run_json
from tests.networks.net import Net


def exporting(norm: bool = False) -> ModelProto:
    """A residual network that also returns its features, and a second head with a mask of its own."""
    n = Net(("x", ("N", 2, 4, 4)), ("mask", ("N", 6, 4, 4)))
    stem = n.conv("x", 2, 6, name="stem")
    features = n.op("Add", stem, n.conv(n.op("Relu", stem), 6, 6, name="block"), name="features")
    n.op("Mul", n.conv(features, 6, 6, name="side"), "mask", name="masked")
    h = n.op("LRN", features, size=3, alpha=0.5, name="norm") if norm else features
    h = n.op("Flatten", n.op("GlobalAveragePool", h, name="pool"), name="flat")
    n.linear(h, 6, 3, name="logits")
    return n.model("logits", "features", "masked")


def test_what_leads_to_no_output_vanishes() -> None:
    whole = load(exporting())
    before = whole.proto.SerializeToString()
    one = cut(whole, ["logits", "logits"])
    assert whole.proto.SerializeToString() == before
    assert one.outputs == ["logits"]
    assert one.inputs == ["x"]
    assert "side.weight" in whole.initializers
    assert not any(name.startswith("side") for name in one.initializers)
    assert {node.name for node in one.proto.graph.node} & {"side", "masked"} == set()
    assert one.digest != whole.digest
    onnx.checker.check_model(one.proto, full_check=True)


def test_an_intermediate_tensor_computes_what_it_did() -> None:
    model = exporting()
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)}
    mask = {"mask": np.ones((2, 6, 4, 4), np.float32)}
    expected = ort.InferenceSession(model.SerializeToString()).run(["features", "logits"], feeds | mask)
    got = cut(load(model), ["flat", "features", "logits"])
    session = ort.InferenceSession(got.proto.SerializeToString())
    flat, *rest = session.run(None, feeds)
    assert [o.name for o in session.get_outputs()] == ["flat", "features", "logits"]
    assert session.get_outputs()[0].shape == ["N", 6]
    np.testing.assert_allclose(flat, expected[0].mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    for a, b in zip(rest, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_network_that_exports_its_features_is_divided_without_them() -> None:
    model = load(exporting())
    with pytest.raises(PartitionError, match="tied to the output 'features'"):
        split(model, 2)
    done = split(cut(model, ["logits"]), 2)
    assert done.plan.by_name["stem.weight"].part_shape(0) == (3, 2, 1, 1)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


@pytest.mark.parametrize("norm", [False, True], ids=["the original graph", "a duplicated norm"])
def test_commands_agree_on_the_cut_graph(norm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(exporting(norm), "net.onnx")
    before = Path("net.onnx").read_bytes()
    run("split", "net.onnx", "-k", 2, "--outputs", "logits", "-o", "parts")
    expected = cut(load("net.onnx"), ["logits"])
    plan = read_plan(Path("parts"))
    assert plan.digest == expected.digest == original(Path("parts"), plan).digest
    assert Path("parts/original.onnx").exists() == norm
    run("verify", "parts")
    run("merge", "parts", "--into", "original", "-o", "merged.onnx")
    merged = load("merged.onnx")
    assert merged.digest == expected.digest
    assert merged.outputs == ["logits"]
    values = merge(plan, part_arrays(Path("parts"), plan), into="original")
    np.testing.assert_array_equal(array_of(merged, "stem.weight"), values["stem.weight"])
    assert Path("net.onnx").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [("--outputs", "masked,logits"), ("--outputs", "masked", "--outputs", "logits")],
    ids=["commas", "repeated"],
)
def test_outputs_are_listed_or_repeated(options: tuple[str, ...], tmp_path: Path) -> None:
    onnx.save_model(exporting(), tmp_path / "net.onnx")
    done = run_json("inspect", tmp_path / "net.onnx", *options)
    outcomes = {layer["node"]: layer["outcome"] for layer in done["layers"]}
    assert outcomes["Conv 'stem'"] == "divided"
    assert outcomes["Conv 'side'"] == "shared: output layer"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["x"], "net: 'x' is an input of the network; name values that it computes as outputs."),
        (["logits", "stem.bias"], "net: 'stem.bias' is an initializer of the network; name values that it computes as"),
        (["logit"], "net computes no value 'logit'; did you mean 'logits'?"),
        (["mask"], "net: 'mask' is an input"),
        (["zzz"], "net computes no value 'zzz'; its outputs are 'logits', 'features', 'masked'."),
        ([], "net: no outputs are named; name at least one value of the graph."),
    ],
)
def test_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        cut(load(exporting()), names)
    assert str(error.value).startswith(sentence)


def test_outputs_without_weights_are_refused() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    n.conv(n.op("Relu", "x", name="early"), 2, 3, name="y")
    with pytest.raises(UsageError, match="'early' depends on no weights"):
        cut(load(n.model("y")), ["early"])
