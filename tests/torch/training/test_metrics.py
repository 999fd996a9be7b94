"""Metrics over all test samples, as scikit-learn computes them, and in which direction they are better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch.nn import functional as F

from onnxpart.errors import UsageError
from onnxpart.torch.training.data_parallel import DataParallel
from onnxpart.torch.training.engine import Engine
from onnxpart.torch.training.fused import Fused
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.loop import evaluated
from onnxpart.torch.training.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError
from onnxpart.torch.training.metrics import Meter, Metric, find_metric, metric_of
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import Settings
from tests.networks.training import one_rank, parts, small, stripes

CLASSES = CrossEntropy(1, (10, 10))


@pytest.mark.parametrize("kind", [Series, Fused, DataParallel])
def test_each_part_is_measured_over_all_samples(kind: type[Series] | type[Fused]) -> None:
    modules, loader = parts(small()), stripes(37)
    job = Job(
        modules, (0, 1), loader, F.cross_entropy, Settings(0), range(0), metric=find_metric("f1", CLASSES).measure
    )
    with torch.no_grad(), one_rank():
        engine: Engine = kind(job, torch.device("cpu"))
        found = [evaluated(engine, loader) for _ in range(2)]
        classes = [module.eval()(*loader.inputs).argmax(1) for module in modules]
    for (_, value), (_, again), predicted in zip(*found, classes, strict=True):
        assert value == again == pytest.approx(f1_score(loader.target, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize(("better", "worse"), [("lower", 2.1), ("higher", 1.9)])
def test_a_difference_of_rounding_is_as_good(better: Literal["lower", "higher"], worse: float) -> None:
    metric = Metric("metric", None, better)
    assert [metric.as_good(value, 2.0) for value in (2.0 - 1e-7, 2.0 + 1e-7, worse)] == [True, True, False]


Reference = Callable[[torch.Tensor, torch.Tensor], float]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", lambda scores, target: accuracy_score(target, scores.argmax(1))),
        ("f1", lambda scores, target: f1_score(target, scores.argmax(1), average="macro")),
        ("auroc", lambda scores, target: roc_auc_score(target, scores.softmax(1), multi_class="ovr")),
    ],
)
def test_of_classes(name: str, reference: Reference) -> None:
    """Logits from 0 to 1 in the first batch mustn't pass for probabilities."""
    draw = torch.Generator().manual_seed(0)
    scores, target = torch.rand(60, 3, generator=draw), torch.randint(3, (60,), generator=draw)
    scores[20:] *= 9
    found = find_metric(name, CrossEntropy(-1, (60, 3)))
    assert (found.name, found.better, found.judge) == (name, "higher", name)
    assert measured(found, scores, target) == pytest.approx(reference(scores, target))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", lambda scores, target: accuracy_score(target.flatten() > 0.5, scores.flatten() > 0)),
        ("f1", lambda scores, target: f1_score(target.flatten() > 0.5, scores.flatten() > 0)),
        ("auroc", lambda scores, target: roc_auc_score(target.flatten() > 0.5, scores.flatten())),
    ],
)
def test_of_two_classes(name: str, reference: Reference) -> None:
    draw = torch.Generator().manual_seed(0)
    scores, target = torch.randn(60, 2, generator=draw), torch.rand(60, 2, generator=draw)
    assert measured(find_metric(name, BinaryCrossEntropy((60, 2))), scores, target) == pytest.approx(
        reference(scores, target)
    )


def measured(metric: Metric, scores: torch.Tensor, target: torch.Tensor) -> float:
    """The metric over two batches."""
    assert isinstance(metric.measure, Meter)
    meter = metric.measure.started(torch.device("cpu"))
    for rows in (slice(20), slice(20, None)):
        meter.update(scores[rows], target[rows])
    return meter.value()


FUNCTIONS = """
import torchmetrics

error = torchmetrics.MeanAbsoluteError
several = lambda: torchmetrics.MeanSquaredError(num_outputs=2)
curve = lambda: 3

def broken():
    raise KeyError("x")

def neither():
    class Neither(torchmetrics.MeanAbsoluteError):
        higher_is_better = None
    return Neither()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("mine")
def test_a_metric_of_ones_own_has_the_direction_that_torchmetrics_knows() -> None:
    found = find_metric("my_metrics:error", MeanSquaredError((60, 2)))
    assert (found.name, found.key, found.better) == ("MeanAbsoluteError", "metric", "lower")
    scores = torch.arange(60.0)[:, None].expand(60, 2)
    assert measured(found, scores, scores + torch.arange(60.0)[:, None]) == pytest.approx(29.5)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("text", "loss", "sentence"),
    [
        ("recall", CLASSES, r"the metric 'recall' isn't known; give accuracy, f1, auroc or module:function\."),
        ("f1", MeanSquaredError((1,)), "f1 is for the losses cross_entropy and bce; give module:function, or leave"),
        ("my_metrics:nothing", CLASSES, "the metric 'my_metrics:nothing' can't be imported"),
        ("my_metrics:broken", CLASSES, r"broken fails \(KeyError: 'x'\); make it work without arguments"),
        ("my_metrics:curve", CLASSES, "curve gives a int; return a Metric of torchmetrics"),
        ("my_metrics:neither", CLASSES, "doesn't say what is better; set higher_is_better in its class"),
    ],
)
def test_what_is_no_metric(text: str, loss: Loss, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_metric(text, loss)


@pytest.mark.usefixtures("mine")
def test_a_metric_of_several_numbers_is_none() -> None:
    found = find_metric("my_metrics:several", MeanSquaredError((60, 2)))
    with pytest.raises(UsageError, match="the metric MeanSquaredError gives no single number; give one that does"):
        measured(found, torch.zeros(60, 2), torch.ones(60, 2))


def test_what_is_better() -> None:
    lower, higher = metric_of(CLASSES), Metric("auroc", None, "higher")
    assert (lower.judge, lower.key, metric_of(MeanSquaredError((1,), 2.0)).key) == ("error rate", "metric", "loss")
    assert [metric.best([1.0, 2.0]) for metric in (lower, higher, Metric())] == [1.0, 2.0, 1.0]
    assert [metric.worst([1.0, 2.0]) for metric in (lower, higher, Metric())] == [2.0, 1.0, 2.0]
    assert [metric.as_good(1.0, 2.0) for metric in (lower, higher)] == [True, False]
    assert all(metric.as_good(1.0, 1.0) for metric in (lower, higher))
