"""The whole filled from one part computes what the part does, and noise is what it is said to be."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from safetensors.numpy import save_file

from models import BUILDERS
from onnxpart import MergeError, OnnxpartError, Split, UsageError, arrays, merge, split, widen
from onnxpart.merging.merge import Into
from onnxpart.planning.plan import ORDERS
from onnxpart.storage.rows import Array
from onnxpart.verification.feeds import inputs
from onnxpart.verification.oracles import TOLERANCE, tap
from onnxpart.verification.runtime import Session
from onnxpart.verification.weights import draw
from tests.networks.command import run, run_json
from tests.networks.copies import restored, with_arrays
from tests.networks.exported import export
from tests.networks.external import outside
from tests.networks.growing import Recipe
from tests.networks.net import Net
from tests.networks.steps import STEPS

NAMES = [
    *("cifar10", "concat", "depthwise", "flatten", "groupnorm", "grouped", "layernorm", "lenet", "lrn"),
    *("pixel_shuffle", "qkv", "recurrent", "residual", "shared_weight", "shuffle", "squeeze_excite"),
    "transposed_weight",
]


def trained(done: Split, part: int = 0) -> ModelProto:
    """A part with weights of its own, biases among them."""
    return with_arrays(done.parts[part], draw(done.partition, part, np.random.default_rng(5 + part)))


def deviation(done: Split, part: ModelProto, widened: dict[str, Array], into: Into = "duplicated") -> float:
    """How far the widened whole is from the part, relative to the spread of what comes out."""
    names, whole = done.plan.mean, done.whole if into == "duplicated" else restored(done.analysis.model)
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    models = with_arrays(whole, widened), with_arrays(part, {})
    found, want = (Session(tap(model, names, done.analysis)).run(feed) for model in models)
    assert names
    return max(float(np.abs(found[n] - want[n]).max()) / max(float(want[n].std()), 1e-2) for n in names)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_computes_what_the_part_does(name: str, order: str) -> None:
    done = split(BUILDERS[name](), 2, order=order)
    part = trained(done, 1)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert deviation(done, part, widened) < TOLERANCE
    noisy = widen(done.analysis, done.plan, arrays(part))
    assert deviation(done, part, noisy) > TOLERANCE


@pytest.mark.parametrize(
    "name", ["grouped_query", "rotary", "fused_chunk", "gate_experts", "windows", "tied_embedding"]
)
def test_exported_attention(name: str) -> None:
    done = split(export(name, "torchscript", 17, dynamic=True), 4)
    part = trained(done)
    assert deviation(done, part, widen(done.analysis, done.plan, arrays(part), noise=0)) < TOLERANCE


def test_any_network_with_parts_that_are_alike() -> None:
    compared = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        try:
            done = split(Recipe(lambda n, rng=rng: int(rng.integers(n)), STEPS, 6).network(), 2)
            part = trained(done)
            widened = widen(done.analysis, done.plan, arrays(part), noise=0)
        except OnnxpartError:
            continue
        if done.plan.mean:
            assert deviation(done, part, widened) < TOLERANCE, seed
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(("k", "order"), [(2, "contiguous"), (3, "interleaved")])
def test_weights_between_units_are_shared_out(k: int, order: str) -> None:
    net = Net(("x", ("N", 5)))
    h = net.op("Relu", net.linear("x", 5, 6, name="fc1"))
    h = net.op("Relu", net.linear(h, 6, 12, name="fc2"))
    done = split(net.model(net.linear(h, 12, 3, name="y")), k, order=order)
    part = arrays(trained(done))
    widened = widen(done.analysis, done.plan, part, noise=0)
    units = {6: np.arange(6) % (6 // k), 12: np.arange(12) % (12 // k)}
    if order == "interleaved":
        units = {n: np.arange(n) // k for n in units}
    np.testing.assert_array_equal(widened["fc1.weight"], part["fc1.weight"][units[6]])
    np.testing.assert_array_equal(widened["fc1.bias"], part["fc1.bias"][units[6]])
    np.testing.assert_allclose(widened["fc2.weight"], part["fc2.weight"][np.ix_(units[12], units[6])] / k, rtol=1e-6)
    np.testing.assert_allclose(widened["y.weight"], part["y.weight"][:, units[12]] / k, rtol=1e-6)
    np.testing.assert_array_equal(widened["y.bias"], part["y.bias"])


def test_columns_of_inputs_are_not_shared_out() -> None:
    net = Net(("x", ("N", 3)))
    h = net.op("Concat", net.op("Relu", net.linear("x", 3, 4, name="fc1")), "x", axis=1)
    h = net.op("Relu", net.linear(h, 7, 4, name="fc2"))
    done = split(net.model(net.linear(h, 4, 2, name="y")), 2)
    part = trained(done)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert deviation(done, part, widened) < TOLERANCE
    np.testing.assert_array_equal(widened["fc2.weight"][:, 4:], np.tile(arrays(part)["fc2.weight"][:, 2:], (2, 1)))


def test_a_weight_that_is_scaled_is_shared_out_once() -> None:
    net = Net(("x", ("N", 5)))
    h = net.op("Relu", net.linear("x", 5, 6, name="fc1"))
    scaled = net.op("Mul", net.random("fc2.weight", 6, 6), net.random("gain", 6, 1))
    h = net.op("Relu", net.op("MatMul", h, scaled))
    done = split(net.model(net.linear(h, 6, 3, name="y")), 2)
    part = trained(done)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert np.count_nonzero(widened["fc2.weight"]) == 36
    assert deviation(done, part, widened) < TOLERANCE


def test_a_weight_used_otherwise_than_in_a_sum_stays_in_its_block() -> None:
    net = Net(("x", ("N", 5)))
    h = net.op("Relu", net.linear("x", 5, 6, name="fc1"))
    squared = net.op("Tanh", net.random("fc2.weight", 6, 6))
    h = net.op("Relu", net.op("MatMul", h, squared))
    done = split(net.model(net.linear(h, 6, 3, name="y")), 2)
    part = trained(done)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert np.count_nonzero(widened["fc2.weight"]) == 18
    assert deviation(done, part, widened) < TOLERANCE


def test_the_check_tells_weights_that_are_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done = split(BUILDERS["lenet"](), 2)
    part = trained(done)
    monkeypatch.setattr(sys.modules["onnxpart.merging.net2wider"], "_share", lambda *_: np.float64(1))
    assert deviation(done, part, widen(done.analysis, done.plan, arrays(part), noise=0)) > 0.1


def test_in_the_original_graph_a_layer_norm_does_not_notice_copies_and_lrn_does() -> None:
    found = {}
    for name in ("residual", "layernorm", "lrn"):
        done = split(BUILDERS[name](), 2)
        part = trained(done)
        widened = widen(done.analysis, done.plan, arrays(part), noise=0, into="original")
        found[name] = deviation(done, part, widened, "original")
    assert found["residual"] < TOLERANCE
    assert found["layernorm"] < TOLERANCE
    assert found["lrn"] > TOLERANCE


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_noise_is_uniform_up_to_a_share_of_the_largest(noise: float) -> None:
    done = split(BUILDERS["lenet"](), 2)
    part = arrays(trained(done))
    plain, noisy, again, other = (
        widen(done.analysis, done.plan, part, noise=n, seed=s) for n, s in ((0, 0), (noise, 0), (noise, 0), (noise, 1))
    )
    for name, value in plain.items():
        added, bound = noisy[name] - value, noise * np.abs(value).max()
        np.testing.assert_array_equal(noisy[name], again[name])
        if name == "logits.bias":
            np.testing.assert_array_equal(noisy[name], value)
            continue
        assert np.abs(added).max() <= bound * 1.0001
        assert (noisy[name] != other[name]).any()
        if value.size > 10_000:
            np.testing.assert_allclose(added.std(), bound / np.sqrt(3), rtol=0.05)
            assert abs(added.mean()) < 0.05 * bound


def test_statistics_get_no_noise_and_copies_in_lanes_do() -> None:
    done = split(BUILDERS["batchnorm"](), 2)
    part = arrays(trained(done))
    noisy, plain = (widen(done.analysis, done.plan, part, noise=n) for n in (0.02, 0))
    (norm,) = (n for n in done.analysis.model.proto.graph.node if n.op_type == "BatchNormalization")
    for name in norm.input[3:5]:
        np.testing.assert_array_equal(noisy[name], plain[name])
    assert all((noisy[name] != plain[name]).any() for name in norm.input[1:3])

    net = Net(("x", ("N", 4)))
    narrow = net.op("Tanh", net.linear(net.op("Tanh", net.linear("x", 4, 6)), 6, 1, name="narrow"))
    done = split(net.model(net.linear(net.op("Tanh", net.linear(narrow, 1, 6, name="up")), 6, 2, name="y")), 2)
    noisy = widen(done.analysis, done.plan, arrays(done.parts[0]))
    assert "narrow.bias__part0" in noisy
    assert noisy["narrow.bias__part0"] != noisy["narrow.bias__part1"]


def test_parts_that_are_not_alike_are_refused() -> None:
    advice = "all parts must be alike to be copies of one; choose another order, or a K that divides every layer."
    done = split(BUILDERS["lenet"](), 3)
    with pytest.raises(MergeError, match=r"'conv2.weight' has shape \(17, 7, 5, 5\) in part 0 and \(16,") as why:
        widen(done.analysis, done.plan, arrays(done.parts[0]))
    assert str(why.value).endswith(advice)
    done = split(BUILDERS["shuffle"](), 4)
    with pytest.raises(MergeError, match=r"initializer 'to_channels__index' is not the same in part 0 and part 1; "):
        widen(done.analysis, done.plan, arrays(done.parts[0]))


def with_numbers(values: Array) -> Split:
    """A network whose hidden layer has numbers of the formula added to it, in two parts."""
    net = Net(("x", ("N", 5)))
    h = net.linear("x", 5, 6)
    net.nodes.append(onnx.helper.make_node("Constant", [], ["numbers"], value=onnx.numpy_helper.from_array(values)))
    return split(net.model(net.linear(net.op("Tanh", net.op("Add", h, "numbers")), 6, 3, name="y")), 2)


def test_numbers_of_the_formula_must_be_alike_too() -> None:
    done = with_numbers(np.tile(np.arange(3, dtype=np.float32), 2))
    part = trained(done)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert "numbers" not in widened
    assert deviation(done, part, widened) < TOLERANCE
    done = with_numbers(np.arange(6, dtype=np.float32))
    with pytest.raises(MergeError, match="Constant 'numbers' is not the same in part 0 and part 1; all parts must be"):
        widen(done.analysis, done.plan, arrays(trained(done)))


def test_arguments_that_do_not_fit_are_refused() -> None:
    done = split(BUILDERS["chain"](), 2)
    part = arrays(done.parts[0])
    with pytest.raises(UsageError, match=r"the noise -0.1 isn't possible; give 0 or more\."):
        widen(done.analysis, done.plan, part, noise=-0.1)
    with pytest.raises(UsageError, match="the noise nan"):
        widen(done.analysis, done.plan, part, noise=float("nan"))
    with pytest.raises(MergeError, match=r"the part has no initializer 'conv1.bias'; give all of its arrays\."):
        widen(done.analysis, done.plan, {n: a for n, a in part.items() if n != "conv1.bias"})
    with pytest.raises(MergeError, match=r"'conv1\.bias' has shape"):
        widen(done.analysis, done.plan, {**part, "conv1.bias": np.zeros(7, np.float32)})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with networks in two parts each."""
    monkeypatch.chdir(tmp_path)
    for name in ("residual", "lrn", "lenet"):
        onnx.save_model(BUILDERS[name](), f"{name}.onnx")
        run("split", f"{name}.onnx", "-k", 2, "-o", name)


@pytest.mark.usefixtures("here")
def test_the_command_gives_what_the_api_gives() -> None:
    said = run("widen", "residual/part1.onnx", "-o", "w.onnx", "--seed", 3).stdout
    done = split("residual.onnx", 2)
    want = widen(done.analysis, done.plan, arrays("residual/part1.onnx"), seed=3)
    assert said == f"widened {len(want)} initializers of residual/part1.onnx into w.onnx\n"
    for name, value in arrays("w.onnx").items():
        np.testing.assert_array_equal(value, want.get(name, value))
    refused = run("widen", "residual/part1.onnx", "-o", "w.onnx", code=1)
    assert refused.stderr == "error: w.onnx exists already; give another file, or --force to replace it.\n"
    data = run_json("widen", "residual/part1.onnx", "-o", "w.onnx", "--noise", 0, "--force")
    assert data == {"model": "w.onnx", "into": "duplicated", "noise": 0.0, "seed": 0, "widened": sorted(want)}
    onnx.checker.check_model("w.onnx", full_check=True)


@pytest.mark.usefixtures("here")
def test_a_part_may_lie_elsewhere_and_be_safetensors() -> None:
    run("widen", "lrn/part0.onnx", "-o", "a.onnx")
    save_file(arrays("lrn/part0.onnx"), "trained.safetensors")
    run("widen", "trained.safetensors", "--folder", "lrn", "-o", "b.onnx")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    run("widen", "lrn/part0.onnx", "-o", "c.onnx", "--into", "original")
    found, want = (onnx.load_model(path).graph.node for path in ("c.onnx", "lrn.onnx"))
    assert [node.op_type for node in found] == [node.op_type for node in want]
    refused = run("widen", "lrn/part0.onnx", "--folder", "residual", "-o", "d.onnx", code=1)
    assert "is a part of another split" in refused.stderr
    assert not Path("d.onnx").exists()
    assert "holds no plan" in run("widen", "trained.safetensors", "-o", "d.onnx", code=1).stderr


@pytest.mark.usefixtures("here")
def test_external_data_give_the_same() -> None:
    outside(BUILDERS["lenet"](), "external.onnx")
    run("split", "external.onnx", "-k", 2, "-o", "external")
    run("widen", "external/part0.onnx", "-o", "e.onnx")
    run("widen", "lenet/part0.onnx", "-o", "i.onnx")
    assert Path("e.onnx.data").exists()
    inline, external = arrays("i.onnx"), arrays("e.onnx")
    assert inline.keys() == external.keys()
    for name, value in inline.items():
        np.testing.assert_array_equal(external[name], value)


def test_copies_merge_to_the_same_function() -> None:
    """What widening adds to a merge of equal parts is the sharing out: both compute what the part does."""
    done = split(BUILDERS["lenet"](), 2)
    part = trained(done)
    merged = merge(done.plan, [arrays(part)] * 2)
    assert deviation(done, part, merged) < TOLERANCE
    widened = widen(done.analysis, done.plan, arrays(part), noise=0)
    assert {name for name, value in widened.items() if (value != merged[name]).any()} == {"conv2.weight", "fc1.weight"}


@pytest.mark.parametrize("into", ["duplicated", "original"])
def test_what_leads_to_a_tied_output_is_shared_out_and_divided(into: Into) -> None:
    """The output's weight can't be divided by K, the one in front of it is: once for each of its two reasons."""
    net = Net(("ids", ("N", 4)))
    net.inputs[0].type.tensor_type.elem_type = TensorProto.INT64
    table = net.random("table", 9, 6)
    h = net.op("Tanh", net.op("Gather", table, "ids", axis=0))
    h = net.op("MatMul", h, net.random("last", 6, 6))
    done = split(net.model(net.op("MatMul", h, net.op("Transpose", table, perm=[1, 0]))), 3)
    assert done.plan.by_name["last"].reduces
    part = trained(done)
    widened = widen(done.analysis, done.plan, arrays(part), noise=0, into=into)
    assert np.count_nonzero(widened["last"]) == 36
    np.testing.assert_allclose(widened["last"][:2, :2], arrays(part)["last"] / 9, rtol=1e-6)
    assert deviation(done, part, widened, into) < TOLERANCE
