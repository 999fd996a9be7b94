"""Engines: how several parts take a step on the same batches. One after the other, or as one batched module."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap

from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch import optim
from onnxpart.torch.chance import drawing, seed_of
from onnxpart.torch.checkpoint import PartState
from onnxpart.torch.data import Batch
from onnxpart.torch.job import Job
from onnxpart.torch.lanes import side_by_side
from onnxpart.torch.module import ImportedModule
from onnxpart.torch.operators.modules import Dropout

_TRIALS = 3


class Engine(Protocol):
    """Parts side by side on a device. `busy` are the numbers of those that it is working on."""

    kind: Literal["series", "fused"]
    busy: tuple[int, ...]

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step, on the mean loss over some batches; return the losses [part]."""
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """Return loss and metric, 0 without one, over a batch [2, part], as in inference."""
        ...

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part; its tensors change with the next step."""
        ...

    def load(self, i: int, state: PartState) -> None:
        """Put the i-th part into a state."""
        ...

    def finish(self) -> None:
        """Leave the results in the modules, which are then in evaluation mode."""
        ...


def device_of(name: str) -> torch.device:
    """Return the device of a name: auto, cpu, cuda, or cuda:i.

    :raises UsageError: when there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} isn't known; choose auto, cpu, cuda or cuda:i.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} isn't supported; choose auto, cpu, cuda or cuda:i.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} isn't there ({torch.cuda.device_count()} GPUs found); use --device cpu.")
    return device


def output_of(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return a module's only output.

    :raises OnnxpartError: when it has several.
    """
    if not isinstance(result, Tensor):
        raise OnnxpartError("the model has several outputs; cut it down to the one to train (see onnxpart.cut).")
    return result


class Series:
    """One part after the other; on a CPU with the channels of images last in memory."""

    kind: Literal["series", "fused"] = "series"

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device, self.busy = job, device, job.numbers
        self.images = has_images(job.modules) and device.type == "cpu"
        for module in job.modules:
            module.to(device)
            if self.images:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.calls: list[nn.Module | Callable[..., Tensor]] = list(job.modules)
        if job.settings.compile:
            self.calls = [torch.compile(module) for module in job.modules]
        self.optimizers = [optim.optimizer(job.settings, module.parameters()) for module in job.modules]
        self.taken = [0] * len(job.modules)

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step (see `Engine.step`)."""
        batches = [moved(batch, self.device, self.images) for batch in batches]
        return torch.stack([self._step(i, batches, rate, step) for i in range(len(self.calls))])

    def _step(self, i: int, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        settings, module, optimizer = self.job.settings, self.job.modules[i], self.optimizers[i]
        self.busy = (self.job.numbers[i],)
        torch.manual_seed(seed_of(settings.seed, self.job.numbers[i], step))
        module.train()
        optimizer.zero_grad()
        losses = []
        for inputs, target in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.amp):
                output = output_of(self.calls[i](*inputs))
            loss = self.job.loss(output.float() if settings.amp else output, target)
            (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        _update(optimizer, rate)
        self.taken[i] += 1
        return torch.stack(losses).mean()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Return loss and metric (see `Engine.evaluate`)."""
        inputs, target = moved(batch, self.device, self.images)
        columns = []
        for module in self.job.modules:
            output = output_of(module.eval()(*inputs))
            columns.append(torch.stack(_judged(self.job, output, target)))
        return torch.stack(columns, 1)

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part."""
        module = self.job.modules[i]
        parameters = dict(module.named_parameters())
        return PartState(module.state_dict(), optim.slots(self.optimizers[i], parameters), self.taken[i])

    def load(self, i: int, state: PartState) -> None:
        """Put the i-th part into a state."""
        module = self.job.modules[i]
        module.load_state_dict(state.tensors)
        optim.set_slots(self.optimizers[i], dict(module.named_parameters()), state.slots, state.taken)
        self.taken[i] = state.taken

    def finish(self) -> None:
        """Leave the modules in evaluation mode."""
        for module in self.job.modules:
            module.zero_grad()
            module.eval()


class Fused:
    """Parts of the same shapes as one module whose tensors have a part axis in front.

    :raises UsageError: when the parts differ, or have dropout and are to be compiled.
    """

    kind: Literal["series", "fused"] = "fused"

    def __init__(self, job: Job, device: torch.device) -> None:
        check_alike(job.modules)
        if job.settings.compile and any(isinstance(layer, Dropout) for layer in job.modules[0].modules()):
            raise UsageError("fused parts with dropout can't be compiled; use the engine series, or don't compile.")
        self.job, self.device, self.busy = job, device, job.numbers
        self.parameters, self.buffers = stack_module_state([module.to(device).train() for module in job.modules])
        self.images = has_images(job.modules) and device.type == "cpu"
        self.base = copy.deepcopy(job.modules[0]).to("meta")
        if isinstance(self.base, ImportedModule) and not job.settings.compile:
            side_by_side(self.base.body)
        self.optimizer = optim.optimizer(job.settings, self.parameters.values())
        self.generators = [torch.Generator(device) for _ in job.modules]
        self.taken = 0
        self.losses = vmap(self._loss, in_dims=(0, 0, None, None))
        self.judged = vmap(self._judge, in_dims=(0, 0, None, None), out_dims=1)
        if job.settings.compile:
            self.losses = torch.compile(self.losses)

    def _call(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        return output_of(functional_call(self.base, (parameters, buffers), inputs))

    def _loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        amp = self.job.settings.amp
        with torch.autocast(self.device.type, torch.bfloat16, enabled=amp):
            output = self._call(parameters, buffers, inputs)
        return self.job.loss(output.float() if amp else output, target)

    def _judge(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        return torch.stack(_judged(self.job, self._call(parameters, buffers, inputs), target))

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let all parts take one step (see `Engine.step`)."""
        settings = self.job.settings
        for number, generator in zip(self.job.numbers, self.generators, strict=True):
            generator.manual_seed(seed_of(settings.seed, number, step))
        self.base.train()
        self.optimizer.zero_grad()
        losses = []
        for batch in batches:
            with drawing(self.generators):
                loss = self.losses(self.parameters, self.buffers, *moved(batch, self.device, self.images))
            (loss.sum() / len(batches)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if settings.clip is not None:
            _clip(self.parameters.values(), settings.clip)
        _update(self.optimizer, rate)
        self.taken += 1
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Return loss and metric (see `Engine.evaluate`)."""
        self.base.eval()
        result: Tensor = self.judged(self.parameters, self.buffers, *moved(batch, self.device, self.images))
        return result

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part."""
        both = {**self.parameters, **self.buffers}
        tensors = {key: both[key].detach()[i] for key in self.job.modules[i].state_dict()}
        stacked = optim.slots(self.optimizer, self.parameters)
        slots = {key: {slot: tensor[i] for slot, tensor in found.items()} for key, found in stacked.items()}
        return PartState(tensors, slots, self.taken)

    @torch.no_grad()
    def load(self, i: int, state: PartState) -> None:
        """Put the i-th part into a state."""
        both = {**self.parameters, **self.buffers}
        for key, tensor in state.tensors.items():
            both[key][i].copy_(tensor)
        kept = optim.slots(self.optimizer, self.parameters)
        for key, found in state.slots.items():
            for slot, tensor in found.items():
                stacked = kept.setdefault(key, {}).setdefault(slot, torch.zeros_like(self.parameters[key]))
                stacked[i].copy_(tensor)
        optim.set_slots(self.optimizer, self.parameters, kept, state.taken)
        self.taken = state.taken

    def finish(self) -> None:
        """Copy the results into the modules."""
        for i, module in enumerate(self.job.modules):
            module.load_state_dict(self.part(i).tensors)
            module.eval()


ENGINES: dict[str, type[Series] | type[Fused]] = {"series": Series, "fused": Fused}


def check_alike(modules: Sequence[nn.Module]) -> None:
    """Check that modules do the same with tensors of the same shapes.

    :raises UsageError: when they don't.
    """
    first, *others = [_form(module) for module in modules]
    for i, other in enumerate(others, 1):
        if other != first:
            raise UsageError(
                f"parts 0 and {i} differ in more than their weights, so they can't be fused; use the engine series."
            )


def _form(module: nn.Module) -> object:
    tensors = [(key, tensor.shape, tensor.dtype) for key, tensor in module.state_dict().items()]
    layers = [layer.code if isinstance(layer, fx.GraphModule) else _settings(layer) for layer in module.modules()]
    return tensors, layers


def _settings(layer: nn.Module) -> object:
    """Return a layer's kind and its numbers and words."""
    plain = [(key, value) for key, value in vars(layer).items() if isinstance(value, (bool, int, float, str))]
    return type(layer), [entry for entry in plain if entry[0] != "training"]


def has_images(modules: Sequence[nn.Module]) -> bool:
    """Return whether there is a weight of the form of a 2-d convolution's."""
    return any(p.dim() == 4 for module in modules for p in module.parameters())


def moved(batch: Batch, device: torch.device, images: bool) -> Batch:
    """Return a batch on a device, if asked for with the channels of images last in memory."""
    inputs, target = batch
    inputs = tuple(x.to(device, non_blocking=True) for x in inputs)
    if images:
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
    return inputs, target.to(device, non_blocking=True)


def _judged(job: Job, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = job.loss(output, target)
    return loss, loss.new_zeros(()) if job.metric is None else job.metric(output, target).to(loss)


def _update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


@torch.no_grad()
def _clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale gradients [part, ...] down to a norm, as `nn.utils.clip_grad_norm_` does, each part for itself."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


def choose(job: Job, device: torch.device) -> tuple[type[Series] | type[Fused], str]:
    """Return the faster engine by a few steps on copies of the parts, and why in words; nothing else changes."""
    if len(job.modules) == 1:
        return Series, ""
    batches = list(islice(job.loader.epoch(job.epochs.start), job.settings.accumulate))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*batching rule")  # torch would compute part by part after all
            fused = Fused(replace(job, modules=copy.deepcopy(job.modules)), device)
            fused.step(batches, 0.0, 0)
            fused.evaluate(batches[0])
    except (OnnxpartError, RuntimeError, UserWarning) as error:
        reason = str(error).splitlines()[0]
        return Series, f"engine series; fused isn't possible: {reason}"
    series = Series(replace(job, modules=copy.deepcopy(job.modules)), device)
    series.step(batches, 0.0, 0)
    times = [(_seconds(series, batches, device), _seconds(fused, batches, device)) for _ in range(_TRIALS)]
    ratio = min(one for one, _ in times) / min(other for _, other in times)
    if ratio > 1:
        return Fused, f"engine fused: {ratio:.2f} times as fast as series"
    return Series, f"engine series: {1 / ratio:.2f} times as fast as fused"


def _seconds(engine: Engine, batches: Sequence[Batch], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    engine.step(batches, 0.0, 0)
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
