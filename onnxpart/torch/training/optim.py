"""Torch's optimizers and schedules, and the way of their state into arrays by initializer name and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from onnxpart.errors import OnnxpartError
from onnxpart.merging.optimizer_state import OptimizerState
from onnxpart.torch.importer.module import tensor_name
from onnxpart.torch.tensors import sharded_like, to_array, to_tensor
from onnxpart.torch.training.settings import Settings

Slots = dict[str, dict[str, Tensor]]
"""Parameter's key in the module -> slot -> tensor."""
_STEP = "step"
_DECAY = 5
"""The last one in so many steps: there a constant rate falls."""


def optimizer(settings: Settings, parameters: Iterable[nn.Parameter | Tensor], axes: int = 0) -> torch.optim.Optimizer:
    """Return torch's optimizer over the parameters that are trained; vectors and numbers don't decay.

    It is torch's fused one, which takes a step over all parameters in one kernel, on a CPU, too. If steps may be
    skipped, SGD begins with momenta of 0: torch's would have no value after a first step that is skipped.

    :param axes: the number of axes in front of a parameter's own, such as that of stacked parts.
    :raises OnnxpartError: when nothing is trained.
    """
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    if not chosen:
        raise OnnxpartError("the model has no weights to train, or all are frozen; check the export.")
    groups = [
        {"params": [p for p in chosen if p.dim() - axes > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in chosen if p.dim() - axes <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        sharded = any(hasattr(parameter, "device_mesh") for parameter in chosen)  # torch has no fused SGD for these
        sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=None if sharded else True)
        for parameter in chosen if settings.scaled and settings.momentum else ():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return sgd
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=True)


def rates(settings: Settings, steps: int) -> Iterator[float]:
    """Yield the rate of each of `steps` steps, as torch's scheduler gives them; a constant rate has no end."""
    warm = max(ceil(settings.warmup * steps), 1)
    for step, rate in enumerate(_scheduled(settings, steps)):
        yield rate * min((step + 1) / warm, 1.0)


def _scheduled(settings: Settings, steps: int) -> Iterator[float]:
    """Yield the rate of each step, warm-up aside."""
    if settings.schedule == "constant":
        yield from repeat(settings.lr)
    probe = torch.optim.SGD([torch.zeros(())], lr=settings.lr)
    schedule = _schedule(settings, probe, max(steps, 1))
    for step in range(steps):
        yield probe.param_groups[0]["lr"]
        probe.step()
        if step + 1 < steps:
            schedule.step()


def _schedule(settings: Settings, probe: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(probe, steps)
    if settings.schedule == "step":
        return lr_scheduler.StepLR(probe, -(-steps // 3), 0.1)
    if settings.schedule == "wsd":
        return lr_scheduler.LambdaLR(probe, lambda step: min(_DECAY * (steps - step) / steps, 1.0))
    return lr_scheduler.OneCycleLR(probe, settings.lr, steps, cycle_momentum=False)


def slots(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> Slots:
    """Return what the optimizer remembers of each parameter, by key; step counts left out."""
    found = {key: optimizer.state.get(parameter, {}) for key, parameter in parameters.items()}
    return {
        key: {slot: tensor for slot, tensor in state.items() if slot != _STEP and isinstance(tensor, Tensor)}
        for key, state in found.items()
        if state
    }


def taken(optimizer: torch.optim.Optimizer, steps: int) -> int:
    """Return the steps that an optimizer counted, of so many; Adam doesn't count those that a scaler skipped."""
    counts = [state[_STEP] for state in optimizer.state.values() if _STEP in state]
    return int(torch.stack(counts).max()) if counts else steps


def set_slots(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], given: Slots, step: int) -> None:
    """Give the optimizer back what it remembered after `step` steps, in the layout of its parameters."""
    for key, tensors in given.items():
        parameter = parameters[key]
        state = optimizer.state[parameter]
        for slot, tensor in tensors.items():
            state[slot] = torch.empty_like(parameter, requires_grad=False).copy_(sharded_like(parameter, tensor))
        if not isinstance(optimizer, torch.optim.SGD):
            state[_STEP] = torch.tensor(float(step), device=parameter.device)


def from_state(state: OptimizerState, kind: str, parameters: Mapping[str, Tensor]) -> Slots:
    """Return a state's tensors by the parameters' keys in the module; tensors of no parameter are ignored.

    :raises OnnxpartError: if the state is another optimizer's, or of other shapes, or fits nothing.
    """
    if state.kind != kind and state.slots:
        raise OnnxpartError(f"the state is that of {state.kind}, not {kind}; train on with the same optimizer.")
    result: Slots = {}
    for key, parameter in parameters.items():
        for slot, array in state.slots.get(tensor_name(key), {}).items():
            if tuple(array.shape) != tuple(parameter.shape):
                raise OnnxpartError(
                    f"{slot} of {tensor_name(key)!r} has shape {tuple(array.shape)}, the parameter "
                    f"{tuple(parameter.shape)}; use the state of the same model."
                )
            result.setdefault(key, {})[slot] = to_tensor(array)
    if state.slots and not result:
        raise OnnxpartError(
            f"the state of {next(iter(state.slots))!r} fits no parameter; use the state of the same model."
        )
    return result


def to_state(kind: str, step: int, slots: Slots, scaler: Mapping[str, Any]) -> OptimizerState:
    """Return a state by the initializers' names, copied into arrays."""
    arrays = {
        tensor_name(key): {slot: to_array(tensor) for slot, tensor in tensors.items()} for key, tensors in slots.items()
    }
    return OptimizerState(kind, step, arrays, scaler)
