"""Independent subnet training: rounds of the parts, each divided anew from what the one before was merged to."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models import BUILDERS
from onnxpart import OptimizerState, Plan, arrays, merge, merge_states, split
from onnxpart.merging.folder import read_plan
from onnxpart.merging.optimizer_state import load_state
from onnxpart.planning.plan import slice_array
from onnxpart.storage.rows import Array
from onnxpart.torch.importer.module import load_weights, weights
from onnxpart.torch.part_random import seed_of
from onnxpart.torch.runs.task import RunOptions, prepare
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import train
from tests.networks.command import MODULE, equal, lines, run, run_json
from tests.networks.copies import with_arrays

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
MEETING = {"logits.weight"}
"""Where the parts' contributions meet."""
SPANS = (range(2), range(2, 4))
COMMON = ("--batch-size", 10, "--optimizer", "sgd", "--lr", 0.1, "--engine", "series", "--recipe", "paper")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: networks of 3 classes, with samples for each."""
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    for name in ("chain", "lrn", "layernorm"):
        onnx.save_model(BUILDERS[name](), f"{tmp_path}/{name}.onnx")
        (shape,) = (value.type.tensor_type.shape for value in BUILDERS[name]().graph.input)
        x = rng.normal(0, 0.2, (60, *(size.dim_value for size in shape.dim[1:]))).astype(np.float32)
        x[np.arange(60), ..., y] += 1
        samples = {"x": x[:45], "target": y[:45], "test_x": x[45:], "test_target": y[45:]}
        np.savez(tmp_path / f"{name}.npz", **samples)  # type: ignore[arg-type]
    shutil.copy(tmp_path / "chain.npz", tmp_path / "data.npz")
    (tmp_path / "own_samples.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "own_samples", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["chain", "lrn", "layernorm"])
def test_rounds_train_and_merge_at_the_end(here: Path, name: str) -> None:
    options = ("--data", f"npz:{name}.npz", *COMMON, "--epochs", 10, "--merge-at", 7, "--rounds", 3)
    found = run_json("fit", f"{name}.onnx", "-o", "out", *options)
    assert (found["merge_at"], found["rounds"]) == (7, [2, 4, 7])
    for curve in (*found["parts"], found["parts"][0] + found["whole"]):
        assert [e["epoch"] for e in curve] == list(range(1, len(curve) + 1))
    for curve in found["parts"]:
        assert len(curve) == 7
        assert all(before["seconds"] < after["seconds"] for before, after in pairwise(curve))
    assert found["whole"][-1]["loss"] < 0.7 * found["parts"][0][0]["loss"]
    assert found["deviation"] < 1e-4
    assert "10 epochs, merged after 7 (the last of 3 rounds), on " in Path("out/report.md").read_text()
    shown = [line["epoch"] for line in lines("out/metrics.jsonl") if line.get("part") == 1]
    assert shown == list(range(7))
    plan = read_plan(here / "out" / "parts")
    assert (plan.order, plan.seed) == ("random", seed_of(0, 2))
    merged = merge(plan, [arrays(here / "out" / "parts" / f"part{p}.onnx") for p in range(2)])
    run("fit", f"{name}.onnx", "-o", "short", *options, "--epochs", 7)
    for key, array in arrays("short/trained.onnx").items():
        if key in merged:
            np.testing.assert_array_equal(array, merged[key])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.usefixtures("here")
def test_a_round_starts_from_what_the_one_before_was_merged_to(optimizer: str) -> None:
    """The same by hand: slices of the merged network, where the parts meet times K, their states likewise."""
    lr = 0.1 if optimizer == "sgd" else 0.01
    options = ("--data", "npz:chain.npz", *COMMON, "--epochs", 4, "--merge-at", 4, "--rounds", 2, "--seed", 5)
    run("fit", "chain.onnx", "-o", "out", *options, "--optimizer", optimizer, "--lr", lr, "--schedule", "cosine")
    settings = Settings(4, optimizer, lr, schedule="cosine", seed=5)  # type: ignore[arg-type]
    by_hand = RunOptions("npz:chain.npz", "cross_entropy", settings, batch_size=10)
    merged, state = arrays("chain.onnx"), OptimizerState(optimizer, 0, {})
    for number in range(2):
        divided = split(with_arrays(onnx.load_model("chain.onnx"), merged), 2, order="random", seed=seed_of(5, number))
        task = prepare(divided.parts, by_hand)
        for module in task.modules if number else []:
            sliced = weights(module)
            for name in MEETING:
                sliced[name] *= 2
            load_weights(module, sliced)
        states = [sliced_state(state, divided.plan, p) for p in range(2)]
        data = task.data.train
        done = train(task.modules, data, task.loss, settings, engine="series", epochs=SPANS[number], states=states)
        merged |= merge(divided.plan, [weights(module) for module in task.modules])
        state = merge_states(divided.plan, [result.state for result in done])
    found, moments = arrays("out/trained.onnx"), load_state("out/trained.optimizer.safetensors")
    assert found.keys() == merged.keys()
    for name, array in merged.items():
        np.testing.assert_array_equal(found[name], array)
    assert moments.step == state.step == 4 * 5
    for name, slots in state.slots.items():
        for slot, array in slots.items():
            np.testing.assert_array_equal(moments.slots[name][slot], array)


def sliced_state(state: OptimizerState, plan: Plan, part: int) -> OptimizerState:
    slots: dict[str, dict[str, Array]] = {}
    for name, found in state.slots.items():
        factor = 2 if name in MEETING else 1
        for slot, array in found.items():
            scale = factor**2 if slot == "exp_avg_sq" else factor
            slots.setdefault(name, {})[slot] = slice_array(plan.by_name[name], part, array) * scale
    return OptimizerState(state.kind, state.step, slots)


@pytest.mark.usefixtures("here")
def test_the_engines_train_the_same_rounds() -> None:
    options = ("--data", "npz:chain.npz", *COMMON, "--epochs", 3, "--merge-at", 3, "--rounds", 2)
    for engine in ("series", "fused"):
        run("fit", "chain.onnx", "-o", engine, *options, "--engine", engine)
    series, fused = (arrays(f"{engine}/trained.onnx") for engine in ("series", "fused"))
    for name, array in series.items():
        np.testing.assert_allclose(fused[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("here")
def test_a_run_that_was_stopped_goes_on_in_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "own_samples:samples", *COMMON, "--epochs", 5, "--merge-at", 4, "--rounds", 3)
    run("fit", "chain.onnx", "-o", "straight", *options)
    for stop, folder in ((80, "to2"), (150, "to4"), (210, "whole")):  # of 1, 1, 2 and 1 epochs of 45
        shutil.rmtree("out", ignore_errors=True)
        monkeypatch.delitem(sys.modules, "own_samples")
        monkeypatch.setenv("STOP", str(stop))
        stopped = run("fit", "chain.onnx", "-o", "out", *options, code=130)
        assert "to go on: give the same command with --resume.\n" in stopped.stderr
        assert f"{folder} to go on" in stopped.stderr
        monkeypatch.delenv("STOP")
        last = run("fit", "chain.onnx", "-o", "out", *options, "--resume", "--rounds", 2, code=1).stderr.splitlines()[
            -1
        ]
        assert "a run of another split; resume with the same model, -k, rounds, order and seed." in last
        run("fit", "chain.onnx", "-o", "out", *options, "--resume")
        assert equal("out/trained.onnx", "straight/trained.onnx")
        assert equal("out/parts/part0.onnx", "straight/parts/part0.onnx")
        one, other = (json.loads(Path(f"{name}/report.json").read_text()) for name in ("out", "straight"))
        for key in ("parts", "whole"):
            losses = [[e["train_loss"] for e in np.ravel(report[key])] for report in (one, other)]
            assert losses[0] == losses[1]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--rounds", 0), "0 rounds aren't possible in 4 epochs of the parts; choose 1 to 4."),
        (("--rounds", 5), "5 rounds aren't possible in 4 epochs of the parts; choose 1 to 4."),
        (
            ("--rounds", 2, "--order", "interleaved"),
            "several rounds are divided at random, not interleaved; leave out --order.",
        ),
    ],
)
def test_rounds_that_make_no_sense(options: tuple[object, ...], sentence: str) -> None:
    command = ("fit", "chain.onnx", "-o", "out", "--data", "npz:chain.npz", "--epochs", 4, *options)
    assert run(*command, code=2).stderr == f"error: {sentence}\n"
    assert not Path("out").exists()
