"""Parts trained one after the other, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from onnxpart.torch.data.batch import Batch
from onnxpart.torch.part_random import seed_device, seed_of
from onnxpart.torch.training import optim
from onnxpart.torch.training.checkpoint import PartState
from onnxpart.torch.training.engine import begin_step, called, compiled, has_images, judged, moved, put, set_rate
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.metrics import Meter


class Series:
    """One part after the other, with the channels of images last in memory. One part at a time has gradients."""

    kind: Literal["series", "fused"] = "series"

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device, self.busy = job, device, job.numbers
        self.images = has_images(job.modules) and device.type in ("cpu", "cuda")
        for module in job.modules:
            module.to(device).zero_grad()
            if self.images:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.calls: list[Callable[..., Any]] = [
            compiled(self._call(module), job.settings, device) for module in job.modules
        ]
        self.optimizers = [optim.optimizer(job.settings, module.parameters()) for module in job.modules]
        self.scalers = [GradScaler(device.type, enabled=job.settings.scaled) for _ in job.modules]
        self.taken = [0] * len(job.modules)

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step (see `Engine.step`)."""
        batches = [moved(batch, self.device, self.images) for batch in batches]
        return torch.stack([self._step(i, batches, rate, step) for i in range(len(self.calls))])

    def _step(self, i: int, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let the i-th part take a step; return its loss."""
        settings, module = self.job.settings, self.job.modules[i]
        optimizer, scaler = self.optimizers[i], self.scalers[i]
        self.busy = (self.job.numbers[i],)
        seed_device(self._seed(i, step), self.device)
        module.train()
        begin_step(settings, self.device)
        losses = []
        for batch in batches:
            (inputs, target), weight = self._share(batch)
            loss = weight * self.job.loss(called(self.calls[i], inputs, self.device, settings), target)
            scaler.scale(loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if settings.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        set_rate(optimizer, rate)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        self.taken[i] += 1
        return torch.stack(losses).mean()

    def _call(self, module: nn.Module) -> Callable[..., Any]:
        """What a training step calls in place of a module."""
        return module

    def _seed(self, i: int, step: int) -> int:
        """Seed of the random numbers in a step of the i-th part."""
        return seed_of(self.job.settings.seed, self.job.numbers[i], step)

    def _share(self, batch: Batch) -> tuple[Batch, float]:
        """The samples of a batch that are computed here, and the weight of their mean."""
        return batch, 1.0

    @torch.no_grad()
    def evaluate(self, batch: Batch, meters: Sequence[Meter] = ()) -> Tensor:
        """Return loss and metric (see `Engine.evaluate`)."""
        inputs, target = moved(batch, self.device, self.images)
        columns = []
        for module, number in zip(self.job.modules, self.job.numbers, strict=True):
            self.busy = (number,)
            output = called(module.eval(), inputs, self.device, self.job.settings)
            columns.append(torch.stack(judged(self.job, output, target)))
            for meter in meters[len(columns) - 1 : len(columns)]:
                meter.update(output, target)
        return torch.stack(columns, 1)

    def together(self, *asked: bool) -> list[bool]:
        """Return what is asked (see `Engine.together`): no other process trains these parts."""
        return list(asked)

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part."""
        module = self.job.modules[i]
        parameters = dict(module.named_parameters())
        optimizer = self.optimizers[i]
        taken, scaler = optim.taken(optimizer, self.taken[i]), self.scalers[i].state_dict()
        return PartState(module.state_dict(), optim.slots(optimizer, parameters), taken, scaler)

    def load(self, i: int, state: PartState) -> None:
        """Put the i-th part into a state."""
        module = self.job.modules[i]
        put(module, state.tensors)
        optim.set_slots(self.optimizers[i], dict(module.named_parameters()), state.slots, state.taken)
        self.taken[i] = state.taken
        if state.scaler:
            self.scalers[i].load_state_dict(dict(state.scaler))

    def finish(self) -> None:
        """Leave the modules in evaluation mode."""
        for module in self.job.modules:
            module.eval()
