import gzip
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from models import regression_mlp
from onnxpart.errors import DataError
from onnxpart.torch.data import images
from onnxpart.torch.data.images import digits
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.runs.estimate import Estimate, Estimates
from onnxpart.torch.runs.recipe import Recipe
from onnxpart.torch.runs.task import prepare
from onnxpart.torch.training.settings import Settings
from scripts.paper import advice, data
from scripts.paper.blend import blended
from scripts.paper.gpt import gpt
from scripts.paper.method import Experiment, Method, Rate, Run, Stage, Task
from scripts.paper.run import one_seed, records
from scripts.paper.tasks import PLANS, Plan, alone, fitted, merged, recipe
from scripts.paper.times import measured


def task(seed: int, _: Path | None = None) -> Task:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(168, 6, generator=rng)
    learn = TensorLoader((x[:128],), x[:128].sum(1, keepdim=True) / 3, 8, seed)
    test = TensorLoader((x[128:],), x[128:].sum(1, keepdim=True) / 3, 40, 0, shuffle=False)
    settings = Settings(6, lr=0.05, device="cpu")
    model = partial(regression_mlp, inputs=6, hidden=(8, 8))
    return Task("small", "small", "sums", "mse", model, learn, test, F.mse_loss, F.mse_loss, settings, every=2)


def whole(record: dict[str, Any]) -> list[tuple[int, float]]:
    return [(point["epoch"], point["metric"]) for point in record["curve"] if point["part"] is None]


def stages(method: Method, *of: tuple[int, int], rate: Rate = "paper") -> Run:
    return Run(method, tuple(Stage(*each) for each in of), rate)


def test_a_run_tests_parts_and_whole() -> None:
    record = Experiment(task(0), 0).run(merged(2, 3, 6, "paper"))
    points = [(point["epoch"], point["stage"], point["part"]) for point in record["curve"]]
    assert points == [(2, 0, 0), (2, 0, 1), (3, 0, 0), (3, 0, 1), (3, 1, None), (4, 1, None), (6, 1, None)]
    assert record["final"]["metric"] == record["curve"][-1]["metric"] < record["curve"][0]["metric"]
    assert record["stages"] == [{"k": 2, "epochs": 3}, {"k": 1, "epochs": 3}]


def test_the_merged_whole_is_the_mean_of_its_parts() -> None:
    experiment = Experiment(task(0), 0)
    run = merged(4, 2, 3, "restart")
    record, parts = experiment.run(run), experiment.parts(run)
    (inputs, y) = next(experiment.task.test.epoch(0))
    with torch.no_grad():
        mean = torch.stack([module(*inputs) for module in parts.modules]).mean(0)
    assert whole(record)[0] == (2, pytest.approx(float(F.mse_loss(mean, y)), abs=2e-5))


@pytest.mark.parametrize("rate", ["paper", "cosine"])
def test_parts_that_went_on_are_those_that_were_trained_at_once(rate: Rate) -> None:
    late = merged(2, 4, 6, rate)
    shared, alone_ = Experiment(task(1), 1), Experiment(task(1), 1)
    shared.run(merged(2, 2, 6, rate))
    found, expected = shared.run(late), alone_.run(late)
    assert found["final"] == expected["final"]
    assert whole(found) == whole(expected)


def test_a_level_without_training_changes_nothing() -> None:
    experiment = Experiment(task(0), 0)
    levels = experiment.run(stages("levels", (4, 2), (2, 0), (1, 2)))
    at_once = experiment.run(merged(4, 2, 4, "paper"))
    assert whole(levels) == [(epoch, pytest.approx(metric, rel=1e-3)) for epoch, metric in whole(at_once)]


def test_levels_train_in_between() -> None:
    record = Experiment(task(0), 0).run(stages("levels", (4, 2), (2, 2), (1, 2), rate="restart"))
    assert [(p["epoch"], p["stage"], p["part"]) for p in record["curve"]][4:] == [
        (4, 1, 0), (4, 1, 1), (4, 2, None), (6, 2, None)
    ]  # fmt: skip
    assert whole(record)[-1][1] < record["curve"][0]["metric"]


def test_rounds_go_on_from_the_merged_weights() -> None:
    record = Experiment(task(0), 0).run(stages("rounds", (2, 2), (2, 2), (1, 2), rate="restart"))
    parts = [point["metric"] for point in record["curve"] if point["part"] is not None]
    assert np.mean(parts[2:]) < np.mean(parts[:2])
    assert whole(record)[-1][1] < np.mean(parts[2:])


def test_a_widened_whole_starts_near_its_part() -> None:
    record = Experiment(task(0), 0).run(stages("widen", (2, 2), (1, 2)))
    assert {point["part"] for point in record["curve"]} == {0, None}
    assert whole(record)[0][1] == pytest.approx(record["curve"][0]["metric"], rel=0.2)


def test_parts_may_have_an_order_of_their_own_to_learn_in() -> None:
    other, known = (Experiment(task(0), 0).run(stages(method, (2, 2), (1, 2))) for method in ("own order", "partition"))
    first, second = ([point for point in run["curve"] if point["part"] is not None] for run in (other, known))
    assert [point["epoch"] for point in first] == [point["epoch"] for point in second]
    assert all(one["metric"] != two["metric"] for one, two in zip(first, second, strict=True))
    started, reference = whole(other), whole(known)
    assert [epoch for epoch, _ in started] == [epoch for epoch, _ in reference]
    assert started[-1][1] == pytest.approx(reference[-1][1], rel=0.5)


def test_advice_is_that_of_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[Any, ...]]()
    row = Estimate(4, 128, series=1.5, parallel=3.0)
    monkeypatch.setattr(advice, "estimate", lambda *given: asked.append(given) or Estimates(1.0, 0.1, 1, [row]))
    record, sentence = advice.advised(Plan(task, (), (4,)))
    assert record["rows"] == [{"k": 4, "width": 128, "series": 1.5, "parallel": 3.0}]
    assert (record["kind"], record["experiment"], record["k"]) == ("advice", "small", 4)
    assert sentence.startswith("Use -k 4")
    (_, options, ks, given), settings = asked[0], task(0).settings
    assert (options.loss, options.settings, ks) == ("torch.nn.functional:mse_loss", settings, (4,))
    assert prepare([task(0).model(0)], options, given).loss.metric == ""


def test_the_recipe_is_that_of_fit() -> None:
    adam = replace(task(0), settings=Settings(6, "adam", lr=0.01, device="cpu"))
    run = recipe((4, 4), (1, 2), lr=2)
    parts, whole = (Experiment(adam, 0).pieces(run, number)[0].settings for number in (0, 1))
    settings = Settings(6, "adam", lr=0.02, device="cpu")
    assert parts == Recipe().parts(settings, 4, 4)
    assert whole == Recipe().whole(settings, range(4, 6))
    experiment = Experiment(adam, 0)
    record = experiment.run(run)
    assert (record["rate"], record["lr"]) == ("recipe", 2)
    assert record["final"]["metric"] < record["curve"][0]["metric"]
    assert "lr" not in recipe((1, 6)).header(adam, 0)
    scaled, sliced = experiment.split(4, "recipe"), experiment.split(4)
    assert scaled.parts != sliced.parts


def test_fit_is_the_command_with_no_option_but_k_and_epochs() -> None:
    record = Experiment(task(0), 0).run(fitted(5, 2)[0])
    assert (record["method"], record["epochs"], record["stages"]) == ("fit", 5, [{"k": 2, "epochs": 5}])
    assert record["trained"] == [{"k": 2, "epochs": 5}, {"k": 1, "epochs": 1}]
    assert record["final"]["metric"] == record["curve"][-1]["loss"]


def test_new_edges_are_random_where_asked_for() -> None:
    experiment = Experiment(task(0), 0)
    zero, random = (whole(experiment.run(merged(2, 2, 4, "paper", edges)))[0][1] for edges in (0.0, 0.5))
    assert zero != random


@pytest.mark.parametrize(
    ("run", "number", "expected"),
    [
        (alone(6, "paper"), 0, [1.0] * 4 + [0.1, 0.01]),
        (merged(2, 3, 6, "paper"), 1, [1.0, 0.1, 0.01]),
        (merged(2, 3, 6, "restart"), 0, [1.0] * 3),
        (merged(2, 3, 6, "restart"), 1, [0.5] * 3),
    ],
)
def test_rates(run: Run, number: int, expected: list[float]) -> None:
    pieces = Experiment(replace(task(0), restart=0.5), 0).pieces(run, number)
    assert [piece.settings.lr / 0.05 for piece in pieces for _ in piece.epochs] == pytest.approx(expected)
    if run.rate == "restart":
        settings = [piece.settings for piece in pieces]
        assert {(each.epochs - each.first, each.schedule) for each in settings} == {(3, "cosine")}
        assert [number - piece.settings.first for piece in pieces for number in piece.epochs] == [0, 1, 2]


def test_a_run_with_a_line_is_left_out(tmp_path: Path) -> None:
    plan, path = Plan(task, (alone(4, "paper"), merged(2, 2, 4, "paper")), (2,)), tmp_path / "small.jsonl"
    one_seed(plan, task(0), 0, path, Console(quiet=True))
    lines = path.read_text().splitlines()
    path.write_text(lines[1] + "\n")
    one_seed(plan, task(0), 0, path, Console(quiet=True))
    again = path.read_text().splitlines()
    assert again[0] == lines[1]
    assert again[1:] == [lines[0]]
    assert [record["method"] for record in records(path)] == ["partition", "whole"]


def test_no_digit_of_the_stand_in_is_both_learnt_and_tested() -> None:
    first, second = (blended(40, 20) for _ in range(2))
    for (found, labels), (again, _), count in zip(first, second, (40, 20), strict=True):
        assert found.shape == (count, 3, 32, 32)
        assert labels.shape == (count,)
        assert np.array_equal(found, again)
        assert found.std() > 10
    _, labels, _ = digits()
    assert set(first[0][1]) <= set(labels)


def test_crops_to_learn_change_and_those_to_test_stay() -> None:
    images = torch.arange(4 * 3 * 32 * 32, dtype=torch.float32).reshape(4, 3, 32, 32)
    crops = data.Crops(images, torch.arange(4), torch.zeros(3, 32, 32), 2, 4)
    one, same, other = (torch.cat([x for (x,), _ in crops.epoch(number)]) for number in (0, 0, 1))
    assert one.shape == (4, 3, 24, 24)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(next(crops.epoch(0, 1))[0][0], one[2:])
    middle = replace(crops, random=False)
    assert torch.equal(torch.cat([x for (x,), _ in middle.epoch(3)]), images[:, :, 4:28, 4:28] / 64)


def test_windows_are_followed_by_the_next_character() -> None:
    windows = data.Windows(torch.arange(100), 8, 4, 6)
    for (x,), y in windows.epoch(0):
        assert torch.equal(x + 1, y)
    assert [len(y) for _, y in windows.epoch(0)] == [4, 2]
    assert len(windows) == 2


def test_turned_digits_have_their_angle() -> None:
    learn, test = data.turned(50, 0)
    assert learn.inputs[0].shape == (4000, 196)
    assert test.target.shape == (1000, 1)
    assert float(learn.target.abs().max()) <= 1


def small_language(plan: str, blocks: int) -> Task:
    """The task of a plan with a narrow language model of so many blocks, and little text."""
    network = partial(gpt, kinds=11, length=8, width=16, heads=4, blocks=blocks)
    tokens = torch.arange(101) % 11
    learn, test = data.Windows(tokens, 8, 4, 8), data.Windows(tokens, 8, 4, 8, random=False)
    return replace(PLANS[plan].task(0, None), model=network, learn=learn, test=test, settings=Settings(4, "adam"))


def test_the_language_model_divides() -> None:
    record = Experiment(small_language("language", 1), 0).run(merged(2, 2, 4, "cosine"))
    assert record["final"]["metric"] < record["curve"][0]["metric"]


def test_a_shallow_model_grows_deep() -> None:
    """From zero the metric stays; parts grow deep, too, before they merge."""
    small = small_language("depth", 2)
    experiment = Experiment(small, 0)
    zero, copies = (
        experiment.run(recipe((1, 2, 1), (1, 2), method=method))["curve"] for method in ("deepen from zero", "deepen")
    )
    assert zero[1]["metric"] == zero[0]["metric"] == copies[0]["metric"] != copies[1]["metric"]
    assert zero[2]["metric"] < zero[1]["metric"]
    (last,) = experiment.run(recipe((1, 2, 1), method="shallow"))["curve"]
    assert (last["epoch"], last["part"]) == (2, None)
    first, same, last = experiment.run(recipe((1, 2, 1), (1, 2, 1), method="shallow"))["curve"]
    assert first["metric"] == same["metric"] > last["metric"]
    record = experiment.run(recipe((2, 2, 1), (2, 0), (1, 2), method="deepen"))
    assert record["stages"] == [{"k": 2, "epochs": 2, "blocks": 1}, {"k": 2, "epochs": 0}, {"k": 1, "epochs": 2}]
    assert [(p["epoch"], p["stage"], p["part"]) for p in record["curve"]] == [
        (2, 0, 0), (2, 0, 1), (2, 2, None), (4, 2, None)
    ]  # fmt: skip
    found = measured(replace(PLANS["depth"], task=lambda *_: small, blocks=(1,)), 1)
    assert found["epoch"].keys() == {"whole", "whole/1", "duplicated", "2", "2/1"}
    assert found["together"].keys() == {"2", "2/1"}
    assert found["macs"]["1/1"] < found["macs"]["1"]


def test_each_task_has_a_batch_that_fits() -> None:
    for plan in PLANS.values():
        found = plan.task(0, None)
        (x,), y = next(found.learn.epoch(0))
        assert len(x) == len(y) == found.learn.batch_size  # type: ignore[attr-defined]
        assert plan.runs[0] == alone(found.settings.epochs, plan.runs[0].rate)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def test_mnist_from_its_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = {
        name: (rng.integers(256, size=(n, 28, 28)), np.arange(n) % 10) for name, n in (("train", 30), ("t10k", 20))
    }
    for name, (pixels, classes) in found.items():
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(classes))
    name, learn, test = data.mnist(tmp_path, 10, 0)
    assert name == "MNIST"
    for loader, (pixels, classes) in zip((learn, test), found.values(), strict=True):
        assert np.array_equal((loader.inputs[0][:, 0] * 255).round().numpy(), pixels)
        assert loader.target.tolist() == classes.tolist()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "doesn't exist; name the folder of MNIST's four files"),
        (lambda path: path.write_bytes(b"nothing"), "isn't one of MNIST's files; download it again"),
        (
            lambda path: path.write_bytes(idx(np.zeros((4, 28, 28)))[:-1]),
            "isn't one of MNIST's files; download it again",
        ),
        (lambda path: path.write_bytes(idx(np.zeros((5, 28, 28)))), "holds 5 images and 4 labels"),
    ],
)
def test_damaged_mnist(tmp_path: Path, damage: Callable[[Path], object], expected: str) -> None:
    for name in ("train", "t10k"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 28, 28))))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(4)))
    damage(tmp_path / "t10k-images-idx3-ubyte")
    with pytest.raises(DataError, match=expected):
        images.mnist(tmp_path)
