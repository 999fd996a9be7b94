"""Parts that are alike, trained as one batch of networks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from onnxpart.errors import UsageError
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.importer.graph_module import Body
from onnxpart.torch.importer.module import ImportedModule
from onnxpart.torch.part_random import drawing, seed_device, seed_of
from onnxpart.torch.training import optim
from onnxpart.torch.training.checkpoint import PartState
from onnxpart.torch.training.engine import begin_step, called, compiled, has_images, judged, moved, put, set_rate
from onnxpart.torch.training.grouped_kernels import use_grouped_kernels
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.metrics import Meter


class Fused:
    """Parts of the same shapes as one module whose tensors have a part axis in front.

    Parts that are compiled draw what dropout needs from torch's own generator, seeded for the step; others from one of
    their own each.

    :raises UsageError: when the parts differ, have group norms and are to be compiled, or are to be trained in float16.
    """

    kind: Literal["series", "fused"] = "fused"

    def __init__(self, job: Job, device: torch.device) -> None:
        check_alike(job.modules)
        if job.settings.compile and _has_group_norm(job.modules[0]):  # torch asks there how images lie in memory
            raise UsageError("fused parts with group norms can't be compiled; use the engine series, or don't compile.")
        if job.settings.scaled:
            raise UsageError(
                "fused parts take every step together, but in float16 a part skips those that overflow; use the engine "
                "series, or bfloat16."
            )
        self.job, self.device, self.busy = job, device, job.numbers
        stacked, self.buffers = stack_module_state([module.to(device).train() for module in job.modules])
        self.parameters: dict[str, Tensor] = {
            key: nn.Parameter(x.detach(), x.requires_grad) for key, x in stacked.items()
        }
        for buffer in self.buffers.values() if job.settings.compile else ():  # CUDA graphs take parameters so already
            import_module("torch._dynamo").mark_static_address(buffer)  # slow to import
        self.images = has_images(job.modules) and device.type == "cpu"
        self.base = copy.deepcopy(job.modules[0]).to("meta")
        if isinstance(self.base, ImportedModule) and not job.settings.compile:
            use_grouped_kernels(self.base)
        self.optimizer = optim.optimizer(job.settings, self.parameters.values(), axes=1)
        self.generators = [torch.Generator(device) for _ in job.modules]
        self.taken = 0
        draws = "different" if job.settings.compile else "error"
        losses = vmap(self._loss, in_dims=(0, 0, None, None), randomness=draws)
        self.losses = compiled(losses, job.settings, device)
        self.judged = vmap(self._judge, in_dims=(0, 0, None, None), out_dims=(1, 0))

    def _call(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        def call(*given: Tensor) -> object:
            return functional_call(self.base, (parameters, buffers), given)

        return called(call, inputs, self.device, self.job.settings)

    def _loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        return self.job.loss(self._call(parameters, buffers, inputs), target)

    def _judge(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = self._call(parameters, buffers, inputs)
        return torch.stack(judged(self.job, output, target)), output

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let all parts take one step (see `Engine.step`)."""
        settings = self.job.settings
        for number, generator in zip(self.job.numbers, self.generators, strict=True):
            generator.manual_seed(seed_of(settings.seed, number, step))
        if settings.compile:
            seed_device(seed_of(settings.seed, self.job.numbers[0], step), self.device)
        self.base.train()
        self.optimizer.zero_grad()
        begin_step(settings, self.device)
        losses = []
        for batch in batches:
            with drawing(self.generators):
                loss = self.losses(self.parameters, self.buffers, *moved(batch, self.device, self.images))
            (loss.sum() / len(batches)).backward()
            losses.append(loss.detach())
        if settings.clip is not None:
            _clip(self.parameters.values(), settings.clip)
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        self.taken += 1
        return torch.stack(losses).mean(0)

    @torch.no_grad()
    def evaluate(self, batch: Batch, meters: Sequence[Meter] = ()) -> Tensor:
        """Return loss and metric (see `Engine.evaluate`)."""
        self.base.eval()
        inputs, target = moved(batch, self.device, self.images)
        result, outputs = self.judged(self.parameters, self.buffers, inputs, target)
        for meter, output in zip(meters, outputs, strict=False):
            meter.update(output, target)
        found: Tensor = result
        return found

    def together(self, *asked: bool) -> list[bool]:
        """Return what is asked (see `Engine.together`): no other process trains these parts."""
        return list(asked)

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
            put(module, self.part(i).tensors)
            module.eval()


def _has_group_norm(module: nn.Module) -> bool:
    """Return whether a module has a group norm, as a layer or in a graph."""
    layers = list(module.modules())
    nodes = [node for layer in layers if isinstance(layer, Body) for node in layer.program.graph.nodes]
    return any(isinstance(layer, nn.GroupNorm) for layer in layers) or any(n.target is F.group_norm for n in nodes)


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
    layers = [layer.program.code if isinstance(layer, Body) else _settings(layer) for layer in module.modules()]
    return tensors, layers


def _settings(layer: nn.Module) -> object:
    """Return a layer's kind and its numbers and words."""
    plain = [(key, value) for key, value in vars(layer).items() if isinstance(value, (bool, int, float, str))]
    return type(layer), [entry for entry in plain if entry[0] != "training"]


@torch.no_grad()
def _clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale gradients [part, ...] down to a norm, as `nn.utils.clip_grad_norm_` does, each part for itself."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
