"""When a network has not become better for some epochs, and what that ends."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onnxpart.errors import UsageError
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.metrics import Metric
from onnxpart.torch.training.patience import Patience
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import Result, train
from tests.networks.training import check_equal, parts, small, stripes

torch.set_num_threads(1)  # several threads are slow where other work shares the cores


def curve(values: Sequence[float | None]) -> list[Epoch]:
    return [Epoch(0.0, 0.0, value, value) for value in values]


@pytest.mark.parametrize(
    ("better", "values", "ends"),
    [
        ("lower", [3.0, 2.0, 2.0, 2.5], True),  # as good is no better
        ("lower", [3.0, 2.0, 2.0 - 1e-7, 2.5], True),  # nor is rounding
        ("lower", [3.0, 2.0, 2.5, 1.9], False),
        ("lower", [3.0, 2.0, 2.5], False),
        ("lower", [3.0, 2.0], False),
        ("lower", [1.0, 2.0, 3.0], True),
        ("higher", [1.0, 2.0, 3.0], False),
        ("higher", [3.0, 2.0, 2.5], True),
        (None, [3.0, 2.0, 2.5, 2.5], True),
        (None, [3.0, 2.0, 2.5, 1.0], False),
        ("lower", [1.0, nan, nan], True),
        ("lower", [nan, nan, nan], False),
        ("lower", [nan, 2.0, 1.0], False),
        ("higher", [1.0, nan, 2.0], False),
        (None, [None, None, None], False),
    ],
)
def test_patience_is_spent_when_nothing_is_better_than_the_best_before(
    better: Literal["lower", "higher"] | None, values: list[float | None], ends: bool
) -> None:
    patience = Patience(2, Metric("metric", None, better))
    assert patience.spent(curve(values)) == ends
    assert pickle.loads(pickle.dumps(patience)).spent(curve(values)) == ends


def test_the_loss_counts_only_where_there_is_no_metric_to_judge_by() -> None:
    worse = [Epoch(0.0, 0.0, loss, metric) for loss, metric in ((1.0, 0.5), (2.0, 0.4), (3.0, 0.3))]
    assert not Patience(2, Metric("error", None, "lower")).spent(worse)
    assert Patience(2, Metric("R2")).spent(worse)


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("lower", [3.0, 2.0, 2.0, 2.5], 1),  # the first of several as good
        ("lower", [3.0, 2.0, 2.0 - 1e-7], 1),
        ("higher", [3.0, 2.0, 4.0, 2.5], 2),
        ("lower", [nan, 3.0, nan], 1),
        (None, [None, None], 1),
    ],
)
def test_the_best_epoch_is_kept(
    better: Literal["lower", "higher"] | None, values: list[float | None], best: int
) -> None:
    assert Patience(2, Metric("metric", None, better)).kept(curve(values)) == best


def learned(epochs: int, patience: int | None, checkpoints: Checkpoints | None = None) -> tuple[Result, nn.Module]:
    """A network whose test loss is lowest after the fourth epoch, for three more."""
    (module,) = parts(small(), 1)
    (result,) = train(
        [module],
        stripes(),
        F.cross_entropy,
        Settings(epochs, lr=0.05, device="cpu"),
        engine="series",
        test=stripes(20, 7),
        ending=None if patience is None else Patience(patience, Metric()),
        checkpoints=checkpoints,
    )
    return result, module


def test_training_ends_with_the_best_weights_and_an_ended_run_stays_so(tmp_path: Path) -> None:
    straight, module = learned(4, None)
    longer, _ = learned(7, None)
    losses = [epoch.loss for epoch in longer.curve]
    assert losses.index(min(loss for loss in losses if loss is not None)) == 3
    checkpoints = Checkpoints(tmp_path)
    for found, same in (learned(20, 3, checkpoints), learned(20, 3, replace(checkpoints, resume=True))):
        assert [epoch.loss for epoch in found.curve] == losses
        check_equal([replace(found, curve=found.curve[:4])], [straight], [same], [module])
    patient, same = learned(20, 4, replace(checkpoints, resume=True))
    assert len(patient.curve) == 8
    check_equal([replace(patient, curve=patient.curve[:4])], [straight], [same], [module])


def test_the_best_weights_are_kept_where_all_epochs_are_trained(tmp_path: Path) -> None:
    """Whichever step a run is resumed at."""
    straight, module = learned(4, None)
    checkpoints = Checkpoints(tmp_path, every_steps=5, every_minutes=None, keep=100)
    found, same = learned(6, 3, checkpoints)
    check_equal([replace(found, curve=found.curve[:4])], [straight], [same], [module])
    for path in sorted(tmp_path.iterdir())[-3:]:
        path.unlink()
    found, same = learned(6, 3, replace(checkpoints, resume=True))
    check_equal([replace(found, curve=found.curve[:4])], [straight], [same], [module])


def test_several_networks_do_not_end_together() -> None:
    with pytest.raises(UsageError, match="ends the training of one network, and these are 2; train each alone"):
        train(parts(small()), stripes(), F.cross_entropy, Settings(2), ending=Patience(1, Metric()))
