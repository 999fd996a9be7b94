"""What `fit` refuses before it trains, the times that it reports, and the page."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models import regression_mlp
from onnxpart import arrays
from onnxpart.errors import CheckpointError, MergeError, ModelError, OnnxpartError, PartitionError, UsageError
from onnxpart.frontend.load import load
from onnxpart.merging.cross_weights import ZERO, Edges
from onnxpart.torch.data.sources import open_data
from onnxpart.torch.runs import estimate, task
from onnxpart.torch.runs.estimate import Estimate
from onnxpart.torch.runs.fit import PARTS, fit
from onnxpart.torch.runs.fit_report import page, report
from onnxpart.torch.runs.goal import Goal
from onnxpart.torch.runs.outcome import Fit, Times
from onnxpart.torch.runs.recipe import Recipe
from onnxpart.torch.runs.task import RunOptions
from onnxpart.torch.training.events import Event, Note, ignore
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import evaluate
from tests.networks.deep import residual_mlp

MODEL = load(regression_mlp(0, inputs=784, hidden=(8,)))
OPTIONS = RunOptions("mnist5k", "mse", Settings(4), batch_size=1000)


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"merge_at": 0}, UsageError, "--merge-at 0 isn't within the 4 epochs"),
        ({"merge_at": 5}, UsageError, "--merge-at 5 isn't within the 4 epochs"),
        ({"goal": Goal(minutes=1.0), "merge_at": 2}, UsageError, "leave out --merge-at and --rounds"),
        ({"goal": Goal(steps=7)}, UsageError, "the budget is too small: an epoch .* take 8 steps"),
        ({"goal": Goal(minutes=1e-9)}, UsageError, "the budget is too small: an epoch .* take about .* minutes"),
        ({"rounds": 5}, UsageError, "5 rounds aren't possible in 4 epochs of the parts"),
        ({"rounds": 2, "blocks": 1}, UsageError, "train in one round; leave out --rounds or --blocks"),
        ({"blocks": 1}, PartitionError, "has no repeated blocks"),
        ({"grow": "widen", "rounds": 2}, UsageError, "leave out --rounds and --edges, or --grow"),
        ({"grow": "widen", "edges": Edges(1.0)}, UsageError, "leave out --rounds and --edges, or --grow"),
        ({"grow": "widen", "k": 3}, MergeError, "a K that divides every layer"),
    ],
)
def test_what_makes_no_sense_leaves_no_folder(
    tmp_path: Path, options: dict[str, Any], kind: type[OnnxpartError], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        fit(MODEL, OPTIONS, tmp_path / "out", lambda *_: ignore, **options)
    assert not (tmp_path / "out").exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        fit(MODEL, OPTIONS, tmp_path, lambda *_: ignore)
    with pytest.raises(ModelError, match=r"holds mine\.txt, which onnxpart didn't write"):
        fit(MODEL, OPTIONS, tmp_path, lambda *_: ignore, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    resumed = RunOptions("mnist5k", "mse", Settings(4), batch_size=1000, resume=True)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        fit(MODEL, resumed, tmp_path / PARTS, lambda *_: ignore)


def test_blocks_that_can_not_add_nothing_start_as_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {"x": rng.normal(size=(20, 5)).astype(np.float32), "target": np.arange(20) % 3}
    np.savez(tmp_path / "data.npz", **samples)  # type: ignore[arg-type]
    options = RunOptions(f"npz:{tmp_path / 'data.npz'}", "cross_entropy", Settings(2, device="cpu"), "series")
    fit(load(residual_mlp(post_norm=True)), options, tmp_path / "out", lambda *_: ignore, k=1, blocks=1)
    part = arrays(tmp_path / "out" / "parts" / "part0.onnx")
    assert np.array_equal(part["down4"], part["down"])
    assert part["down"].any()


def test_data_are_opened_once_where_k_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, found = list[str](), Estimate(4, 128, series=2.0)
    monkeypatch.setattr(estimate, "_UNSTEADY", inf)
    monkeypatch.setattr(task, "open_data", lambda text, *_, **more: opening.append(text) or open_data(text, *_, **more))
    monkeypatch.setattr(estimate, "_row", lambda *_: found)
    done = fit(MODEL, replace(OPTIONS, settings=Settings(2)), tmp_path / "out", lambda *_: ignore, k="auto")
    assert (done.plan.k, opening) == (4, ["mnist5k"])


@pytest.mark.parametrize(("units", "k", "told"), [(512, 2, False), (32, 2, True), (32, 1, False)])
def test_parts_that_are_too_narrow_are_named(tmp_path: Path, units: int, k: int, told: bool) -> None:
    news, options = list[Event](), replace(OPTIONS, settings=Settings(2), engine="series")
    model = load(regression_mlp(0, inputs=784, hidden=(units,)))
    fit(model, options, tmp_path / "out", lambda *_: news.append, k=k)
    note = "parts have 16 units in their large layers; they may learn badly with less than 128, so that a smaller -k"
    assert (Note(f"{note} may do better") in news) == told
    assert any("large layers" in str(event) for event in news) == told


def test_the_whole_ends_when_it_is_as_good_as_the_target(tmp_path: Path) -> None:
    options, news = replace(OPTIONS, settings=Settings(6, lr=0.1), engine="series"), list[Event]()
    all_of_it = fit(MODEL, options, tmp_path / "out", lambda *_: ignore, merge_at=1)
    losses = [epoch.loss for epoch in all_of_it.whole]
    assert all_of_it.merged is not None
    assert losses == sorted(losses, reverse=True)
    assert all_of_it.merged[0] > losses[0]
    goal = Goal(target=losses[2])
    found = fit(MODEL, options, tmp_path / "shorter", lambda *_: news.append, merge_at=1, goal=goal)
    assert [epoch.loss for epoch in found.whole] == losses[:3]
    assert Note("whole ends after epoch 4: the target is reached") in news


def test_the_whole_and_its_baseline_end_when_they_are_no_better(tmp_path: Path) -> None:
    options, recipe = replace(OPTIONS, settings=Settings(12, lr=0.1), engine="series"), Recipe(schedule="constant")
    run, news = partial(fit, MODEL, merge_at=2, recipe=recipe), list[Event]()
    losses = [epoch.loss for epoch in run(options, tmp_path / "all", lambda *_: ignore).whole]
    assert losses.index(min(loss for loss in losses[:2] if loss is not None)) == 0
    patient = replace(options, patience=1)
    found = run(patient, tmp_path / "out", lambda *_: news.append, baseline=True)
    assert [len(part) for part in found.parts] == [2, 2]
    assert [epoch.loss for epoch in found.whole] == losses[:2]
    assert Note("whole ends after epoch 4: no better for 1 epoch") in news
    alone = [epoch.loss for epoch in found.baseline]
    assert len(alone) < 12
    assert Note(f"baseline ends after epoch {len(alone)}: no better for 1 epoch") in news
    assert len(found.controls["one part"]) == 2 * 2  # a control has all of its time
    data = report(found, patient, "m.onnx", recipe, ZERO)
    kept = "it has its weights after epoch 3, the best"
    assert f"The whole ends after epoch 4: loss no better for 1 epoch; {kept}." in page(data)
    assert next(line for line in page(data) if line.startswith("| whole, trained on ")).split(" | ")[1] == "3"
    own = task.prepare([MODEL.proto], options)
    assert own.data.test is not None
    assert evaluate(own.build(onnx.load(str(found.file))), own.data.test, own.loss)[0] == pytest.approx(losses[0])
    assert data["as_good"]["wanted"] == min(loss for loss in alone if loss is not None) == alone[-2]
    assert data["as_good"]["baseline"] == found.baseline[-2].seconds
    never = run(patient, tmp_path / "watched", lambda *_: ignore, goal=Goal(target=0.0))
    assert [epoch.loss for epoch in never.whole] == losses[:2]


def test_parts_of_different_shapes_have_no_control_of_copies(tmp_path: Path) -> None:
    model = load(regression_mlp(0, inputs=784, hidden=(9,)))
    options, news = replace(OPTIONS, settings=Settings(2)), list[Event]()
    so_far = list[Fit]()
    found = fit(model, options, tmp_path / "out", lambda *_: news.append, baseline=True, on_found=so_far.append)
    assert [len(each.baseline) for each in so_far] == [0, 2, *[2] * len(found.controls)]
    assert so_far[-1] == found
    assert len(found.controls["one part"]) == 4
    assert "copies" not in found.controls
    notes = [event.text for event in news if isinstance(event, Note)]
    assert any(note.startswith("the control of copies is left out: ") for note in notes)


def test_speedup_is_that_over_the_whole_alone() -> None:
    times = Times(parts=3.0, whole=5.0, epoch=2.0)
    assert (times.alone(8), times.speedup(8)) == (16.0, 2.0)
    assert (Times(3.0, 0.0, None).alone(8), Times(3.0, 0.0, None).speedup(8)) == (None, None)


def test_the_page_says_what_was_found() -> None:
    epoch = {"epoch": 2, "train_loss": 0.5, "loss": 0.25, "metric": 0.125}
    data: dict[str, Any] = {
        "model": "m.onnx", "k": 2, "epochs": 3, "merge_at": 2, "rounds": [1, 2], "data": "d",
        "loss": "mse", "metric": "error", "sizes": {"whole": {"parameters": 1000}, "parts": [{"parameters": 250}] * 2},
        "parts": [[epoch], [epoch]], "merged": {"loss": 0.2, "metric": None}, "whole": [{**epoch, "epoch": 3}],
        "seconds": {"parts": 1.0, "whole": 2.0, "alone": 6.0}, "speedup": 2.0, "deviation": 1e-6, "baseline": [],
        "controls": {}, "target": None,
        "traffic": {"parts_batch": 1e6, "whole_batch": 3e6, "all": 5e6, "data_parallel_batch": 3e6,
                    "data_parallel": 9e6},
        "kept": ["a"], "grow": "widen", "blocks": 3, "patience": None,
        "gpu_memory": {"parts": 1.5e9, "whole": 2.5e9},
        "recipe": {"kind": "auto", "rates": {"parts": 0.2, "whole": 0.1}}, "as_good": None,
    }  # fmt: skip
    text = "\n".join(page(data))
    for line in (
        "3 epochs, merged after 2 (the last of 2 rounds), on d with mse.",
        "Recipe auto: rates 0.2 for the parts, 0.1 for the whole.",
        "| part 1 | 250 | 25.0% |",
        "| part 0 | 2 | 0.5 | 0.25 | 0.125 |",
        "| merged | 2 |  | 0.2 |  |",
        "| whole, trained on | 3 | 0.5 | 0.25 | 0.125 |",
        "At its median epoch the whole alone would take 6.0: 2.00 times as long.",
        "Weights between parts stayed as they were in a.",
        "One part was trained, and the whole began as copies of it.",
        "Blocks of each stack that the parts had until they merged: 3.",
        "Tensors of a process took 1.50 GB of its GPU's memory at most, training the parts.",
        "Tensors of a process took 2.50 GB of its GPU's memory at most, training the whole.",
        "Workers sent each other 1 MB for a batch of the parts, 3 MB for one of the whole, 5 MB in all; "
        "data-parallel training of the whole sends 3 MB for a batch, 9 MB in all.",
    ):
        assert line in text
    later = "\n".join(
        page(
            {
                **data,
                "merged": None,
                "whole": [],
                "speedup": None,
                "rounds": [2],
                "kept": [],
                "blocks": None,
                "gpu_memory": None,
                "grow": "merge",
            }
        )
    )
    assert "Weights between" not in later
    assert "Blocks" not in later
    assert "memory" not in later
    assert "copies" not in later
    assert "merged |" not in later
    assert "median" not in later
    good = {"by": "loss", "wanted": 0.5, "baseline": 9.0, "seconds": 3.0, "speedup": 3.0}
    compared = "\n".join(page({**data, "baseline": [epoch], "as_good": good}))
    assert "| the whole alone | 2 | 0.5 | 0.25 | 0.125 |" in compared
    assert "gets to loss 0.5 after 9.0 seconds; the method was there after 3.0: 3.00 times as fast." in compared
    aim = {"by": "loss", "wanted": 0.5, "seconds": 3.0, "best": 0.4}
    assert "The target, loss 0.5, was reached after 3.0 seconds." in page({**data, "target": aim})
    missed = "The target, loss 0.5, was not reached: the best was 0.6. More epochs or a larger budget may help."
    assert missed in page({**data, "target": {**aim, "seconds": None, "best": 0.6}})
    never = "\n".join(page({**data, "as_good": {**good, "seconds": None, "speedup": None}}))
    assert "gets to loss 0.5 after 9.0 seconds; the method never got there." in never
