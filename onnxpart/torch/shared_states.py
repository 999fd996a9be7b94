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
from torch.optim import Optimizer

from onnxpart.torch.tensors import unsharded

State = dict[str, Any]
"""What an optimizer remembers of one parameter: slot -> tensor or number."""


def whole(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer that remembers of each parameter what any rank does; all ranks must call it together.

    :param optimizer: any, as it is or wrapped. Of torch's `ZeroRedundancyOptimizer`, and DeepSpeed's ZeRO of stages 1
        and 2, the states are gathered.
    :returns: the wrapped optimizer itself; of one that is shared out a copy, over the network's own parameters.
    """
    given = _unwrapped(optimizer)
    if _is_zero(given):
        return _whole_of_zero(given)
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
    if _is_zero(given):
        _put_back_to_zero(given, merged)
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
    wraps = hasattr(inner, "param_groups") and not _is_zero(optimizer)
    return _unwrapped(inner) if wraps else optimizer


def _shared(optimizer: Any) -> bool:
    """Whether it is torch's `ZeroRedundancyOptimizer`."""
    return hasattr(optimizer, "optim") and hasattr(optimizer, "consolidate_state_dict")


def _is_zero(optimizer: Any) -> bool:
    """Whether it is DeepSpeed's ZeRO of stage 1 or 2."""
    return hasattr(optimizer, "bit16_groups") and type(optimizer).__module__.startswith("deepspeed.")


def _flattened(zero: Any) -> list[tuple[State, Tensor, list[nn.Parameter]]]:
    """For each of ZeRO's flat tensors: the group's settings, this rank's share of it, and the parameters in it."""
    groups = zip(zero.optimizer.param_groups, zero.bit16_groups, strict=True)
    found = [(group, group["params"][0], held) for group, held in groups]
    for _, flat, held in found:  # it does this for all groups when the first one has its state
        import_module("deepspeed.utils").lazy_init_hp_params_optimizer_state(held, flat, zero.optimizer.state)
    return found


def _whole_of_zero(zero: Any) -> Optimizer:
    """The optimizer within ZeRO as if it trained the network's own parameters and remembered all of them."""
    get = import_module("deepspeed.utils").safe_get_full_optimizer_state
    groups, states = [], dict[Tensor, State]()
    for group, flat, held in _flattened(zero):
        groups.append({**group, "params": held})
        remembers = zero.optimizer.state.get(flat, {})
        for parameter in held if remembers else ():
            states[parameter] = {
                slot: get(parameter, slot) if _elementwise(value, flat) else copy.copy(value)
                for slot, value in remembers.items()
            }
    return rebuilt(zero.optimizer, groups, states)


def _put_back_to_zero(zero: Any, merged: Optimizer) -> None:
    """Let the flat tensors of ZeRO, of which each rank has a share, remember what an optimizer of parameters does."""
    fill = import_module("deepspeed.utils").safe_set_full_optimizer_state
    for _, flat, held in _flattened(zero):
        states = [merged.state[p] for p in held if merged.state.get(p)]
        if states:
            zero.optimizer.state[flat] = {
                slot: torch.zeros_like(flat) if isinstance(value, Tensor) and value.ndim else copy.copy(value)
                for slot, value in states[-1].items()
            }
    for _, _, held in _flattened(zero):
        for parameter in held:
            for slot, value in merged.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    fill(parameter, value, slot)


def _elementwise(value: object, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape
