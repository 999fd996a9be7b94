"""Parts merge level by level to what they merge to at once, and each level is the mean of the one before."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from safetensors.numpy import save_file

from models import BUILDERS
from onnxpart import (
    MergeError,
    OnnxpartError,
    OptimizerState,
    Plan,
    Split,
    UsageError,
    arrays,
    merge,
    merge_states,
    merge_states_to,
    merge_to,
    plan,
    split,
    verify,
    within,
)
from onnxpart.merging.hierarchy import coarsen
from onnxpart.planning.plan import ORDERS, InitializerPlan, slice_array, to_ranges
from onnxpart.storage.rows import Array
from onnxpart.verification.feeds import inputs
from onnxpart.verification.oracles import TOLERANCE, tap
from onnxpart.verification.runtime import Session
from onnxpart.verification.weights import draw
from tests.networks.command import FIELDS, run, run_json
from tests.networks.copies import with_arrays
from tests.networks.exported import export
from tests.networks.external import outside
from tests.networks.growing import Recipe
from tests.networks.net import Net
from tests.networks.steps import STEPS


def trained(done: Split, seed: int = 0) -> list[ModelProto]:
    """The parts with weights of their own, biases among them."""
    rng = np.random.default_rng(seed)
    return [with_arrays(part, draw(done.partition, p, rng)) for p, part in enumerate(done.parts)]


def check_means(done: Split, parts: list[ModelProto], larger: Split) -> None:
    """Each larger part computes the mean of those in it, in ONNX Runtime."""
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    names, size = done.plan.mean, len(parts) // larger.plan.k
    assert names

    def results(models: list[ModelProto]) -> list[dict[str, Array]]:
        return [Session(tap(with_arrays(model, {}), names, done.analysis)).run(feed) for model in models]

    small, large = results(parts), results(list(larger.parts))
    for p, found in enumerate(large):
        for name in names:
            mean = np.mean([part[name] for part in small[p * size : (p + 1) * size]], axis=0)
            spread = max(float(mean.std()), 0.1 * float(np.abs(mean).max()), 1e-6)
            np.testing.assert_allclose(found[name], mean, rtol=0, atol=TOLERANCE * spread, err_msg=name)


def check_levels(model: ModelProto, levels: tuple[int, ...], order: str = "contiguous") -> None:
    """Merge level by level: both oracles hold at each, and the whole is the one that merging at once gives."""
    first = split(model, levels[0], order=order)
    now, parts = first, trained(first)
    at_once = merge(first.plan, [arrays(part) for part in parts])
    for fine, coarse in pairwise(levels):
        assert now.plan.k == fine
        larger = merge_to(now, [arrays(part) for part in parts], coarse)
        verdict = verify(larger.analysis, larger.plan, parts=larger.parts, whole=larger.whole)
        assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
        check_means(now, parts, larger)
        now, parts = larger, list(larger.parts)
    assert list(now.whole.graph.node) == list(first.whole.graph.node)
    merged = merge(now.plan, [arrays(part) for part in parts])
    held = {t.name for t in first.whole.graph.initializer} & at_once.keys()
    assert held <= merged.keys()
    for name in held:
        np.testing.assert_allclose(merged[name], at_once[name], rtol=1e-5, atol=1e-7, err_msg=name)


def replicated() -> ModelProto:
    """A layer that is too narrow to be divided, between others."""
    net = Net(("x", ("N", 5)))
    h = net.op("Tanh", net.linear("x", 5, 8, name="fc"))
    h = net.op("Tanh", net.linear(h, 8, 3, name="narrow"))
    h = net.op("Tanh", net.linear(h, 3, 8, name="up"))
    return net.model(net.linear(h, 8, 2, name="y"))


NETWORKS = {**BUILDERS, "replicated": replicated}
NAMES = [
    *("cifar10", "concat", "depthwise", "groupnorm", "grouped", "layernorm", "lenet", "lrn", "qkv"),
    *("recurrent", "replicated", "residual", "shuffle", "slice_split", "squeeze_excite"),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
def test_four_parts_by_way_of_two(name: str, order: str) -> None:
    check_levels(NETWORKS[name](), (4, 2), order)


@pytest.mark.parametrize(
    "name", ["grouped_query", "rotary", "fused_chunk", "gate_experts", "windows", "tied_embedding"]
)
def test_exported_attention(name: str) -> None:
    check_levels(export(name, "torchscript", 17, dynamic=True), (4, 2))


@pytest.mark.parametrize("levels", [(8, 4, 2), (8, 2), (6, 3), (6, 2), (12, 6, 2), (9, 3)])
@pytest.mark.parametrize("name", ["lrn", "replicated", "mlp"])
def test_any_depth(name: str, levels: tuple[int, ...]) -> None:
    net = Net(("x", ("N", 3, 4, 4)))
    h = net.op("Relu", net.conv("x", 3, 24, kernel=3, name="conv1"))
    h = net.op("LRN", h, size=3, alpha=0.5) if name == "lrn" else h
    h = net.op("Relu", net.conv(h, 24, 27, name="conv2"))
    h = net.op("Flatten", net.op("GlobalAveragePool", h), axis=1)
    if name == "replicated":
        h = net.op("Tanh", net.linear(net.op("Tanh", net.linear(h, 27, 2, name="narrow")), 2, 27, name="up"))
    check_levels(net.model(net.linear(h, 27, 3, name="y")), levels)


def test_random_networks() -> None:
    compared = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        model = Recipe(lambda n, rng=rng: int(rng.integers(n)), STEPS, 5).network()
        try:
            done = split(model, 4)
            verify(done.analysis, done.plan)
        except OnnxpartError:
            continue
        if done.plan.mean:
            check_levels(model, (4, 2))
            compared += 1
    assert compared > 5


BASE = split(BUILDERS["chain"](), 2).plan


def plan_for(axes: list[list[int]], reduces: bool, k: int) -> Plan:
    """A plan of one initializer, from the part of every index along each axis (-1: in every part)."""
    blocks = []
    for p in range(k):
        kept = [np.flatnonzero([q in (p, -1) for q in parts]) for parts in axes]
        blocks.append((tuple(None if len(i) == len(n) else to_ranges(i) for i, n in zip(kept, axes, strict=True)),))
    initializer = InitializerPlan("w", tuple(map(len, axes)), tuple(blocks), reduces=reduces)
    return replace(BASE, k=k, shares=(1,) * k, initializers=(initializer,))


@st.composite
def index_maps(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """For each axis the part of every index, and K."""
    k = draw(st.sampled_from([4, 6, 8, 9, 12]))
    mixed = st.lists(st.integers(-1, k - 1), max_size=5).flatmap(lambda more: st.permutations([*range(k), *more]))
    return draw(st.lists(st.one_of(mixed, st.just([-1, -1, -1])), min_size=1, max_size=3)), k


@settings(max_examples=100)
@given(maps=index_maps(), reduces=st.booleans(), seed=st.integers(0, 99))
def test_index_maps_compose(maps: tuple[list[list[int]], int], reduces: bool, seed: int) -> None:
    """Weights, momenta and second moments, whatever the index maps: level by level is at once."""
    axes, k = maps
    fine, rng = plan_for(axes, reduces, k), np.random.default_rng(seed)
    shapes = [fine.initializers[0].part_shape(p) for p in range(k)]
    states = [
        OptimizerState("adam", p, {"w": {slot: rng.random(shape) for slot in ("exp_avg", "exp_avg_sq")}})
        for p, shape in enumerate(shapes)
    ]
    at_once = merge_states(fine, states)
    divisors = [n for n in range(2, k) if k % n == 0]
    larger = divisors[seed % len(divisors)]
    size = k // larger
    coarse = plan_for([[p if p < 0 else p // size for p in parts] for parts in axes], reduces, larger)
    level = merge_states_to(fine, coarse, states)
    assert [state.step for state in level] == list(range(0, k, size))
    merged = merge_states(coarse, level)
    for slot, value in at_once.slots["w"].items():
        np.testing.assert_allclose(merged.slots["w"][slot], value, rtol=1e-12, err_msg=slot)


@pytest.mark.parametrize("name", ["grouped", "shuffle"])
def test_blocks_of_grouped_weights_compose(name: str) -> None:
    done = split(BUILDERS[name](), 4, order="random")
    assert any(len(blocks) > 1 for i in done.plan.initializers for blocks in i.blocks)
    coarse = coarsen(done.partition, 2).plan
    for p in range(2):
        for inside in within(done.plan, coarse, p).initializers:
            fine = done.plan.by_name[inside.name]
            whole = np.arange(np.prod(fine.shape)).reshape(fine.shape)
            larger = slice_array(coarse.by_name[inside.name], p, whole)
            for m in range(2):
                want = slice_array(fine, 2 * p + m, whole)
                np.testing.assert_array_equal(slice_array(inside, m, larger), want)


def test_a_reduction_is_divided_by_all_that_was_merged() -> None:
    done = split(BUILDERS["regression_mlp"](), 4)
    ones = [{"y.weight": np.ones(done.plan.by_name["y.weight"].part_shape(p))} for p in range(4)]
    coarse = coarsen(done.partition, 2).plan
    halves = [merge(within(done.plan, coarse, p), ones[2 * p : 2 * p + 2]) for p in range(2)]
    assert all((half["y.weight"] == 1 / 2).all() for half in halves)
    assert (merge(coarse, halves)["y.weight"] == 1 / 4).all()


def test_the_check_tells_a_reduction_that_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    def undivided(fine: Plan, coarse: Plan, part: int) -> Plan:
        inside = within(fine, coarse, part)
        return replace(inside, initializers=tuple(replace(i, reduces=False) for i in inside.initializers))

    done = split(BUILDERS["lenet"](), 4)
    parts = trained(done)
    monkeypatch.setattr(sys.modules["onnxpart.merging.hierarchy"], "within", undivided)
    larger = merge_to(done, [arrays(part) for part in parts], 2)
    with pytest.raises(AssertionError):
        check_means(done, parts, larger)


def test_training_in_between_is_kept() -> None:
    """What lies between the parts of a larger part is zero after the merge, and the next merge keeps what it became."""
    done = split(BUILDERS["regression_mlp"](), 4)
    halves = merge_to(done, [arrays(part) for part in trained(done)], 2)
    values = [arrays(part) for part in halves.parts]
    assert all(np.count_nonzero(v["fc2.weight"] == 0) == v["fc2.weight"].size // 2 for v in values)
    changed = [{name: a + a.dtype.type(1) for name, a in v.items()} for v in values]
    merged = merge(halves.plan, changed)["fc2.weight"]
    for p, half in enumerate(changed):
        np.testing.assert_array_equal(slice_array(halves.plan.by_name["fc2.weight"], p, merged), half["fc2.weight"])
    assert np.count_nonzero(merged == 0) == merged.size // 2


def test_momenta_of_what_cannot_be_divided_merge_by_level() -> None:
    """A larger part holds it once for each smaller one, and so does its optimizer's state."""
    done = split(replicated(), 4)
    names = [i.name for i in done.plan.initializers]
    states = [
        OptimizerState(
            "sgd", 7, {n: {"momentum_buffer": np.full(done.plan.by_name[n].part_shape(p), p)} for n in names}
        )
        for p in range(4)
    ]
    halves = merge_to(done, [arrays(part) for part in done.parts], 2)
    level = merge_states_to(done.plan, halves.plan, states)
    for half, state in zip(halves.parts, level, strict=True):
        shapes = {t.name: tuple(t.dims) for t in half.graph.initializer if t.name in state.slots}
        assert {"narrow.bias__part0", "narrow.bias__part1", "fc.weight"} <= shapes.keys()
        assert all(state.slots[name]["momentum_buffer"].shape == shape for name, shape in shapes.items())
    kept = {t.name for t in halves.parts[0].graph.initializer}
    level = [replace(state, slots={n: s for n, s in state.slots.items() if n in kept}) for state in level]
    merged, at_once = merge_states(halves.plan, level), merge_states(done.plan, states)
    for name in {t.name for t in done.whole.graph.initializer} & at_once.slots.keys():
        np.testing.assert_allclose(merged.slots[name]["momentum_buffer"], at_once.slots[name]["momentum_buffer"])


def test_where_the_layers_divide_evenly_a_level_is_the_split_into_as_many() -> None:
    done = split(BUILDERS["cifar10"](), 4)
    halves = merge_to(done, [arrays(part) for part in done.parts], 2)
    again = plan(done.analysis, 2)
    assert halves.plan == again
    assert again != done.plan


def test_numbers_that_do_not_fit_are_refused() -> None:
    done = split(BUILDERS["regression_mlp"](), 4)
    values = [arrays(part) for part in done.parts]
    for k in (-2, 0, 1, 3, 4, 8):
        with pytest.raises(UsageError, match=rf"4 parts can't be merged into {k}; choose 2\."):
            merge_to(done, values, k)
    pair = split(BUILDERS["regression_mlp"](), 2)
    with pytest.raises(UsageError, match=r"2 parts can't be merged into 2; merge them to the whole\."):
        merge_to(pair, values[:2], 2)
    with pytest.raises(MergeError, match=r"part 3 has no initializer 'fc2\.bias'"):
        merge_to(done, [*values[:3], {n: a for n, a in values[3].items() if n != "fc2.bias"}], 2)
    with pytest.raises(MergeError, match=r"part 3: 'fc2\.bias' has shape"):
        merge_to(done, [*values[:3], {**values[3], "fc2.bias": np.zeros(3, np.float32)}], 2)
    with pytest.raises(MergeError, match="the plan has 4 parts, but 3 were given"):
        merge_to(done, values[:3], 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with networks in four parts each."""
    monkeypatch.chdir(tmp_path)
    networks = {"lenet": BUILDERS["lenet"](), "lrn": BUILDERS["lrn"](), "replicated": replicated()}
    for name, model in networks.items():
        onnx.save_model(model, f"{name}.onnx")
        run("split", f"{name}.onnx", "-k", 4, "-o", name, "--init", "he")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["lenet", "lrn", "replicated"])
def test_folders_merge_level_by_level(name: str) -> None:
    said = run("merge", name, "--to", 2).stdout
    assert said == f"merged the parts of {name} to 2, wrote them and the whole to {name}_2\n"
    files = ["part0.onnx", "part1.onnx", "plan.json", "whole.onnx"]
    assert sorted(p.name for p in Path(f"{name}_2").iterdir()) == ([] if name == "lenet" else ["original.onnx"]) + files
    for path in Path(f"{name}_2").glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
    assert "verified" in run("verify", f"{name}_2").stdout
    run("merge", f"{name}_2", "-o", "by_level.onnx")
    run("merge", name, "-o", "at_once.onnx")
    found, want = onnx.load_model("by_level.onnx").graph, onnx.load_model("at_once.onnx").graph
    assert list(found.node) == list(want.node)
    by_level, at_once = arrays("by_level.onnx"), arrays("at_once.onnx")
    assert by_level.keys() == at_once.keys()
    for key, value in at_once.items():
        np.testing.assert_allclose(by_level[key], value, rtol=1e-6, err_msg=key)


@pytest.mark.usefixtures("here")
def test_a_level_takes_parts_from_elsewhere_and_says_what_it_wrote() -> None:
    for p in range(4):
        save_file(arrays(f"lrn/part{p}.onnx"), f"p{p}.safetensors")
    parts = [word for p in range(4) for word in ("--parts", f"p{p}.safetensors")]
    data = run_json("merge", "lrn", "--to", 2, "-o", "a", *parts)
    assert data.keys() == FIELDS | {"folder", "files"}
    assert (data["k"], data["shares"], data["duplicated"]) == (2, [1, 1], ["LRN 'norm'"])
    run("merge", "lrn", "--to", 2, "-o", "b")
    for path in Path("a").iterdir():
        assert path.read_bytes() == (Path("b") / path.name).read_bytes()
    assert "a exists already" in run("merge", "lrn", "--to", 2, "-o", "a", code=1).stderr
    run("merge", "lrn", "--to", 2, "-o", "a", "--force")


@pytest.mark.usefixtures("here")
def test_what_a_level_cannot_do_is_refused() -> None:
    assert "4 parts can't be merged into 3; choose 2." in run("merge", "lrn", "--to", 3, code=2).stderr
    for options in (["--into", "original"], ["--normalize", "output"], ["--initializers", "i.safetensors"]):
        assert "error: --to writes parts; leave out" in run("merge", "lrn", "--to", 2, *options, code=2).stderr
    assert not Path("lrn_3").exists()
    assert not Path("lrn_2").exists()
    run("merge", "replicated", "--to", 2)
    refused = run("merge", "replicated_2", "--into", "original", code=1).stderr
    assert "once per smaller part in them; merge into the duplicated whole." in refused


@pytest.mark.usefixtures("here")
def test_external_data_give_the_same_level() -> None:
    outside(BUILDERS["lenet"](), "external.onnx")
    run("split", "external.onnx", "-k", 4, "-o", "external", "--init", "he")
    for name in ("external", "lenet"):
        run("merge", name, "--to", 2)
    assert Path("external_2/part0.onnx.data").exists()
    for p in range(2):
        inline, external = arrays(f"lenet_2/part{p}.onnx"), arrays(f"external_2/part{p}.onnx")
        assert inline.keys() == external.keys()
        for name, value in inline.items():
            np.testing.assert_array_equal(external[name], value)
