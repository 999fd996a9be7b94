"""Which rates and schedules parts and whole have, and when parts merge."""

from __future__ import annotations

import pytest

from onnxpart.errors import UsageError
from onnxpart.torch.runs.recipe import Recipe, checks, enough, epochs_of_parts, remaining
from onnxpart.torch.training.settings import OptimizerKind, Settings


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1), ("adam", 4), ("adamw", 4)])
def test_parts_have_the_rate_of_their_width(optimizer: OptimizerKind, factor: int) -> None:
    settings = Settings(10, optimizer, lr=0.5, weight_decay=0.25)
    parts, whole = Recipe().parts(settings, 4, 8), Recipe().whole(settings, range(8, 10))
    assert (parts.lr, parts.schedule, parts.epochs, parts.weight_decay) == (0.5 * factor, "constant", 8, 0.25)
    assert (whole.lr, whole.schedule, whole.first, whole.epochs) == (0.5, "cosine", 8, 10)
    assert 0 < parts.warmup < whole.warmup
    assert Recipe(parts_lr=0.125).parts(settings, 4, 8).lr == 0.125
    assert Recipe(schedule="wsd").whole(settings, range(8, 10)).schedule == "wsd"


def test_the_papers_recipe_is_one_schedule() -> None:
    settings, recipe = Settings(10, "adam", lr=0.5), Recipe("paper", schedule="step")
    assert recipe.parts(settings, 4, 5) == recipe.whole(settings, range(5, 10))
    assert recipe.parts(settings, 4, 5) == Settings(10, "adam", lr=0.5, schedule="step")
    assert Recipe("paper").parts(settings, 4, 5) == settings
    assert (recipe.init, Recipe().init) == ("slices", "scaled")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_whose_state_merges(optimizer: OptimizerKind) -> None:
    assert Recipe("paper").merges_state(optimizer)
    assert Recipe().merges_state(optimizer) == (optimizer == "sgd")


def test_what_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="the recipe 'mine' is unknown; choose one of auto, paper"):
        Recipe("mine")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be positive"):
        Recipe(parts_lr=-1.0)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 24, 100])
def test_epochs_are_shared_between_parts_and_whole(epochs: int) -> None:
    assert Recipe("paper").longest(epochs) == max(epochs // 2, 1)
    parts = Recipe().longest(epochs)
    assert parts == epochs
    assert parts <= 5 * remaining(parts) < parts + 5
    assert epochs_of_parts(parts + remaining(parts)) == parts
    within = epochs_of_parts(epochs)
    assert within + remaining(within) <= max(epochs, 2)
    pieces = checks(range(3, 3 + epochs))
    assert [epoch for piece in pieces for epoch in piece] == list(range(3, 3 + epochs))
    assert len(pieces) <= 20


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([1.0] * 5, False),
        ([1.0] * 6, True),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], False),
        ([1.0, 0.9, 0.8, 0.7, 0.69, 0.68], True),
        ([1.0, 0.9, 0.8, 0.7, 0.9, 0.6], False),
        ([0.1, 0.9, 0.8, 0.7, 0.6, 0.5], True),
    ],
)
def test_parts_that_no_longer_pay(losses: list[float], stops: bool) -> None:
    assert enough(losses) is stops
