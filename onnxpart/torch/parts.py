"""A PyTorch module -> K modules to train, and what they learned back into the module, by its own names."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from onnxpart.cut import cut
from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.merge import merge
from onnxpart.model import Model, load
from onnxpart.moments import OptimizerState, merge_states
from onnxpart.split import Split, split
from onnxpart.torch.export import Inputs, export
from onnxpart.torch.importer import import_onnx
from onnxpart.torch.module import ImportedModule, parameters, weights
from onnxpart.torch.optim import slots, to_state
from onnxpart.torch.store import escape, to_tensor

OPTIMIZERS: tuple[type[torch.optim.Optimizer], ...] = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Those whose state it is known how to merge."""


def split_module(
    module: nn.Module,
    example_inputs: Inputs,
    k: int = 2,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
    init: str = "slices",
    outputs: Sequence[str] | None = None,
    exporter: str = "auto",
) -> tuple[list[ImportedModule], Handle]:
    """Cut a module across its width into K modules that train alone, and keep the way back.

    :param module: any module that torch can export; it is left as it is. :param example_inputs, exporter: see `export`.
    :param outputs: which of several results to keep: `output_0`, `output_1` and so on. The others: see `split`.
    :returns: the parts, in training mode, on the module's device, with its inputs by position and parameters frozen as
        in the module; and the handle that merges them.
    :raises UsageError: for arguments that make no sense. :raises PartitionError: when nothing can be divided.
    :raises OnnxpartError: when the module can't be exported, or uses what the importer lacks.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        export(module, example_inputs, path, exporter=exporter)
        model = load(path)
        model.name = type(module).__name__
        model = model if outputs is None else cut(model, outputs)
        names = _names(module, model)
        model.parameters = frozenset(names.values())
        divided = split(model, k, order=order, seed=seed, shares=shares, init=init)
        parts = [import_onnx(part) for part in divided.parts]
    own = dict(module.named_parameters(remove_duplicate=False))
    device = next((parameter.device for parameter in own.values()), torch.device("cpu"))
    for part in parts:
        _train_the_same(part, own)
        part.to(device)
    return parts, Handle(module, parts, divided, names)


@dataclass(frozen=True)
class Handle:
    """The way from the parts of a module back into it.

    `names` gives for each key of the module's `state_dict` that the graph computes with the initializer's name; tied
    parameters share one.
    """

    module: nn.Module
    parts: Sequence[ImportedModule]
    split: Split
    names: Mapping[str, str]

    def merge(self) -> dict[str, Tensor]:
        """Merge the parts' parameters and buffers as they are now, Eq. (1) of section 2.2.

        :returns: a `state_dict` that the module loads; what its graph doesn't compute with is as it is in the module.
        """
        merged = merge(self.split.plan, [weights(part) for part in self.parts], into="original")
        result = {}
        for key, value in self.module.state_dict().items():
            array = merged.get(self.names.get(key, ""))
            result[key] = value if array is None else to_tensor(array).to(value)
        return result

    def merge_optimizer(self, optimizers: Sequence[torch.optim.Optimizer], target: torch.optim.Optimizer) -> None:
        """Merge the state of the parts' optimisers into that of one over the module's parameters.

        Momenta and first moments go like the weights, second moments with the square of their scale, step counts are
        those of the part with the fewest. Rates and other settings stay those of the target's own parameter groups.

        :param optimizers: SGD, Adam or AdamW, one per part in order. :param target: one of the same class.
        :raises UsageError: for others, or another number of them. :raises MergeError: when they hold different states.
        """
        kinds = list(dict.fromkeys(type(optimizer) for optimizer in (*optimizers, target)))
        if len(kinds) > 1 or kinds[0] not in OPTIMIZERS:
            given, known = (" and ".join(kind.__name__ for kind in found) for found in (kinds, OPTIMIZERS))
            raise UsageError(f"the optimisers are {given}; use the same for all parts and the target, of {known}.")
        if len(optimizers) != len(self.parts):
            raise UsageError(f"{len(optimizers)} optimisers for {len(self.parts)} parts; give one per part, in order.")
        states = [_state(optimizer, part) for optimizer, part in zip(optimizers, self.parts, strict=True)]
        merged = merge_states(self.split.plan, states, into="original")
        steps = _steps(optimizers, self.parts)
        own = dict(self.module.named_parameters(remove_duplicate=False))
        named = {id(own[key]): name for key, name in self.names.items() if key in own}
        for group in target.param_groups:
            for parameter in group["params"]:
                name = named.get(id(parameter), "")
                if name in merged.slots:
                    _fill(target.state[parameter], parameter, merged.slots[name])
                if name in steps:
                    device = parameter.device if group.get("capturable") or group.get("fused") else "cpu"
                    target.state[parameter]["step"] = torch.tensor(steps[name], dtype=torch.float32, device=device)


def _names(module: nn.Module, model: Model) -> dict[str, str]:
    """Key of the module's state -> initializer, for all that the model computes with.

    :raises OnnxpartError: for an initializer that is no parameter or buffer of that name and value.
    """
    state = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    weights = [n for n in model.initializers if model.is_float(n) and n not in model.constants]
    for name in weights:
        if name not in state or not _holds(state[name], model.array(name)):
            raise OnnxpartError(
                f"the exporter made the weight {name!r} of the module's parameters, and what the parts learn of it has "
                "no way back; choose the other exporter."
            )
    places = {_place(state[name]): name for name in weights}
    return {key: places[_place(value)] for key, value in state.items() if _place(value) in places}


def _holds(tensor: Tensor, array: np.ndarray) -> bool:
    return tuple(tensor.shape) == array.shape and torch.equal(tensor.detach().cpu(), to_tensor(array))


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor is in memory: the same for tied ones."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _train_the_same(part: ImportedModule, own: Mapping[str, nn.Parameter]) -> None:
    """Let the part's parameters be those of the module, single numbers included, and frozen where they are."""
    store = part.body.get_submodule("tensors")
    for name, parameter in own.items():
        key = escape(name)
        held = dict(store.named_buffers()).get(key)
        if held is not None:
            delattr(store, key)
            store.register_parameter(key, nn.Parameter(held))
        if key in dict(store.named_parameters()):
            store.get_parameter(key).requires_grad_(parameter.requires_grad)


def _state(optimizer: torch.optim.Optimizer, part: ImportedModule) -> OptimizerState:
    """What a part's optimiser remembers, by initializer."""
    return to_state(type(optimizer).__name__.lower(), 0, slots(optimizer, dict(part.named_parameters())))


def _steps(optimizers: Sequence[torch.optim.Optimizer], parts: Sequence[ImportedModule]) -> dict[str, float]:
    """The fewest steps that a part's optimiser took with each initializer, where it counts them."""
    result: dict[str, float] = {}
    for optimizer, part in zip(optimizers, parts, strict=True):
        for name, parameter in parameters(part).items():
            step = optimizer.state.get(parameter, {}).get("step")
            if step is not None:
                result[name] = min(float(step), result.get(name, float(step)))
    return result


def _fill(state: dict[str, Tensor], parameter: Tensor, arrays: Mapping[str, np.ndarray]) -> None:
    """Let an optimiser's state of a parameter hold arrays, in the parameter's layout."""
    for slot, array in arrays.items():
        state[slot] = torch.empty_like(parameter, requires_grad=False).copy_(to_tensor(array))
