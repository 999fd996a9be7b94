"""What ends a run, and how many epochs a budget allows."""

from __future__ import annotations

from math import nan

import pytest

from onnxpart.errors import UsageError
from onnxpart.torch.runs.goal import Goal
from onnxpart.torch.training.metrics import Metric


def test_a_target_is_reached_from_above_or_from_below() -> None:
    goal, values = Goal(target=0.5), (0.6, 0.5, 0.4, nan, None)
    error, accuracy, other = Metric("error", None, "lower"), Metric("accuracy", None, "higher"), Metric("R2")
    assert [goal.reached(error, 0.0, value) for value in values] == [False, True, True, False, False]
    assert [goal.reached(accuracy, 1.0, value) for value in values] == [True, True, False, False, False]
    assert [goal.reached(other, value, 0.0) for value in values] == [False, True, True, False, False]
    assert not Goal(steps=5).reached(error, 0.0, 0.0)


def test_parts_have_five_sixths_of_a_budget_in_minutes() -> None:
    goal = Goal(minutes=2.0)
    assert (goal.spent(119.0), goal.spent(120.0)) == (False, True)
    assert (goal.spent_on_parts(99.0), goal.spent_on_parts(101.0)) == (False, True)
    assert not Goal(target=1.0, steps=1).spent(1e9)


@pytest.mark.parametrize(
    ("goal", "epochs"),
    [
        (Goal(), 100),
        (Goal(target=0.1), 100),
        (Goal(steps=59), 5),
        (Goal(steps=10_000), 100),
        (Goal(minutes=2.0), 20),  # of 10 steps: 0.8 of 0.5 s and 0.2 of 1 s each
        (Goal(minutes=1000.0), 100),
    ],
)
def test_a_budget_is_some_epochs(goal: Goal, epochs: int) -> None:
    assert goal.epochs(100, 10, (0.5, 1.0), 0.8) == epochs


@pytest.mark.parametrize(
    ("goal", "needed"), [(Goal(steps=19), "take 20 steps"), (Goal(minutes=0.1), "take about 0.2 minutes")]
)
def test_a_budget_must_suffice_for_an_epoch_of_each(goal: Goal, needed: str) -> None:
    with pytest.raises(UsageError, match=f"the budget is too small: an epoch of .* {needed}"):
        goal.epochs(100, 10, (0.5, 1.0), 0.8)
    assert goal.epochs(1, 10, (0.5, 1.0), 0.8) <= 1


@pytest.mark.parametrize("wrong", [{"target": nan}, {"steps": 0}, {"minutes": -1.0}])
def test_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        Goal(**wrong)  # type: ignore[arg-type]
