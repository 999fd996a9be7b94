"""`train` and `fit` from end to end: what they write, that a run goes on where it was stopped, and what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from models import BUILDERS
from onnxpart import arrays, merge, split
from onnxpart.cli import training as cli_train
from onnxpart.errors import OnnxpartError
from onnxpart.frontend.load import load
from onnxpart.ir.trainable import FROZEN
from onnxpart.merging.folder import read_plan
from onnxpart.merging.optimizer_state import load_state, merge_states
from onnxpart.storage.onnx_file import save
from onnxpart.torch import import_onnx
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.runs import estimate
from onnxpart.torch.runs.estimate import Estimate, Estimates
from onnxpart.torch.runs.recipe import Kind
from onnxpart.torch.runs.trained_file import deviation, with_weights
from onnxpart.torch.training.objective import find_objective
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import EngineKind, OptimizerKind, ScheduleKind
from tests.networks.command import MODULE, equal, lines, process, run, run_json

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
COMMON = ("--batch-size", 10, "--optimizer", "sgd", "--lr", 0.1, "--engine", "series")
DATA = ("--data", "npz:data.npz", *COMMON)
PAPER = ("--recipe", "paper")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a network of 3 classes, the same with a softmax, samples, and a module."""
    chain = BUILDERS["chain"]()
    onnx.save_model(chain, tmp_path / "chain.onnx")
    chain.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["beliefs"], axis=1, name="softmax"))
    chain.graph.output[0].name = "beliefs"
    onnx.save_model(chain, tmp_path / "softmax.onnx")
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    x = rng.normal(0, 0.2, (60, 2, 4, 4)).astype(np.float32)
    x[np.arange(60), 0, y] += 1
    samples = {"x": x[:45], "target": y[:45], "test_x": x[45:], "test_target": y[45:]}
    np.savez(tmp_path / "data.npz", **samples)  # type: ignore[arg-type]
    np.savez(tmp_path / "wrong.npz", x=x[:3, 0:2, 0], target=y[:3])
    (tmp_path / "own_samples.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "own_samples", raising=False)
    return tmp_path


def samples() -> dict[str, Any]:
    with np.load("data.npz") as file:
        return dict(file)


def listed(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.usefixtures("here")
def test_fit_is_the_whole_method() -> None:
    found = run_json("fit", "chain.onnx", "--epochs", 12, "--merge-at", 4, "-o", "out", *DATA, *PAPER)
    assert listed("out") == [
        "curves_loss.svg", "curves_metric.svg", "metrics.jsonl", "partition.html", "parts", "report.json", "report.md",
        "run.yaml", "trained.onnx",
        "trained.optimizer.safetensors",
    ]  # fmt: skip
    assert json.loads(Path("out/report.json").read_text()) == found
    assert [len(curve) for curve in (*found["parts"], found["whole"])] == [4, 4, 8]
    assert [e["epoch"] for e in found["whole"]] == list(range(5, 13))
    assert found["whole"][-1]["loss"] < 0.5 * found["parts"][0][0]["loss"]
    assert found["sizes"]["whole"]["parameters"] > 2 * found["sizes"]["parts"][0]["parameters"]
    assert found["seconds"]["alone"] == pytest.approx(12 * found["seconds"]["whole_epoch"])
    assert found["speedup"] == pytest.approx(
        found["seconds"]["alone"] / (found["seconds"]["parts"] + found["seconds"]["whole"])
    )
    assert found["deviation"] < 1e-4
    assert "<title>chain.onnx in 2 parts</title>" in Path("out/partition.html").read_text()
    page = Path("out/report.md").read_text()
    assert "# chain.onnx in 2 parts" in page
    assert "\n![curves_loss](curves_loss.svg)\n" in page
    assert "\n[partition](partition.html)\n" in page
    assert f"| whole, trained on | 12 | {found['whole'][-1]['train_loss']:.4g} |" in page
    recorded = [line for line in lines("out/metrics.jsonl") if "part" in line and line["stage"] == "whole"]
    assert [line["loss"] for line in recorded] == [e["loss"] for e in found["whole"]]

    data = samples()
    logits = ort.InferenceSession("out/trained.onnx").run(None, {"x": data["test_x"]})[0]
    assert (logits.argmax(1) != data["test_target"]).mean() == pytest.approx(found["whole"][-1]["metric"])


@pytest.mark.usefixtures("here")
def test_a_run_is_done_again_by_one_file() -> None:
    run("fit", "chain.onnx", "--epochs", 3, "-o", "out", "--seed", 3, "--outputs", "logits", "--parts-lr", 0.05, *DATA)
    again = run("fit", "--config", "out/run.yaml", "-o", "again")
    assert equal("out/trained.onnx", "again/trained.onnx")
    assert Path("again/run.yaml").read_text() == Path("out/run.yaml").read_text().replace("out: out", "out: again")
    run("fit", "--config", "again/run.yaml", "--seed", 4, "--force")
    assert not equal("out/trained.onnx", "again/trained.onnx")
    assert again.stderr.count("\n") > 1


def test_what_the_whole_starts_from_is_merged(here: Path) -> None:
    run("fit", "chain.onnx", "--epochs", 2, "--merge-at", 2, "-o", "out", *DATA)
    plan = read_plan(here / "out" / "parts")
    merged = merge(plan, [arrays(here / "out" / "parts" / f"part{p}.onnx") for p in range(2)])
    found = arrays("out/trained.onnx")
    for name, array in merged.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.usefixtures("here")
def test_train_does_to_a_folder_what_fit_does_first() -> None:
    run("fit", "chain.onnx", "--epochs", 3, "--merge-at", 3, "-o", "out", *DATA, *PAPER)
    run("split", "chain.onnx", "-k", 2, "-o", "parts")
    done = run("train", "parts", "--epochs", 3, *DATA)
    for p in range(2):
        assert equal(f"parts/part{p}.onnx", f"out/parts/part{p}.onnx")
        assert done.stdout.splitlines()[2 * p].startswith(f"parts/part{p}.onnx: loss in training ")
    states = [f"part{p}.optimizer.safetensors" for p in range(2)]
    assert listed("parts") == sorted(["part0.onnx", "part1.onnx", *states, "plan.json", "training", "whole.onnx"])
    assert listed("parts/training") == ["metrics.jsonl"]
    run("verify", "parts")
    run("merge", "parts", "-o", "merged.onnx")
    assert equal("merged.onnx", "out/trained.onnx")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_momenta_merge_and_go_on_with_the_weights(optimizer: str) -> None:
    options = ("--epochs", 2, *DATA, "--optimizer", optimizer)
    run("split", "chain.onnx", "-k", 4, "-o", "parts")
    run("train", "parts", *options)
    states = [load_state(f"parts/part{p}.optimizer.safetensors") for p in range(4)]
    run("merge", "parts", "-o", "once.onnx")
    expected, found = merge_states(read_plan(Path("parts")), states), load_state("once.optimizer.safetensors")
    assert (found.kind, found.step) == (optimizer, 10)
    assert found.slots.keys() == expected.slots.keys() != set()
    for name, slots in expected.slots.items():
        for slot, array in slots.items():
            np.testing.assert_array_equal(found.slots[name][slot], array)

    run("merge", "parts", "--to", 2, "-o", "halves")
    run("merge", "halves", "-o", "twice.onnx")
    levels = load_state("twice.optimizer.safetensors")
    for name, slots in found.slots.items():
        for slot, array in slots.items():
            np.testing.assert_allclose(levels.slots[name][slot], array, rtol=1e-5, atol=1e-7)

    shutil.copy("once.onnx", "alone.onnx")
    note = f"note: {optimizer} goes on from once.optimizer.safetensors"
    assert note in run("train", "once.onnx", *options).stderr.splitlines()
    assert "goes on" not in run("train", "alone.onnx", *options).stderr
    assert not equal("once.onnx", "alone.onnx")
    assert load_state("once.optimizer.safetensors").step == 20


@pytest.mark.usefixtures("here")
def test_momenta_of_another_optimizer_are_left_alone() -> None:
    run("split", "chain.onnx", "-k", 2, "-o", "parts")
    run("train", "parts/part0.onnx", "--epochs", 1, *DATA)
    run("merge", "parts")
    assert not Path("parts/merged.optimizer.safetensors").exists()
    note = "note: adam starts without state: parts/part0.optimizer.safetensors was written by sgd"
    assert note in run("train", "parts/part0.onnx", "--epochs", 1, *DATA, "--optimizer", "adam").stderr.splitlines()
    run("train", "parts/part1.onnx", "--epochs", 1, *DATA)
    run("merge", "parts", "--force")
    assert not Path("parts/merged.optimizer.safetensors").exists()
    run("train", "parts/part1.onnx", "--epochs", 1, *DATA, "--optimizer", "adam")
    run("merge", "parts", "--force")
    assert Path("parts/merged.optimizer.safetensors").exists()
    run("widen", "parts/part0.onnx", "-o", "parts/merged.onnx", "--force")
    assert not Path("parts/merged.optimizer.safetensors").exists()
    run("merge", "parts", "--force")
    Path("parts/part0.optimizer.safetensors").unlink()
    run("merge", "parts", "--force")
    assert not Path("parts/merged.optimizer.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_train_goes_on_with_one_network_at_its_logits() -> None:
    found = run_json("train", "softmax.onnx", "--epochs", 8, *DATA)
    (trained,) = found["trained"]
    assert trained["curve"][-1]["loss"] < trained["curve"][0]["loss"]
    assert trained["deviation"] < 1e-4
    note = "note: cross_entropy is taken at 'logits', in front of the Softmax: there it is exact"
    shutil.rmtree("softmax.training")
    assert note in run("train", "softmax.onnx", "--epochs", 1, *DATA).stderr.splitlines()
    model = onnx.load_model("softmax.onnx")
    assert [value.name for value in model.graph.output] == ["beliefs"]
    assert [node.op_type for node in model.graph.node][-1] == "Softmax"


@pytest.mark.usefixtures("here")
def test_a_softmax_in_a_local_function_is_seen() -> None:
    model = onnx.load_model("softmax.onnx")
    node = model.graph.node[-1]
    body = onnx.helper.make_node("Softmax", ["a"], ["b"], axis=1)
    model.functions.append(onnx.helper.make_function("own", "Beliefs", ["a"], ["b"], [body], model.opset_import))
    node.op_type, node.domain = "Beliefs", "own"
    del node.attribute[:]
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    onnx.checker.check_model(model)
    onnx.save_model(model, "function.onnx")
    assert "in front of the Softmax" in run("train", "function.onnx", "--epochs", 2, *DATA).stderr
    run("train", "softmax.onnx", "--epochs", 2, *DATA)
    assert equal("function.onnx", "softmax.onnx")


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        return result


@pytest.mark.usefixtures("here")
def test_norms_that_an_export_folded_are_missed_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Normed().eval(), (torch.zeros(2, 2, 4, 4),), "folded.onnx", input_names=["x"], dynamo=False,
                          dynamic_axes={"x": {0: "N"}})  # fmt: skip
    command = ("fit", "folded.onnx", "--epochs", 2, *DATA)
    done = process(sys.executable, "-m", "onnxpart", *map(str, command))
    assert done.returncode == 0
    warning = "warning: batch norms were folded into convolutions when the model was exported, and dropouts left out, "
    assert [line.startswith(warning) for line in done.stderr.splitlines()].count(True) == 1


def test_external_data_stay_external(here: Path) -> None:
    model = onnx.load_model("chain.onnx")
    onnx.save_model(model, "big.onnx", save_as_external_data=True, location="big.onnx.data", size_threshold=0)
    run("train", "big.onnx", "--epochs", 2, *DATA)
    run("train", "chain.onnx", "--epochs", 2, *DATA)
    assert equal("big.onnx", "chain.onnx")
    light = onnx.load_model(here / "big.onnx", load_external_data=False)
    large = [t for t in light.graph.initializer if np.prod(t.dims) * 4 >= 1]
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in large)
    assert [n for n in listed(".") if n.startswith("big.onnx")] == ["big.onnx", "big.onnx.1.data"]


@pytest.mark.usefixtures("here")
def test_the_whole_may_begin_as_copies_of_one_part() -> None:
    onnx.save_model(BUILDERS["residual"](), "deep.onnx")
    options = ("--epochs", 3, "--merge-at", 2, "--grow", "widen", "--blocks", 1, *DATA)
    found = run_json("fit", "deep.onnx", *options, "-o", "out")
    assert (found["grow"], len(found["parts"]), len(found["sizes"]["parts"])) == ("widen", 1, 2)
    trained = arrays("out/parts/part0.onnx")
    untrained = [arrays(part) for part in split("deep.onnx", 2, init="scaled").parts]
    assert not np.array_equal(trained["stem.weight"], untrained[0]["stem.weight"])
    assert np.array_equal(arrays("out/parts/part1.onnx")["stem.weight"], untrained[1]["stem.weight"])
    run("fit", "deep.onnx", *options[:2], "--merge-at", 3, *options[4:], "-o", "at_once")
    run_json("widen", "at_once/parts/part0.onnx", "-o", "wide.onnx")
    assert equal("wide.onnx", "at_once/trained.onnx")


@pytest.mark.usefixtures("here")
def test_parts_with_few_of_their_blocks_are_deep_when_they_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save_model(BUILDERS["residual"](), "deep.onnx")
    options = ("--data", "own_samples:samples", "--epochs", 3, "--merge-at", 2, *COMMON)
    found = run_json("fit", "deep.onnx", "--blocks", 1, "-o", "straight", *options)
    assert found["blocks"] == 1
    part = arrays("straight/parts/part0.onnx")
    assert np.array_equal(part["block1.expand.weight"], part["block2.expand.weight"])
    assert part["block1.project.bias"].any() > part["block2.project.bias"].any()
    whole = arrays("straight/trained.onnx")
    assert not np.array_equal(whole["block1.expand.weight"], whole["block2.expand.weight"])
    monkeypatch.delitem(sys.modules, "own_samples")
    monkeypatch.setenv("STOP", "110")  # in the whole's epoch
    run("fit", "deep.onnx", "--blocks", 1, "-o", "out", *options, code=130)
    monkeypatch.delenv("STOP")
    refused = run("fit", "deep.onnx", "-o", "out", *options, "--resume", code=1)
    assert ", 1 blocks' there and is " in refused.stderr
    run("fit", "deep.onnx", "--blocks", 1, "-o", "out", *options, "--resume")
    assert equal("out/trained.onnx", "straight/trained.onnx")


def test_ctrl_c_leaves_a_checkpoint_and_the_run_goes_on_from_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "own_samples:samples", "--epochs", 4, "--merge-at", 2, *COMMON)
    run("fit", "chain.onnx", "-o", "straight", *options)
    for stop in (100, 170):  # in the second epoch of the parts, and in the whole's
        shutil.rmtree("out", ignore_errors=True)
        monkeypatch.delitem(sys.modules, "own_samples")
        monkeypatch.setenv("STOP", str(stop))
        stopped = run("fit", "chain.onnx", "-o", "out", *options, code=130)
        assert "to go on: give the same command with --resume.\n" in stopped.stderr
        assert stopped.stdout == ""
        assert (here / "out" / "checkpoints").is_dir()
        refused = run("fit", "chain.onnx", "-o", "out", *options, code=1)
        assert refused.stderr.startswith("error: out exists already; go on with --resume, ")
        monkeypatch.delenv("STOP")
        run("fit", "--config", "out/run.yaml", "--resume")
        assert equal("out/trained.onnx", "straight/trained.onnx")
        one, other = (json.loads(Path(f"{name}/report.json").read_text()) for name in ("out", "straight"))
        for key in ("parts", "whole"):
            losses = [[e["train_loss"] for e in np.ravel(report[key])] for report in (one, other)]
            assert losses[0] == losses[1]
        assert not (here / "out" / "checkpoints").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "again"), [("stream", ""), ("generator", "; the data are read again up to there")])
def test_a_stream_goes_on_where_it_was(name: str, again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", f"own_samples:{name}", "--steps-per-epoch", 3, "--epochs", 4, *COMMON)
    for folder in ("straight", "parts"):
        run("split", "chain.onnx", "-k", 2, "-o", folder)
    straight = run("train", "straight", *options)
    assert straight.stderr.count("the data end after 4 batches, and are then read from their beginning") == 1
    monkeypatch.delitem(sys.modules, "own_samples")
    monkeypatch.setenv("STOP", "95")  # in the third epoch
    run("train", "parts", *options, code=130)
    monkeypatch.delenv("STOP")
    resumed = run("train", "parts", *options, "--resume")
    assert f"from parts/training/checkpoints{again}\n" in resumed.stderr
    for p in range(2):
        assert equal(f"parts/part{p}.onnx", f"straight/part{p}.onnx")
    assert (
        "without a length; set the length of an epoch with --steps-per-epoch"
        in run("train", "chain.onnx", *options[:2], "--epochs", 1, code=1).stderr
    )


@pytest.mark.usefixtures("here")
def test_a_run_that_fails_at_once_leaves_nothing() -> None:
    options = ("--data", "own_samples:failing", "--steps-per-epoch", 9, "--epochs", 4, *COMMON)
    sentence = "error: the data can't be read (KeyError: 'lost'); check the code that yields them.\n"
    assert run("fit", "chain.onnx", "-o", "out", *options, code=1).stderr.endswith(sentence)
    assert not Path("out").exists()
    run("split", "chain.onnx", "-k", 2, "-o", "out")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert run("train", "out", *options, code=1).stderr.endswith(sentence)
    assert not Path("out/training/checkpoints").exists()
    run("fit", "chain.onnx", "-o", "out", "--data", "own_samples:nothing", *options[2:], "--force", code=2)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of all steps that are taken in series, in order."""
    used: list[float] = []
    step = Series.step

    def noted(self: Series, batches: Sequence[Batch], rate: float, number: int) -> torch.Tensor:
        used.append(rate)
        return step(self, batches, rate, number)

    monkeypatch.setattr(Series, "step", noted)
    return used


def cosine(rate: float, steps: int) -> list[float]:
    return [rate * (1 + np.cos(np.pi * i / steps)) / 2 for i in range(steps)]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_papers_recipe_has_one_schedule_and_one_state(schedule: str, rates: list[float]) -> None:
    options = (*DATA, "--epochs", 5, "--merge-at", 3, "--schedule", schedule, *PAPER)
    found = run_json("fit", "chain.onnx", "-o", "out", *options)
    np.testing.assert_allclose(rates, cosine(0.1, 25) if schedule == "cosine" else [0.1] * 25, rtol=1e-6)
    assert found["recipe"] == {
        "kind": "paper", "parts_lr": None, "schedule": schedule, "rates": {"parts": 0.1, "whole": 0.1}
    }  # fmt: skip
    assert load_state("out/trained.optimizer.safetensors").step == 25


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("optimizer", "options", "rate"), [
    ("sgd", (), 0.1), ("adam", (), 0.4), ("adamw", ("--parts-lr", 0.3), 0.3),
])  # fmt: skip
def test_parts_have_a_rate_and_the_whole_a_schedule_of_its_own(
    optimizer: str, options: tuple[object, ...], rate: float, rates: list[float]
) -> None:
    common = (*DATA, "-k", 4, "--epochs", 30, "--merge-at", 20, "--optimizer", optimizer)
    found = run_json("fit", "chain.onnx", "-o", "out", *common, *options)
    parts, whole = rates[:100], rates[100:]
    assert parts == pytest.approx([rate * min((i + 1) / 2, 1) for i in range(100)])
    assert whole == pytest.approx([x * min((i + 1) / 3, 1) for i, x in enumerate(cosine(0.1, 50))])
    assert found["recipe"]["rates"] == {"parts": pytest.approx(rate), "whole": 0.1}
    assert f"rates {rate:g} for the parts, 0.1 for the whole" in Path("out/report.md").read_text()
    state = load_state("out/trained.optimizer.safetensors")
    assert state.step == (150 if optimizer == "sgd" else 50)  # Adam's starts anew


@pytest.mark.usefixtures("here")
def test_parts_merge_when_their_ensemble_no_longer_improves(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "own_samples:both", "--epochs", 20, *COMMON, "--lr", 1e-6)
    done = run("fit", "chain.onnx", "-o", "straight", *options)
    assert "note: the parts merge after 6 epochs: their ensemble hardly improves" in done.stderr.splitlines()
    found = json.loads(Path("straight/report.json").read_text())
    assert (found["merge_at"], found["epochs"], found["rounds"]) == (6, 8, [6])
    assert [check["epoch"] for check in found["ensemble"]] == [1, 2, 3, 4, 5, 6]
    assert found["ensemble"][-1]["loss"] == pytest.approx(found["merged"]["loss"], rel=1e-5)
    monkeypatch.delitem(sys.modules, "own_samples")
    monkeypatch.setenv("STOP", "230")
    run("fit", "chain.onnx", "-o", "out", *options, code=130)
    monkeypatch.delenv("STOP")
    refused = run("fit", "chain.onnx", "-o", "out", *options, "--parts-lr", 0.5, "--resume", code=1)
    assert "of another run: lr was 1e-06 there and is 0.5 here" in refused.stderr
    run("fit", "chain.onnx", "-o", "out", *options, "--resume")
    assert equal("out/trained.onnx", "straight/trained.onnx")


@pytest.mark.usefixtures("here")
def test_without_test_data_the_parts_have_all_epochs() -> None:
    data = samples()
    np.savez("learn.npz", x=data["x"], target=data["target"])
    done = run("fit", "chain.onnx", "-o", "out", *DATA, "--data", "npz:learn.npz", "--epochs", 10)
    note = "note: without test data there is no sign of when to merge; the parts train for 10 epochs"
    assert note in done.stderr.splitlines()
    found = json.loads(Path("out/report.json").read_text())
    assert (found["merge_at"], found["epochs"]) == (10, 12)
    assert found["seconds"]["alone"] == 10 * found["seconds"]["whole_epoch"]


@pytest.mark.usefixtures("here")
def test_a_baseline_is_the_whole_alone(rates: list[float]) -> None:
    options = (*DATA, "--epochs", 5, "--merge-at", 3)
    found = run_json("fit", "chain.onnx", "-o", "out", *options, "--baseline")
    assert rates[25:50] == pytest.approx([x * min((i + 1) / 2, 1) for i, x in enumerate(cosine(0.1, 25))])
    assert [e["epoch"] for e in found["baseline"]] == [1, 2, 3, 4, 5]
    assert found["as_good"]["by"] == "error rate"
    assert found["as_good"]["wanted"] == found["baseline"][-1]["metric"]
    assert found["as_good"]["baseline"] == found["baseline"][-1]["seconds"]
    page = Path("out/report.md").read_text()
    assert "The whole alone gets to error rate " in page
    epochs = {name: [e["epoch"] for e in curve] for name, curve in found["controls"].items()}
    spent, alone = found["seconds"]["parts"] + found["seconds"]["whole"], found["baseline"][-1]["seconds"] / 5
    fewer = max(round(spent / alone), 1)
    assert epochs.get("shorter", list(range(1, fewer + 1))) == list(range(1, fewer + 1))
    assert ("shorter" in epochs) == (fewer < 5)
    assert epochs["one part"] == list(range(1, 7))
    assert epochs["copies"] == [4, 5]
    assert rates[50:60] == rates[15:25]
    assert "| one part alone, 2 times as long | 6 |" in page


@pytest.mark.usefixtures("here")
def test_training_ends_at_the_target_and_says_how_far_it_came() -> None:
    options = ("fit", "chain.onnx", "-o", "out", "--force", *DATA, "--epochs", 10)
    easy = run_json(*options, "--metric-target", 1.0, "--baseline")
    assert (easy["merge_at"], len(easy["whole"]), len(easy["baseline"])) == (1, 0, 1)
    assert easy["target"]["seconds"] == easy["seconds"]["parts"]
    assert easy["target"]["best"] == easy["merged"]["metric"] <= 1
    assert easy["as_good"]["wanted"] == 1
    late = run_json(*options, "--metric-target", 1.0, "--rounds", 2)
    assert (late["merge_at"], len(late["whole"])) == (10, 0)
    missed = run(*options, "--metric-target", -1.0).stdout
    assert "The target, error rate -1, was not reached: the best was " in missed
    assert json.loads(Path("out/report.json").read_text())["target"]["seconds"] is None


@pytest.mark.usefixtures("here")
def test_a_metric_that_grows_reaches_its_target_from_below() -> None:
    options = ("fit", "chain.onnx", "-o", "out", "--force", *DATA, "--epochs", 4, "--metric", "accuracy")
    easy = run_json(*options, "--metric-target", 0.0)
    assert (easy["metric"], easy["merge_at"], len(easy["whole"])) == ("accuracy", 1, 0)
    assert easy["target"]["best"] == easy["merged"]["metric"]
    missed = run_json(*options, "--metric-target", 2.0)
    assert missed["target"]["seconds"] is None
    assert missed["target"]["best"] == max(e["metric"] for e in (missed["merged"], *missed["whole"]))


@pytest.mark.usefixtures("here")
def test_the_whole_ends_when_it_is_no_better_and_a_run_that_goes_on_ends_there_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--data", "own_samples:both", *COMMON, "--epochs", 30, "--merge-at", 2, "--schedule", "constant")
    straight = run("fit", "chain.onnx", "-o", "straight", *options, "--patience", 4, "--baseline")
    found = json.loads(Path("straight/report.json").read_text())
    end = found["patience"]["ended"]
    assert 2 + 4 < end < 30
    assert end == found["whole"][-1]["epoch"] == found["epochs"]
    best = f"it has its weights after epoch {end - 4}, the best"
    assert f"The whole ends after epoch {end}: error rate no better for 4 epochs; {best}." in straight.stdout
    assert f"note: whole ends after epoch {end}: no better for 4 epochs\n" in straight.stderr
    assert len(found["baseline"]) < 30
    for key, stop in (("whole", 190), ("baseline", 45 * end + 70)):
        monkeypatch.delitem(sys.modules, "own_samples")
        monkeypatch.setenv("STOP", str(stop))
        compared = ("--baseline",) if key == "baseline" else ()
        run("fit", "chain.onnx", "-o", "out", "--force", *options, "--patience", 4, *compared, code=130)
        assert Path("out/trained.onnx").exists() == (key == "baseline")
        monkeypatch.delenv("STOP")
        again = run_json("fit", "--config", "out/run.yaml", "--resume")
        assert equal("out/trained.onnx", "straight/trained.onnx")
        assert [e["train_loss"] for e in again[key]] == [e["train_loss"] for e in found[key]]


@pytest.mark.usefixtures("here")
def test_train_ends_one_network_that_is_no_better() -> None:
    options = (*DATA, "--epochs", 30)
    done = run("train", "chain.onnx", *options, "--patience", 4)
    assert "note: chain ends after epoch 11: no better for 4 epochs\n" in done.stderr
    assert ", after epoch 7; " in done.stdout
    run("split", "chain.onnx", "-k", 2, "-o", "parts")
    refused = run("train", "parts", *options, "--patience", 4, code=2)
    assert refused.stderr == (
        "error: patience ends the training of one network, and these are 2; train each alone, or without it.\n"
    )
    assert listed("parts") == ["part0.onnx", "part1.onnx", "plan.json", "whole.onnx"]


@pytest.mark.usefixtures("here")
def test_a_budget_in_steps_is_a_number_of_epochs() -> None:
    found = run_json("fit", "chain.onnx", "-o", "out", *DATA, "--epochs", 100, "--budget", 29, "--baseline")
    assert (found["epochs"], found["merge_at"], len(found["baseline"])) == (5, 4, 5)


@pytest.mark.usefixtures("here")
def test_a_budget_in_minutes_holds_for_parts_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "estimate", lambda *_: Estimates(200.0, 0.1, 1, [Estimate(2, together=100.0)]))
    options = ("--data", "own_samples:both", *COMMON, "--epochs", 100, "--budget", "0.11m", "-o", "out")
    monkeypatch.setenv("STOP", "100")
    run("fit", "chain.onnx", *options, code=130)
    monkeypatch.delenv("STOP")
    shutil.copytree("out", "replaced")
    run("fit", "chain.onnx", *options[:-1], "replaced", "--force")
    monkeypatch.setattr(estimate, "estimate", lambda *_: pytest.fail("what was measured at first holds"))
    run("fit", "chain.onnx", *options, "--resume")
    found = json.loads(Path("out/report.json").read_text())
    # 6.6 s are 11 epochs of 5 steps, five sixths of 0.1 s and a sixth of 0.2 s: 9 of the parts, and a fifth as many
    assert (found["merge_at"], found["epochs"]) == (9, 11)
    monkeypatch.setattr(estimate, "estimate", lambda *_: Estimates(1e-6, 0.1, 1, [Estimate(2, together=1e-6)]))
    hurried = run("fit", "chain.onnx", *options[:-4], "--budget", "0.000001m", "-o", "hurried").stderr
    assert "the parts merge after 5 epochs: their share of the budget is spent" in hurried


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("options", "sentence"), [
    (("--budget", "soon"), "--budget 'soon' is neither steps nor minutes; give steps such as 5000, or minutes such "),
    (("--budget", "0min"), "--budget '0min' is neither steps nor minutes; give steps such as 5000, or minutes such "),
    (("--metric-target", "nan"), "the target is nan; it must be a number."),
    (("--metric", "f1", "--data", "npz:learn.npz"), "--metric needs test data, and there are none; add them to the"),
    (("--metric", "f2"), "the metric 'f2' isn't known; give accuracy, f1, auroc or module:function."),
    (("--metric-target", 0.1, "--data", "npz:learn.npz"), "--metric-target needs test data, and there are none; add "),
    (("--patience", 3, "--data", "npz:learn.npz"), "--patience needs test data, and there are none; add them to the "),
])  # fmt: skip
def test_goals_that_make_no_sense(options: tuple[object, ...], sentence: str) -> None:
    np.savez("learn.npz", **{name: array for name, array in samples().items() if "test" not in name})
    assert run("fit", "chain.onnx", "--epochs", 4, *DATA, *options, code=2).stderr.startswith(f"error: {sentence}")
    assert not Path("chain_fit").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("options", "sentence"), [
    (("--recipe", "best"), "invalid value for '--recipe': 'best' is not one of 'auto', 'paper'; `onnxpart "),
    (("--parts-lr", 0), "the parts' rate is 0.0; it must be positive."),
    (("--parts-lr", 1, *PAPER), "the recipe paper has one rate for parts and whole; leave out --parts-lr"),
    (("--schedule", "linear"), "invalid value for '--schedule': 'linear' is not one of 'constant', "),
])  # fmt: skip
def test_recipes_that_make_no_sense(options: tuple[object, ...], sentence: str) -> None:
    assert run("fit", "chain.onnx", "--epochs", 2, *DATA, *options, code=2).stderr.startswith(f"error: {sentence}")
    assert not Path("chain_fit").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("engine", ["series", "fused", "processes"])
def test_frozen_parameters_are_neither_trained_nor_cut(engine: str) -> None:
    model = onnx.load_model("chain.onnx")
    onnx.helper.set_model_props(model, {FROZEN: '["conv2.weight"]'})
    onnx.save_model(model, "held.onnx")
    options = (*DATA[:-1], engine, "--epochs", 2, "--merge-at", 1)
    report = run_json("fit", "held.onnx", "-o", "out", *options)
    assert report["kept"] == ["conv2.weight"]
    before, after = arrays("chain.onnx"), arrays("out/trained.onnx")
    unchanged = {name for name, array in before.items() if np.array_equal(after[name], array)}
    assert unchanged & {"conv1.weight", "conv2.weight", "logits.weight"} == {"conv2.weight"}
    run("train", "out/parts", *DATA, "--epochs", 1)
    run("merge", "out/parts", "-o", "merged.onnx")
    assert np.array_equal(arrays("merged.onnx")["conv2.weight"], before["conv2.weight"])


@pytest.mark.usefixtures("here")
def test_new_edges_start_as_asked_for() -> None:
    options = (*DATA, "--epochs", 2, "--merge-at", 2)
    run("fit", "chain.onnx", "-o", "zero", *options)
    run("fit", "chain.onnx", "-o", "drawn", *options, "--edges", 1.0)
    zero, drawn = (arrays(f"{name}/trained.onnx") for name in ("zero", "drawn"))
    changed = {name for name, array in drawn.items() if not np.array_equal(array, zero[name])}
    assert changed
    assert all(not zero[name][drawn[name] != zero[name]].any() for name in changed)
    assert json.loads(Path("drawn/report.json").read_text())["edges"] == 1.0
    run("merge", "drawn/parts", "-o", "merged.onnx", "--edges", 1.0)
    assert equal("merged.onnx", "drawn/trained.onnx")


@pytest.mark.usefixtures("here")
def test_a_run_that_is_another_or_over_is_not_resumed() -> None:
    options = ("--epochs", 2, *DATA, "--resume")
    nothing = run("train", "chain.onnx", *options, code=1).stderr
    assert nothing.endswith(
        "chain.training/checkpoints contains nothing to resume; leave out --resume to train from the files.\n"
    )
    assert "out holds no run to resume" in run("fit", "chain.onnx", "-o", "out", *options, code=1).stderr
    run("fit", "chain.onnx", "-o", "out", *options[:-1])
    assert "out holds a run that has ended" in run("fit", "chain.onnx", "-o", "out", *options, code=1).stderr
    assert "a run of another split" in run("fit", "chain.onnx", "-k", 3, "-o", "out", *options, code=1).stderr


def test_fit_replaces_only_what_onnxpart_wrote(here: Path) -> None:
    options = ("--epochs", 2, *DATA, "--force")
    run("fit", "chain.onnx", "-o", "out", *options)
    run("fit", "chain.onnx", "-o", "out", *options)
    run("fit", "out/trained.onnx", "-o", "other", *options)
    for source, data in (("out/trained.onnx", "npz:data.npz"), ("chain.onnx", "npz:out/data.npz")):
        shutil.copy("data.npz", "out/data.npz")
        refused = run("fit", source, "-o", "out", *options, "--data", data, code=1)
        assert "which is read" in refused.stderr
    refused = run("fit", "chain.onnx", "-o", "out", *options, code=1)
    assert refused.stderr.startswith("error: out holds data.npz, which onnxpart didn't write; ")
    (here / "file").write_text("dear")
    assert "file isn't a folder" in run("fit", "chain.onnx", "-o", "file", *options, code=1).stderr
    assert (here / "file").read_text() == "dear"


def test_training_writes_through_no_link(here: Path) -> None:
    (here / "linked.onnx").symlink_to("chain.onnx")
    before = Path("chain.onnx").read_bytes()
    refused = run("train", "linked.onnx", "--epochs", 1, *DATA, code=1)
    assert refused.stderr == "error: linked.onnx is a symbolic link; name the file itself, or remove the link.\n"
    (here / "chain.training").mkdir()
    (here / "precious").write_text("dear")
    (here / "chain.training" / "metrics.jsonl").symlink_to(here / "precious")
    assert "is a symbolic link" in run("train", "chain.onnx", "--epochs", 1, *DATA, code=1).stderr
    assert (here / "precious").read_text() == "dear"
    assert Path("chain.onnx").read_bytes() == before


def test_checkpoints_go_and_what_lies_beside_them_stays(here: Path) -> None:
    (here / "chain.training" / "checkpoints").mkdir(parents=True)
    (here / "chain.training" / "checkpoints" / "letter").write_text("dear")
    run("train", "chain.onnx", "--epochs", 1, *DATA)
    assert [path.name for path in (here / "chain.training" / "checkpoints").iterdir()] == ["letter"]


@pytest.fixture
def stopped(here: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Options of a run that was stopped in its third epoch, in parts/."""
    options = ("--data", "own_samples:samples", "--epochs", 4, *COMMON)
    run("split", "chain.onnx", "-k", 2, "-o", "parts")
    monkeypatch.setenv("STOP", "130")
    run("train", "parts", *options, code=130)
    monkeypatch.delenv("STOP")
    assert (here / "parts" / "training" / "checkpoints").is_dir()
    return options


def test_checkpoints_of_another_plan_or_run_or_damaged(stopped: tuple[object, ...]) -> None:
    before = Path("parts/part0.onnx").read_bytes()

    def refused(*options: object) -> str:
        last = run("train", "parts", *stopped, *options, code=1).stderr.splitlines()[-1]
        assert Path("parts/part0.onnx").read_bytes() == before
        return last

    assert "holds checkpoints of an earlier run" in refused()
    assert "of another run: lr was 0.1 there and is 0.2 here" in refused("--resume", "--lr", 0.2)
    run("split", "chain.onnx", "-k", 2, "-o", "other", "--order", "interleaved")
    (Path("other") / "training").symlink_to(Path("parts/training").resolve())
    last = run("train", "other", *stopped, "--resume", code=1).stderr.splitlines()[-1]
    assert "of another run: plan was" in last
    newest = max(Path("parts/training/checkpoints").glob("part0-*"))
    newest.write_bytes(newest.read_bytes()[:-3])
    assert "is damaged; delete it" in refused("--resume")


@pytest.mark.usefixtures("here")
def test_a_loss_that_is_no_number_stops_the_run() -> None:
    before = Path("chain.onnx").read_bytes()
    last = run("train", "chain.onnx", "--epochs", 9, *DATA, "--lr", 1e30, code=1).stderr.splitlines()[-1]
    assert last.startswith("error: part 0: ")
    assert "lower the rate or clip the gradient" in last
    assert Path("chain.onnx").read_bytes() == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--data", "npz:none.npz"), 1, "none.npz can't be read (No such file or directory); check the path."),
        (("--data", "none"), 2, "--data 'none' has no known form;"),
        (("--data", "nothing_here:f"), 2, "the data 'nothing_here:f' can't be imported (ModuleNotFoundError: "),
        (
            ("--data", "npz:wrong.npz"),
            1,
            "'x' of the data is float32 [3, 2, 4], but the graph's is float32 [N, 2, 4, 4];",
        ),
        (("--loss", "hinge"), 2, "the loss 'hinge' isn't known;"),
        (("--loss", "own_samples:none"), 2, "the loss 'own_samples:none' can't be imported (AttributeError: "),
        (("--loss", "bce"), 1, "a sample has targets [], the output is [3]; give them that shape."),
        (("--engine", "rocket"), 2, "invalid value for '--engine': 'rocket' is not one of 'auto', "),
        (("--workers-per-part", "2"), 2, "several workers per part need the engine ray; add --engine ray."),
        (("--fsdp",), 2, "--fsdp shards a network among its workers; add --workers-per-part."),
        (("--optimizer", "lion"), 2, "invalid value for '--optimizer': 'lion' is not one of 'adamw', "),
        (("--device", "cuda:99"), 2, "device 'cuda:99' isn't available"),
        (("--checkpoint-every", "often"), 2, "--checkpoint-every 'often' is neither steps nor minutes; give"),
        (("--checkpoint-every", "0"), 2, "--checkpoint-every '0' is neither steps nor minutes;"),
        (("--lr", "0"), 2, "lr is 0.0; it must be positive."),
        (("--class-weights", "1,two"), 2, "--class-weights 1,two aren't numbers; give them as in 1,5,2."),
        (("--class-weights", "1,2"), 2, "class weights 1,2 aren't possible; give 3 positive numbers."),
        (("--loss", "mse", "--label-smoothing", "0.1"), 2, "label smoothing and class weights are for cross_entropy, "),
        (
            ("--mean", "0.5,"),
            2,
            "--mean 0.5, and --std None aren't possible; give numbers to both, as in --mean 0.485,",
        ),
        (("--mean", "0.5", "--std", "0.5"), 2, "--mean and --std don't apply to the data 'npz:data.npz'; give "),
    ],
)
def test_bad_input_is_one_sentence(options: tuple[str, ...], code: int, sentence: str) -> None:
    before = listed(".")
    for command in (("train", "chain.onnx"), ("fit", "chain.onnx", "-o", "out")):
        result = run(*command, "--epochs", 2, *DATA, *options, code=code)
        assert result.stdout == ""
        assert result.stderr.startswith(f"error: {sentence}")
        assert result.stderr.count("\n") == 1
        assert [name for name in listed(".") if name not in ("__pycache__", "out", "chain.training")] == before


@pytest.mark.usefixtures("here")
def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("train", "chain.onnx", "--epochs", 2, *DATA, "--engine", "ray")
    for given in (options, ("fit", *options[1:], "-o", "out")):
        sentence = run(*given, "--address", "127.0.0.1:1", code=2).stderr.splitlines()[-1]
        assert sentence.startswith("error: the Ray cluster 127.0.0.1:1 can't be reached (")
    assert not Path("out").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = run(*options, code=2).stderr.splitlines()[-1]
    assert sentence == (
        "error: the engine ray needs the package ray; install it from a checkout with `pip install '.[ray]'`."
    )


@pytest.mark.usefixtures("here")
def test_merging_has_its_time() -> None:
    for merge_at in (0, 3):
        sentence = f"--merge-at {merge_at} isn't within the 2 epochs; choose one of them."
        result = run("fit", "chain.onnx", "--epochs", 2, "--merge-at", merge_at, *DATA, code=2)
        assert result.stderr == f"error: {sentence}\n"


@pytest.mark.usefixtures("here")
def test_labels_out_of_range() -> None:
    data = samples()
    data["test_target"][3] = 3
    np.savez("data.npz", **data)
    sentence = "error: there is a label 3, but the output has the classes 0 to 2; number the labels from 0, or use"
    assert run("train", "chain.onnx", "--epochs", 2, *DATA, code=1).stderr.startswith(sentence)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("engine", ["auto", "series", "fused"])
def test_out_of_memory(engine: str) -> None:
    options = ("--epochs", 2, *DATA, "--loss", "own_samples:hungry", "--engine", engine)
    last = run("fit", "chain.onnx", "-o", "out", *options, code=1).stderr.splitlines()[-1]
    who = "parts 0, 1" if engine == "fused" else "part 0"
    assert last.startswith(f"error: {who}: out of memory in batch 0 of epoch 0; take smaller batches")


@pytest.mark.usefixtures("here")
def test_a_loss_of_the_users() -> None:
    found = run_json("train", "chain.onnx", "--epochs", 2, *DATA, "--loss", "own_samples:mean_absolute")
    assert found["trained"][0]["metric"] == ""
    assert found["trained"][0]["curve"][-1]["metric"] is None


def test_without_pytorch(here: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from onnxpart.cli.app import main; main()"
    done = process(sys.executable, "-c", code, "train", str(here / "chain.onnx"), "--data", "mnist5k", "--epochs", "1")
    sentence = "error: training needs the package torch; install it from a checkout with `pip install '.[train]'`.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_without_onnx_runtime_nothing_is_trained(here: Path) -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from onnxpart.cli.app import main; main()"
    done = process(sys.executable, "-c", code, "fit", "chain.onnx", "--data", "data.npz", "--epochs", "1")
    sentence = (
        "error: checking the trained file needs the package onnxruntime; install it from a checkout with "
        "`pip install '.[gpu]'`.\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    assert not (here / "chain_fit").exists()


def test_onnx_runtime_finds_a_file_with_other_weights(here: Path) -> None:
    model = onnx.load_model("softmax.onnx")
    objective = find_objective("cross_entropy", model)
    module = import_onnx(objective.cut(model))
    batch = (torch.from_numpy(samples()["x"]),), torch.zeros(45, dtype=torch.int64)
    save(with_weights(module, here / "softmax.onnx"), here / "copy.onnx")
    assert deviation(module, objective, here / "copy.onnx", batch) < 1e-5
    for name, tensor in load(here / "copy.onnx").initializers.items():
        changed = onnx.load_model("copy.onnx")
        (target,) = (t for t in changed.graph.initializer if t.name == name)
        target.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), name))
        onnx.save_model(changed, "changed.onnx")
        if numpy_helper.to_array(tensor).dtype == np.float32:
            with pytest.raises(OnnxpartError, match=r"changed.onnx: ONNX Runtime's 'beliefs' differs from the trained"):
                deviation(module, objective, here / "changed.onnx", batch)
    model.graph.node[0].domain = "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save_model(model, "foreign.onnx")
    with pytest.raises(OnnxpartError, match=r"foreign.onnx is written, but ONNX Runtime can't run it"):
        deviation(module, objective, here / "foreign.onnx", batch)


def test_the_choices_are_those_of_training() -> None:
    assert get_args(cli_train.Engine) == get_args(EngineKind)
    assert set(get_args(cli_train.Optimizer)) == set(get_args(OptimizerKind))
    assert get_args(cli_train.Schedule) == get_args(ScheduleKind)
    assert get_args(cli_train.RecipeName) == get_args(Kind)


@pytest.mark.usefixtures("here")
def test_an_estimate_is_printed_and_nothing_written() -> None:
    before = listed(".")
    command = ("estimate", "chain.onnx", "--data", "npz:data.npz", "--batch-size", 10, "-k", "2,9")
    lines = run(*command).stdout.splitlines()
    assert lines[0].split() == ["K", "width", "parameters", "memory", "step,", "ms", "one", "part", "in", "series",
                                "in", "parallel"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "9"]
    found = run_json(*command)
    assert [row["k"] for row in found["rows"]] == [2, 9]
    assert found["rows"][0]["together"] > 0
    assert found["rows"][1]["why_not"]
    assert found["best"] is None
    assert listed(".") == before
    refused = run("fit", "chain.onnx", "-k", "auto", "--epochs", 2, *DATA, code=2).stderr
    assert refused.endswith("Train the whole with `onnxpart train`, or give -k.\n")
    assert listed(".") == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("command", "sentence"), [
    (("fit", "chain.onnx", "-k", "two", "--epochs", 2, *DATA),
     "'two' isn't a number of parts; give one such as 2, or auto."),
    (("estimate", "chain.onnx", "--data", "npz:data.npz", "-k", "2;3"),
     "-k '2;3' aren't numbers of parts; give them as in 2,4."),
])  # fmt: skip
def test_numbers_of_parts_that_are_none(command: tuple[object, ...], sentence: str) -> None:
    assert run(*command, code=2).stderr == f"error: {sentence}\n"


@pytest.mark.usefixtures("here")
def test_a_number_of_parts_that_was_advised_is_kept_on_resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "own_samples:samples", "--epochs", 4, "--merge-at", 2, *COMMON, "-k", "auto", "-o", "out")
    monkeypatch.setattr("onnxpart.torch.runs.estimate.chosen", lambda *_: 4)
    monkeypatch.setenv("STOP", "100")
    run("fit", "chain.onnx", *options, code=130)
    monkeypatch.delenv("STOP")
    monkeypatch.setattr("onnxpart.torch.runs.estimate.chosen", lambda *_: 2)
    run("fit", "chain.onnx", *options, "--resume")
    assert json.loads(Path("out/report.json").read_text())["k"] == 4
