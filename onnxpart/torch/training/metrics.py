"""Metrics on test data, beside the loss: a mean over samples, or a metric of torchmetrics over all of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from math import isclose
from typing import Any, Literal

import torch
from torch import Tensor

from onnxpart.errors import UsageError, needs
from onnxpart.torch.data.sources import find_function
from onnxpart.torch.training.losses import ERROR, BinaryCrossEntropy, Criterion, CrossEntropy, Loss

FORMS = "accuracy, f1, auroc or module:function"
_CLASSES = {"accuracy": "Accuracy", "f1": "F1Score", "auroc": "AUROC"}
"""By name, the name of torchmetrics' class behind `Multiclass` or `Binary`."""
_AVERAGED = {"accuracy": "micro"}
"""Metrics that aren't averaged over classes: the share of labels that are right."""
_ROUNDING = 1e-6
"""The relative difference up to which values are the same: engines and workers differ in it."""


@dataclass
class Meter:
    """A metric of torchmetrics over a loss's outputs and targets; a copy for each network."""

    metric: Any
    loss: Loss

    def started(self, device: torch.device) -> Meter:
        """Return a copy on a device that has seen nothing."""
        metric = copy.deepcopy(self.metric).to(device)
        metric.reset()
        return Meter(metric, self.loss)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add the samples of a batch."""
        predicted, wanted = self.loss.predicted(output, target)
        self.metric.update(predicted.contiguous(), wanted.contiguous())  # some metrics call view

    def value(self) -> float:
        """Return the metric over all samples, in a process group over those of all ranks.

        :raises UsageError: when it isn't a single number.
        """
        found = self.metric.compute()
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise UsageError(f"the metric {type(self.metric).__name__} gives no single number; give one that does.")
        return float(found)


@dataclass(frozen=True)
class Metric:
    """What is measured on test data. `name`: empty for nothing. `measure`: a mean over a batch's samples, or a meter.

    `better`: the direction in which it is better; None if networks are judged by the loss.
    """

    name: str = ""
    measure: Criterion | Meter | None = field(default=None, compare=False)
    better: Literal["lower", "higher"] | None = None

    @property
    def key(self) -> Literal["metric", "loss"]:
        """The field of an `Epoch` that networks are judged by."""
        return "loss" if self.better is None else "metric"

    @property
    def judge(self) -> str:
        """What networks are judged by, in words."""
        return "loss" if self.better is None else self.name

    def as_good(self, value: float, wanted: float) -> bool:
        """Return whether a value is at least as good as another, up to rounding."""
        better = value >= wanted if self.better == "higher" else value <= wanted
        return better or isclose(value, wanted, rel_tol=_ROUNDING)

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.better == "higher" else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values."""
        return min(values) if self.better == "higher" else max(values)


def metric_of(loss: Loss) -> Metric:
    """Return the metric that goes with a loss, if there is one."""
    if not loss.metric:
        return Metric()
    return Metric(loss.metric, loss.measure, "lower" if loss.metric == ERROR else None)


def find_metric(text: str, loss: Loss) -> Metric:
    """Return the metric of torchmetrics that a text names.

    :param text: one of `FORMS`; a function takes nothing and gives a Metric. :param loss: bound to the data.
    :raises UsageError: without torchmetrics, for another text, or when the metric doesn't fit the loss or has no
        direction.
    """
    with needs(f"the metric {text}", "metrics"):
        torchmetrics = import_module("torchmetrics")
    if text in _CLASSES:
        found = _by_name(text, loss)
    elif ":" not in text:
        raise UsageError(f"the metric {text!r} isn't known; give {FORMS}.")
    else:
        try:
            found = find_function(text, "metric")()
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"the metric {text} fails ({reason}); make it work without arguments.") from None
    if not isinstance(found, torchmetrics.Metric):
        raise UsageError(f"the metric {text} gives a {type(found).__name__}; return a Metric of torchmetrics.")
    if found.higher_is_better is None:
        raise UsageError(f"the metric {text} doesn't say what is better; set higher_is_better in its class.")
    name = text if text in _CLASSES else type(found).__name__
    return Metric(name, Meter(found, loss), "higher" if found.higher_is_better else "lower")


def _by_name(name: str, loss: Loss) -> Any:
    classification = import_module("torchmetrics.classification")
    if isinstance(loss, CrossEntropy):
        make = getattr(classification, f"Multiclass{_CLASSES[name]}")
        return make(loss.shape[loss.axis], average=_AVERAGED.get(name, "macro"))
    if isinstance(loss, BinaryCrossEntropy):
        return getattr(classification, f"Binary{_CLASSES[name]}")()
    raise UsageError(
        f"the metric {name} is for the losses cross_entropy and bce; give module:function, or leave it out."
    )
