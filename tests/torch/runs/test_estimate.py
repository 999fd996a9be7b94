"""What K parts would take, and what is advised from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models import cifar10_net, lenet, regression_mlp
from onnxpart import split
from onnxpart.errors import UsageError
from onnxpart.frontend.load import load
from onnxpart.torch.runs import estimate as module
from onnxpart.torch.runs.estimate import Estimate, Estimates, chosen, estimate, width
from onnxpart.torch.runs.task import RunOptions, opened
from onnxpart.torch.training.settings import Settings

OPTIONS = RunOptions("mnist5k", "mse", Settings(1, "adam", lr=0.001, device="cpu"), batch_size=50)
MODEL = load(regression_mlp(0, inputs=784, hidden=(8, 8)))
WIDE = Estimate(2, 128, 0.26, 10, 60.0, 30.0, 1.5, 2.3)
NARROW = replace(WIDE, k=8, width=16, series=3.0, parallel=4.0)
SLOW = replace(WIDE, k=4, series=0.8, parallel=1.9)


@pytest.mark.parametrize(
    ("model", "k", "expected"),
    [
        (regression_mlp(0, inputs=784, hidden=(256, 128)), 4, (64, 128)),
        (regression_mlp(0, inputs=4, hidden=(256, 32, 256)), 2, (16, 128)),
        (lenet(0), 2, (250, 128)),
        (lenet(0), 10, (50, 128)),
        (cifar10_net(0), 2, (32, 32)),
    ],
)
def test_width_is_that_of_the_layers_with_most_weights(model: object, k: int, expected: tuple[int, int]) -> None:
    """Of channels, as in the last network's convolutions and locally connected layers, fewer do."""
    assert width(split(model, k)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "spread", "best", "sentence"),
    [
        (
            [WIDE, NARROW, SLOW],
            0.1,
            2,
            "Use -k 2: training is 1.50 times as fast on one machine, and 2.30 times with a machine for each part.",
        ),
        (
            [NARROW, SLOW],
            0.1,
            None,
            "pay: with -k 4 training is 0.80 times as fast on one machine, and 1.90",
        ),
        ([replace(WIDE, series=1.04), SLOW], 0.1, None, "pay: with -k 2 training is 1.04 times"),
        ([WIDE, replace(WIDE, k=4, series=1.6)], 0.1, 2, "Use -k 2"),
        ([WIDE, replace(WIDE, k=4, series=1.7)], 0.1, 4, "Use -k 4"),
        ([NARROW, replace(NARROW, width=127)], 0.1, None, "less than 128 units may learn badly; no K leaves that many"),
        ([NARROW, Estimate(2, why_not="no layer is wide.")], 0.1, None, "Dividing doesn't pay: parts with less than"),
        ([Estimate(2, why_not="no layer is wide.")], 0.1, None, "Nothing is to be trained in parts: no layer is wide."),
        ([WIDE], 1.5, None, "steps differ by 150%: this machine is too busy to tell; try again later."),
    ],
)
def test_advice(rows: list[Estimate], spread: float, best: int | None, sentence: str) -> None:
    found = Estimates(100.0, spread, 40, rows)
    assert (found.best and found.best.k) == best
    assert sentence in found.advice


def test_steps_are_measured_and_nothing_is_changed() -> None:
    found = estimate(MODEL, OPTIONS, (2, 100))
    two, hundred = found.rows
    assert min(found.whole, two.together, two.one) > 0
    assert two.series == pytest.approx(found.whole / (two.together + 0.2 * found.whole))
    assert two.parallel == pytest.approx(found.whole / (two.one + 0.2 * found.whole))
    assert found.bytes == 4 * 4 * (784 * 8 + 8 + 8 * 8 + 8 + 8 + 1)  # weights, gradients, two moments
    assert two.bytes == 2 * 4 * 4 * (784 * 4 + 4 + 4 * 4 + 4 + 4 + 1)
    assert "100" in hundred.why_not
    assert not hundred.wide


def test_fit_takes_what_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(MODEL.proto, OPTIONS)
    monkeypatch.setattr(module, "estimate", lambda *_, **__: Estimates(100.0, 0.1, 40, [SLOW, WIDE]))
    assert chosen(MODEL, OPTIONS, data) == 2
    monkeypatch.setattr(module, "estimate", lambda *_, **__: Estimates(100.0, 0.1, 40, [NARROW]))
    with pytest.raises(
        UsageError, match=r"learn badly; no K leaves that many\. Train the whole with `onnxpart train`, or"
    ):
        chosen(MODEL, OPTIONS, data)
