"""The ranks of a process group train a part together, each on its share of every batch's samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onnxpart.torch.data.batch import Batch
from onnxpart.torch.part_random import seed_of
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.metrics import Meter
from onnxpart.torch.training.series import Series


class DataParallel(Series):
    """All ranks take the same steps, on the mean gradient of the whole batch.

    Each rank draws its own dropout, and a norm over a batch sees only the rank's samples.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step (see `Engine.step`)."""
        return self._mean(super().step(batches, rate, step))

    def evaluate(self, batch: Batch, meters: Sequence[Meter] = ()) -> Tensor:
        """Return loss and metric (see `Engine.evaluate`)."""
        share, weight = self._share(batch)
        return self._mean(super().evaluate(share, meters if weight else ()) * weight)

    def together(self, *asked: bool) -> list[bool]:
        """Whether any rank asks for each of some things (see `Engine.together`)."""
        found = torch.tensor(asked, dtype=torch.float32, device=self.device)
        dist.all_reduce(found)
        return [bool(each) for each in found.tolist()]

    def _call(self, module: nn.Module) -> DistributedDataParallel:
        """A module whose gradients are the mean over all ranks."""
        return DistributedDataParallel(module)

    def _seed(self, i: int, step: int) -> int:
        """Seed of this rank's random numbers in a step of the i-th part."""
        return seed_of(self.job.settings.seed, self.job.numbers[i], step, self.rank)

    def _share(self, batch: Batch) -> tuple[Batch, float]:
        """This rank's samples, and their weight in the mean over ranks; a rank without samples gets one of weight 0."""
        inputs, target = batch
        own = range(self.rank, len(target), self.ranks)
        rows = slice(self.rank, None, self.ranks) if own else slice(1)
        return (tuple(x[rows] for x in inputs), target[rows]), len(own) * self.ranks / len(target)

    def _mean(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values / self.ranks


def ring(workers: int, size: int) -> float:
    """Return the bytes that each worker sends if they take the mean of `size` bytes by a ring."""
    return 2 * (workers - 1) / workers * size


def gradient_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's gradients; workers take their mean for each batch."""
    return sum(p.nbytes for p in module.parameters() if p.requires_grad)
