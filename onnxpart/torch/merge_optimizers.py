"""Merge the states of the parts' optimizers, of any class, into one over the module's own parameters."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from onnxpart.errors import UsageError
from onnxpart.merging.optimizer_state import OptimizerState
from onnxpart.torch.ranks import gathered
from onnxpart.torch.shared_states import State, gathered_state, put_back, rebuilt, whole
from onnxpart.torch.tensors import shape_of, to_array, to_tensor_like


class Merge(Protocol):
    """The states of networks that were trained, and the names of slots that hold squares -> the target's state."""

    def __call__(self, states: Sequence[OptimizerState], /, *, squared: Collection[str]) -> OptimizerState: ...


def merge_optimizers(
    merge: Merge,
    optimizers: Sequence[Optimizer],
    parameters: Sequence[Mapping[str, nn.Parameter]],
    target: Optimizer,
    own: Mapping[str, nn.Parameter],
    mesh: DeviceMesh | None = None,
    copies: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Merge the state of optimizers of parts, or of a shallow network, into the target's, by the shapes of its slots.

    A slot with an element for each weight merges like the weights, or by the square of their scale if it grows with the
    square of gradients, which is measured. Numbers, such as step counts, are those of the part with the fewest steps.
    Slots of other shapes start from zero, with a warning. Rates and settings stay those of the target's groups.

    :param merge: makes the target's state of what has an element for each weight.
    :param optimizers: of one class, one per network in order, as they are, wrapped, as accelerate does, or shared
        out among ranks by torch's `ZeroRedundancyOptimizer` or DeepSpeed, with or without ZeRO; then all ranks
        must call this.
    :param parameters: of each network, by the target's initializer that goes on from it.
    :param target: one of the same class. :param own: the module's parameters, by initializer.
    :param mesh: the ranks that train this one's parts, where others train other parts (see `ranks`).
    :param copies: of initializers that a network holds several times, the name of each copy -> the initializer's.
    :raises UsageError: for other classes, another number, other networks' optimizers, or a target that remembers more.
    :raises MergeError: when they hold different states.
    """
    given = target
    target, *optimizers = map(whole, (target, *optimizers))
    kinds = list(dict.fromkeys(type(optimizer).__name__ for optimizer in (*optimizers, target)))
    if len(kinds) > 1:
        raise UsageError(f"the optimizers are {' and '.join(kinds)}; use the same for all parts and the target.")
    if len(optimizers) != len(parameters):
        raise UsageError(f"{len(optimizers)} optimizers for {len(parameters)} parts; give one per part, in order.")
    for optimizer, held, what in (
        *((o, held, f"optimizer {i}") for i, (o, held) in enumerate(zip(optimizers, parameters, strict=True))),
        (target, own, "the target"),
    ):
        _check_holds(optimizer, held, what)
    found = [
        {name: gathered_state(optimizer.state[p]) for name, p in held.items() if optimizer.state.get(p)}
        for optimizer, held in zip(optimizers, parameters, strict=True)
    ]
    states = gathered(found, mesh)
    remembered: dict[str, list[State]] = defaultdict(list)
    for state in states:
        for name, value in state.items():
            remembered[copies.get(name, name)].append(value)
    trained = {id(parameter) for group in target.param_groups for parameter in group["params"]}
    places = {name: copies.get(name, name) for name, parameter in own.items() if id(parameter) in trained}
    tried = {initializer: _tried(target, own[n]) for n, initializer in places.items() if initializer in remembered}
    anew = {slot for name, found in remembered.items() for state in found for slot in _odd(state, tried.get(name, {}))}
    kept = [name for name in tried if not any(_odd(state, tried[name]) for state in remembered[name])]
    slots = [
        {n: {slot: to_array(value[slot]) for slot in _elements(value, tried[copies.get(n, n)])}
         for n, value in state.items() if copies.get(n, n) in kept}
        for state in states
    ]  # fmt: skip
    squared = {slot for found in tried.values() for slot, (_, square) in found.items() if square}
    merged = merge([OptimizerState(kinds[0], 0, s) for s in slots], squared=squared)
    for name, initializer in places.items():
        if initializer in kept:
            like = tried[initializer]
            fewest = min(remembered[initializer], key=lambda state: _steps(state, like))
            dtypes = {slot: value.dtype for slot, value in fewest.items() if isinstance(value, Tensor)}
            _fill(target.state[own[name]], own[name], like, {**fewest, **merged.slots.get(name, {})}, dtypes)
    put_back(given, target)
    if anew:
        warnings.warn(
            f"{kinds[0]}: {', '.join(sorted(anew))} has no element for each weight, and starts again in the target",
            stacklevel=3,
        )


def _check_holds(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], what: str) -> None:
    """Check that an optimizer trains some of a network's parameters.

    :raises UsageError: if it doesn't.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if trained.isdisjoint(map(id, parameters.values())):
        raise UsageError(
            f"{what} has none of its network's parameters: it is another network's, or trains copies of them; "
            "give an optimizer of each network's own parameters, in order."
        )


def _tried(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, tuple[Any, bool]]:
    """An optimizer's state of such a parameter after one step, and which slots grow with the square of the gradient.

    An element for each weight is a tensor with axes. It is empty if the optimizer can't be tried.
    """
    found = []
    for gradient in (1e4, 2e4):  # beside which decay and what sums start from are nothing
        shape = range(2, 2 + max(len(shape_of(parameter)), 1))
        trial = torch.ones(*shape, device=parameter.device, requires_grad=True)
        trial.grad = torch.full_like(trial, gradient)
        groups = [
            {**copy.deepcopy({key: value for key, value in group.items() if key != "params"}), "params": [trial]}
            for group in optimizer.param_groups
            if any(p is parameter for p in group["params"])
        ]
        copied = rebuilt(optimizer, groups, {})
        try:
            copied.step()
        except Exception:  # whatever an optimizer raises that wants another parameter, or a closure
            return {}
        found.append((copied.state[trial], trial.shape))
    (state, size), (twice, _) = found
    return {
        slot: (value, _shape(value) == size and torch.allclose(twice[slot], 4 * value, rtol=0.1))
        for slot, value in state.items()
        if value is not None and _shape(value) in ((), size)
    }


def _shape(value: object) -> tuple[int, ...] | None:
    """The shape of a tensor or number; None for anything else."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return () if isinstance(value, int | float) else None


def _elements(state: State, tried: Mapping[str, tuple[Any, bool]]) -> list[str]:
    return [slot for slot in state if slot in tried and _shape(tried[slot][0])]


def _odd(state: State, tried: Mapping[str, tuple[Any, bool]]) -> list[str]:
    """Slots that are neither numbers nor have one element for each weight."""
    return [slot for slot, value in state.items() if value is not None and slot not in tried]


def _steps(state: State, tried: Mapping[str, tuple[Any, bool]]) -> float:
    """The first number in a state: torch's optimizers count steps before anything else."""
    return next((float(state[slot]) for slot, (like, _) in tried.items() if not _shape(like) and slot in state), 0)


def _fill(
    state: State,
    parameter: nn.Parameter,
    tried: Mapping[str, tuple[Any, bool]],
    found: State,
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Fill an optimizer's state of a parameter, in the parameter's layout and the slots' dtypes.

    :raises UsageError: if something is missing.
    """
    for slot, (like, _) in tried.items():
        if found.get(slot) is None:
            raise UsageError(
                f"the target remembers {slot}, and the parts' optimizers don't; give all of them the same settings."
            )
        if _shape(like):
            state[slot] = to_tensor_like(parameter, found[slot], dtypes[slot])
        else:
            state[slot] = torch.tensor(float(found[slot])).to(like) if isinstance(like, Tensor) else found[slot]
