"""Optimizers whose state is shared out among ranks, as if each rank remembered all of it, and back into theirs."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from onnxpart.errors import UsageError
from onnxpart.torch.tensors import is_copied, unsharded

State = dict[str, Any]
"""What an optimizer remembers of one parameter: slot -> tensor or number."""


def whole(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer that remembers of each parameter what any rank does; all ranks must call it together.

    :param optimizer: any, as it is or wrapped. Of torch's `ZeroRedundancyOptimizer`, and DeepSpeed's with or without
        ZeRO, the states are gathered.
    :returns: the wrapped optimizer itself; of one that is shared out a copy, over the network's own parameters.
    :raises UsageError: if DeepSpeed keeps the states in files.
    """
    given = _unwrapped(optimizer)
    if _is_deepspeeds(given):
        return _whole_of_deepspeeds(given)
    if not _shared(given):
        return cast("Optimizer", given)
    inner: Optimizer = given.optim
    pairs = zip(given.param_groups, inner.param_groups, strict=True)
    groups = [{**ours, **every} for every, ours in pairs]
    every = [parameter for group in groups for parameter in group["params"]]
    own = {i: gathered_state(inner.state[p]) for i, p in enumerate(every) if inner.state.get(p)}
    found: list[dict[int, State]] = [own] * dist.get_world_size(given.process_group)
    dist.all_gather_object(found, own, given.process_group)
    return rebuilt(inner, groups, {every[i]: state for each in found for i, state in each.items()})


def put_back(optimizer: Optimizer, merged: Optimizer) -> None:
    """Let each rank remember its share of what `whole(optimizer)` was given."""
    given = _unwrapped(optimizer)
    if _is_deepspeeds(given):
        _put_back_to_deepspeeds(given, merged)
    elif _shared(given):
        own = {parameter for group in given.optim.param_groups for parameter in group["params"]}
        given.optim.state.update({p: state for p, state in merged.state.items() if p in own})


def rebuilt(optimizer: Optimizer, groups: Sequence[State], state: Mapping[Tensor, State]) -> Optimizer:
    """Return an optimizer of the same class with other groups and states, and without hooks."""
    result = copy.copy(optimizer)
    result.__dict__ |= {**vars(optimizer), "param_groups": list(groups), "state": defaultdict(dict, state)}
    result.__dict__ |= {key: OrderedDict() for key in vars(optimizer) if key.endswith("_hooks")}
    return result


def gathered_state(state: State) -> State:
    """An optimizer's state of a parameter, with sharded tensors gathered."""
    return {slot: unsharded(value) if isinstance(value, Tensor) else value for slot, value in state.items()}


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer inside a wrapper such as accelerate's; one that is shared out stays as it is."""
    inner = getattr(optimizer, "optimizer", None)
    wraps = hasattr(inner, "param_groups") and not _is_deepspeeds(optimizer)
    return _unwrapped(inner) if wraps else optimizer


def _shared(optimizer: Any) -> bool:
    """Whether it is torch's `ZeroRedundancyOptimizer`."""
    return hasattr(optimizer, "optim") and hasattr(optimizer, "consolidate_state_dict")


def _is_deepspeeds(optimizer: Any) -> bool:
    """Whether it is DeepSpeed's around another, which trains copies of the network's parameters."""
    return type(optimizer).__module__.startswith("deepspeed.runtime.") and any(
        hasattr(optimizer, name) for name in ("bit16_groups", "bf16_groups", "fp16_partitioned_groups", "fp32_groups")
    )


def _copies(deepspeeds: Any) -> list[tuple[State, Tensor, list[nn.Parameter]]]:
    """For each tensor that the optimizer within trains: its group's settings, itself, and the parameters in it.

    :raises UsageError: if these tensors are in files.
    """
    groups = deepspeeds.optimizer.param_groups
    if hasattr(deepspeeds, "fp16_partitioned_groups"):  # stage 3
        if deepspeeds.swap_optimizer:
            raise UsageError(
                "DeepSpeed keeps what the optimizer remembers in files, where it can't be merged; offload it to the "
                "CPU instead (offload_optimizer)."
            )
        numbers = deepspeeds.sub_group_to_group_id
        pairs = zip(deepspeeds.fp32_partitioned_groups_flat, deepspeeds.fp16_groups, strict=True)
        return [(groups[numbers[i]], flat, held) for i, (flat, held) in enumerate(pairs)]
    if hasattr(deepspeeds, "fp32_groups"):  # half types without ZeRO
        named = zip(groups, deepspeeds.fp32_groups, deepspeeds.fp16_groups, strict=True)
        return [(group, one, [p]) for group, ones, held in named for one, p in zip(ones, held, strict=True)]
    members = deepspeeds.bit16_groups if hasattr(deepspeeds, "bit16_groups") else deepspeeds.bf16_groups
    found = [(group, group["params"][0], held) for group, held in zip(groups, members, strict=True)]
    for _, flat, held in found:  # it does this for all groups when the first one has its state
        import_module("deepspeed.utils").lazy_init_hp_params_optimizer_state(held, flat, deepspeeds.optimizer.state)
    return found


def _whole_of_deepspeeds(deepspeeds: Any) -> Optimizer:
    """The optimizer within DeepSpeed's as if it trained the network's own parameters and remembered all of them."""
    copies, groups, states = _copies(deepspeeds), [], dict[Tensor, State]()
    get = import_module("deepspeed.utils").safe_get_full_optimizer_state
    for group, trained, held in copies:
        groups.append({**group, "params": held})
        remembers = deepspeeds.optimizer.state.get(trained, {})
        for parameter in held if remembers else ():
            states[parameter] = {
                slot: get(parameter, slot)
                if is_copied(parameter) and isinstance(value, Tensor) and value.shape == trained.shape
                else copy.copy(value)
                for slot, value in remembers.items()
            }
    return rebuilt(deepspeeds.optimizer, groups, states)


def _put_back_to_deepspeeds(deepspeeds: Any, merged: Optimizer) -> None:
    """Let the tensors that DeepSpeed trains remember what an optimizer of parameters does: each rank its share."""
    for _, trained, held in _copies(deepspeeds):
        states = [merged.state[p] for p in held if merged.state.get(p)]
        if states:
            deepspeeds.optimizer.state[trained] = {
                slot: torch.zeros_like(trained) if isinstance(value, Tensor) and value.ndim else copy.copy(value)
                for slot, value in states[-1].items()
            }
    for _, trained, held in _copies(deepspeeds):  # once more: DeepSpeed has to find the states that were just made
        for parameter in held:
            for slot, value in merged.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    _fill(parameter, slot, value, deepspeeds.optimizer.state[trained][slot])


def _fill(parameter: Any, slot: str, value: Tensor, trained: Tensor) -> None:
    """Let DeepSpeed remember a value of a parameter."""
    utils = import_module("deepspeed.utils")
    if hasattr(parameter, "ds_id"):  # its own function for a whole value fails where ranks have shares of other sizes
        size, rank = parameter.ds_tensor.numel(), parameter.ds_zero_partition_rank
        padded = functional.pad(value.flatten(), (0, size * parameter.ds_zero_partition_world_size - value.numel()))
        utils.safe_set_local_optimizer_state(parameter, padded[rank * size : (rank + 1) * size], slot)
    elif is_copied(parameter):
        utils.safe_set_full_optimizer_state(parameter, value, slot)
    else:
        trained.copy_(value)
