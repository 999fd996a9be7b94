"""Trackers: what each of them is told, with stand-ins for their packages; `scripts/test-trainers` has the real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch.runs.trackers import TrackerKind, check, started

Told = list[tuple[Any, ...]]
POINTS = [("part 1", {"loss": 3.5, "error": 0.5}, "epoch", 4), ("part 1", {"loss": 2.5}, "epoch", 5)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the packages are told; each method is a name and its arguments, without the folder."""
    calls: Told = []

    def teller(name: str, result: Any = None) -> Any:
        def tell(*args: Any, **named: Any) -> Any:
            calls.append((name, *args, *named.items()))
            return result

        return tell

    writer = SimpleNamespace(**{name: teller(name) for name in ("add_text", "add_scalar", "close")})
    board = SimpleNamespace(id="one", **{name: teller(name) for name in ("define_metric", "log", "finish")})
    run = SimpleNamespace(info=SimpleNamespace(run_id="one"))
    names = ("set_experiment", "log_params", "log_metrics", "end_run")
    packages = {
        "torch.utils.tensorboard": {
            "SummaryWriter": lambda folder: calls.append(("writer", Path(folder).name)) or writer
        },
        "wandb": {"init": teller("init", board), "Settings": lambda **_: "settings"},
        "mlflow": {"start_run": teller("start_run", run), **{name: teller(name) for name in names}},
    }
    for name, content in packages.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return calls


EXPECTED: dict[TrackerKind, Told] = {
    "tensorboard": [
        ("writer", "tensorboard"), ("add_text", "options", "* lr: 0.1"),
        ("add_scalar", "part 1/loss", 3.5, 4), ("add_scalar", "part 1/error", 0.5, 4),
        ("add_scalar", "part 1/loss", 2.5, 5), ("close",),
    ],
    "wandb": [
        ("init", ("project", "onnxpart"), ("name", "run"), ("config", {"lr": 0.1}), ("settings", "settings")),
        ("define_metric", "part 1/error", ("step_metric", "part 1/epoch")),
        ("define_metric", "part 1/loss", ("step_metric", "part 1/epoch")),
        ("log", {"part 1/loss": 3.5, "part 1/error": 0.5, "part 1/epoch": 4}),
        ("log", {"part 1/loss": 2.5, "part 1/epoch": 5}), ("finish", ("exit_code", 1)),
    ],
    "mlflow": [
        ("set_experiment", "onnxpart"), ("start_run", ("run_id", None), ("run_name", "run")),
        ("log_params", {"lr": 0.1}), ("log_metrics", {"part 1/loss": 3.5, "part 1/error": 0.5}, ("step", 4)),
        ("log_metrics", {"part 1/loss": 2.5}, ("step", 5)), ("end_run", "FAILED"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_tracker_gets_options_points_and_the_end(kind: TrackerKind, told: Told, tmp_path: Path) -> None:
    check(kind)
    tracker = started(kind, tmp_path / "run", {"lr": 0.1})
    for point in POINTS:
        tracker.draw(*point)
    tracker.close(failed=True)
    assert told == EXPECTED[kind]


def test_a_run_goes_on(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options may have changed, which MLflow refuses; the experiment is what the user's variable says."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    for kind in ("wandb", "mlflow"):
        assert started(kind, tmp_path / "run", {"lr": 0.2}, "one").run == "one"
    first, second = told
    assert first[-2:] == (("id", "one"), ("resume", "allow"))
    assert second == ("start_run", ("run_id", "one"), ("run_name", "run"))


def test_a_tracker_that_is_missing_or_refuses_is_a_sentence(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("No API key configured.\nSee the guide.")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(
        OnnxpartError, match=r"wandb can't begin a run \(No API key configured\); set it up as its guide"
    ):
        started("wandb", tmp_path, {})
    assert not told
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="--log-to wandb needs the package wandb; install it with `pip install wandb`"):
        check("wandb")
