"""Losses and the metrics that go with them, for an output of a known shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.errors import DataError, UsageError
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.signature import dtype_name, listed

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Output and target of a batch -> mean over its samples, a scalar."""
ERROR = "error rate"
"""The metric of classes: the share of wrong ones."""


class Loss(Protocol):
    """A loss that fits an output, and the metric that goes with it."""

    @property
    def metric(self) -> str:
        """The name of what `measure` returns; empty if that is nothing."""
        ...

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss over the samples of a batch."""
        ...

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the metric, a mean over the samples of a batch."""
        ...

    def predicted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and target as torchmetrics takes them: probabilities, with classes along the second axis."""
        ...

    def prepare(self, samples: Batch) -> Batch:
        """Return the samples with the target in the form that the loss takes.

        :raises DataError: when it doesn't fit.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Of logits with classes along `axis`, in nats; targets are classes, int64, in the output's other axes.

    `smoothing`: the share of a label that is spread over all classes. `weights`: one for each class, or none; the mean
    over a batch is weighted by them.

    :raises UsageError: when they make no sense, or when there are more or fewer weights than classes.
    """

    axis: int
    shape: tuple[int, ...]
    smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    metric: str = ERROR

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"label smoothing is {self.smoothing:g}; it must be at least 0 and less than 1.")
        classes = self.shape[self.axis]
        if self.weights and (len(self.weights) != classes or not all(0 < weight < inf for weight in self.weights)):
            listing = ",".join(f"{weight:g}" for weight in self.weights)
            raise UsageError(f"class weights {listing} aren't possible; give {classes} positive numbers.")

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all labels."""
        weights = output.new_tensor(self.weights) if self.weights else None
        return F.cross_entropy(output.movedim(self.axis, 1), target, weights, label_smoothing=self.smoothing)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the share of labels that aren't the class of the largest logit."""
        return (output.argmax(self.axis) != target).float().mean()

    def predicted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities of classes (see `Loss.predicted`)."""
        return output.softmax(self.axis).movedim(self.axis, 1), target

    def prepare(self, samples: Batch) -> Batch:
        """Return the samples with labels as int64 (see `Loss.prepare`)."""
        inputs, target = samples
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise DataError(
                f"the labels have type {dtype_name(target.dtype)}; cross_entropy takes classes as integers."
            )
        classes = self.shape[self.axis]
        wanted = (*self.shape[1 : self.axis], *self.shape[self.axis + 1 :])
        if target.shape[1:] == (*wanted, 1):
            target = target.squeeze(-1)
        if target.shape[1:] != wanted:
            raise DataError(
                f"a sample has labels {listed(target.shape[1:])}, the output {listed(self.shape[1:])} wants "
                f"{listed(wanted)}; give one class for each."
            )
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"there is a label {low if low < 0 else high}, but the output has the classes 0 to {classes - 1}; "
                "number "
                "the labels from 0, or use a network with more classes."
            )
        return inputs, target.long()


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Of logits, in nats; targets are probabilities in the output's shape."""

    shape: tuple[int, ...]
    metric: str = ERROR

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all elements."""
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype))

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the share of elements on the wrong side of one half."""
        return ((output > 0) != (target > 0.5)).float().mean()

    def predicted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, and targets of 0 and 1 (see `Loss.predicted`)."""
        return output.sigmoid(), (target > 0.5).long()

    def prepare(self, samples: Batch) -> Batch:
        """Return the samples with targets as floats (see `Loss.prepare`)."""
        inputs, target = samples
        target = _shaped(target, self.shape)
        low, high = float(target.min()), float(target.max())
        if not (low >= 0 and high <= 1):
            raise DataError(f"there is a target {low if not low >= 0 else high}; bce takes probabilities from 0 to 1.")
        return inputs, target


@dataclass(frozen=True)
class MeanSquaredError:
    """Of any output; `variance`: of the test targets, around the mean of each element of a sample."""

    shape: tuple[int, ...]
    variance: float = 0.0

    @property
    def metric(self) -> str:
        """R2, unless the test targets are all the same."""
        return "R2" if self.variance > 0 else ""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over all elements."""
        return F.mse_loss(output, target.to(output.dtype))

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the explained share of the variance; its mean over batches is that of all samples."""
        return 1 - self(output, target) / self.variance

    def predicted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as they are."""
        return output, target

    def prepare(self, samples: Batch) -> Batch:
        """Return the samples with targets as floats (see `Loss.prepare`)."""
        inputs, target = samples
        return inputs, _shaped(target, self.shape)


@dataclass(frozen=True)
class Custom:
    """A function of the user's: (output, target) -> scalar."""

    function: Criterion
    metric: str = ""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return what the function returns."""
        return self.function(output, target)

    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self(output, target)

    def predicted(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as they are."""
        return output, target

    def prepare(self, samples: Batch) -> Batch:
        """Return the samples as they are."""
        return samples


def _shaped(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return targets in the output's shape; axes of one element may be missing or left over."""
    if target.dtype == torch.bool or not target.is_floating_point():
        target = target.float()
    if target.shape[1:] != shape[1:] and [n for n in target.shape[1:] if n > 1] != [n for n in shape[1:] if n > 1]:
        raise DataError(
            f"a sample has targets {listed(target.shape[1:])}, the output is {listed(shape[1:])}; give them that shape."
        )
    if not target.isfinite().all():
        raise DataError("there are targets that are NaN or infinite; leave those samples out.")
    return target.reshape(len(target), *shape[1:])
