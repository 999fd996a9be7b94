"""Settings are checked when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from onnxpart.errors import UsageError
from onnxpart.torch.training.settings import Settings


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"optimizer": "lion"}, "optimizer 'lion' isn't known; choose one of sgd, adam, adamw."),
        ({"schedule": "linear"}, "schedule 'linear' isn't known; choose one of constant, cosine, step, onecycle, wsd."),
        ({"epochs": -1}, "epochs is -1; it must be at least 0."),
        ({"momentum": -0.1}, "momentum is -0.1; it must be at least 0."),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0."),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1."),
        ({"seed": -1}, "seed is -1; it must be at least 0."),
        ({"first": -1}, "first is -1; it must be at least 0."),
        ({"lr": 0.0}, "lr is 0.0; it must be positive."),
        ({"lr": float("nan")}, "lr is nan; it must be positive."),
        ({"clip": 0.0}, "clip is 0.0; it must be positive."),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as found:
        Settings(**{"epochs": 1, **given})
    assert str(found.value) == sentence


def test_no_epochs_and_no_clipping_are_fine() -> None:
    assert Settings(0).clip is None
