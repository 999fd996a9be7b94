"""Losses and their metrics, against torch's and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.errors import DataError, UsageError
from onnxpart.torch.training.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError

RNG = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 5, 3, generator=RNG)


@pytest.mark.parametrize("axis", [1, 2])
def test_cross_entropy_has_its_classes_anywhere(axis: int) -> None:
    loss = CrossEntropy(axis, tuple(LOGITS.shape))
    classes = torch.arange(4 * LOGITS[0].numel() // LOGITS.shape[axis]).reshape(4, -1) % 3
    torch.testing.assert_close(loss(LOGITS, classes), F.cross_entropy(LOGITS.movedim(axis, 1), classes))
    assert float(loss.measure(LOGITS, LOGITS.argmax(axis))) == 0
    assert float(loss.measure(LOGITS, (LOGITS.argmax(axis) + 1) % 3)) == 1


@pytest.mark.parametrize("axis", [1, 2])
def test_labels_are_smoothed_and_classes_weighed(axis: int) -> None:
    weights = tuple(range(1, LOGITS.shape[axis] + 1))
    loss = CrossEntropy(axis, tuple(LOGITS.shape), 0.2, weights)
    classes = torch.arange(4 * LOGITS[0].numel() // LOGITS.shape[axis]).reshape(4, -1) % 3
    surprise = -LOGITS.movedim(axis, -1).log_softmax(-1)
    weight = torch.tensor(weights)
    parts = 0.8 * weight[classes] * surprise.gather(-1, classes[..., None])[..., 0] + 0.2 * (surprise * weight).mean(-1)
    torch.testing.assert_close(loss(LOGITS, classes), parts.sum() / weight[classes].sum())


@pytest.mark.parametrize(
    ("smoothing", "weights", "sentence"),
    [
        (1.0, (), "label smoothing is 1; it must be at least 0"),
        (-0.1, (), "label smoothing is -0.1; it must be at least 0"),
        (0.0, (1.0, 2.0), "class weights 1,2 aren't possible; give 3 positive numbers"),
        (0.0, (1.0, 2.0, 0.0), "class weights 1,2,0 aren't possible; give 3 positive numbers"),
    ],
)
def test_smoothing_and_weights_that_make_no_sense(smoothing: float, weights: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        CrossEntropy(1, (4, 3), smoothing, weights)


def test_binary_cross_entropy() -> None:
    loss, target = BinaryCrossEntropy((4, 5, 3)), (LOGITS > 0).float()
    torch.testing.assert_close(loss(LOGITS, target), F.binary_cross_entropy_with_logits(LOGITS, target))
    assert float(loss.measure(LOGITS, target)) == 0
    assert float(loss.measure(LOGITS, 1 - target)) == 1


def test_mean_squared_error() -> None:
    loss = MeanSquaredError((4, 5, 3), 2.0)
    torch.testing.assert_close(loss(LOGITS, LOGITS + 2), torch.tensor(4.0))
    torch.testing.assert_close(loss.measure(LOGITS, LOGITS + 2), torch.tensor(1 - 4 / 2.0))  # of the variance


@pytest.mark.parametrize(
    ("loss", "target", "reason"),
    [
        (CrossEntropy(1, (4, 3)), torch.zeros(4), "int"),
        (CrossEntropy(1, (4, 3)), torch.full((4,), 3), "3"),
        (CrossEntropy(1, (4, 3)), torch.zeros(4, 2, dtype=torch.int64), "give one class for each"),
        (BinaryCrossEntropy((4, 3)), torch.full((4, 3), 2.0), "0"),
        (BinaryCrossEntropy((4, 3)), torch.zeros(4, 2), r"\[4, 2\]|\[N, 3\]|3"),
        (MeanSquaredError((4, 3)), torch.zeros(4, 2), r"\[4, 2\]|\[N, 3\]|3"),
    ],
)
def test_targets_that_do_not_fit(loss: Loss, target: Tensor, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        loss.prepare(((torch.zeros(4, 1),), target))
