"""Optimizers whose state is shared out among ranks, as if each rank remembered all of it, and back into theirs."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from onnxpart.torch.tensors import unsharded

State = dict[str, Any]
"""What an optimizer remembers of one parameter: slot -> tensor or number."""


def whole(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer that remembers of each parameter what any rank does; all ranks must call it together.

    :param optimizer: any, as it is or wrapped. Of torch's `ZeroRedundancyOptimizer` the states are gathered.
    :returns: the wrapped optimizer itself; of one that is shared out a copy, on the CPU.
    """
    given = _unwrapped(optimizer)
    inner: Optimizer = given.optim if _shared(given) else given
    if inner is given:
        return inner
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
    if _shared(given):
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
    """The optimizer inside a wrapper such as accelerate's or DeepSpeed's."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if hasattr(inner, "param_groups") else optimizer


def _shared(optimizer: Any) -> bool:
    """Whether it is torch's `ZeroRedundancyOptimizer`."""
    return hasattr(optimizer, "optim") and hasattr(optimizer, "consolidate_state_dict")
