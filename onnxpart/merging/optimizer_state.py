"""The state of an optimizer by the initializers' names: merged as the weights are, kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxpart.errors import MergeError, ModelError
from onnxpart.merging.merge import Into, Normalize, merge, unmerge
from onnxpart.planning.plan import Plan
from onnxpart.storage.atomic import replacing_files
from onnxpart.storage.draft import Draft
from onnxpart.storage.json_text import from_json
from onnxpart.storage.onnx_file import own_data, write
from onnxpart.storage.rows import Array
from onnxpart.storage.safetensors import read_metadata, read_safetensors, save_arrays

SQUARED = frozenset({"acc_delta", "exp_avg_sq", "max_exp_avg_sq"})
"""Slots that hold squares of gradients or of steps."""
METADATA = "onnxpart.optimizer"
"""Key under which a file carries what isn't an array."""
_SUFFIX = ".optimizer.safetensors"


@dataclass(frozen=True)
class OptimizerState:
    """The state of an optimizer: `kind` (sgd, adam, adamw), the steps that it took, and its slots.

    `slots`: initializer name -> slot, named as in torch (`momentum_buffer`, `exp_avg`, `exp_avg_sq`) -> array of the
    initializer's shape. `scaler`: the state of torch's gradient scaler, in float16; networks that are merged, sliced or
    read from a file begin with a new one.
    """

    kind: str
    step: int
    slots: Mapping[str, Mapping[str, Array]]
    scaler: Mapping[str, Any] = field(default_factory=dict)

    def slot(self, slot: str) -> dict[str, Array]:
        """One slot of all initializers that have it."""
        return {name: arrays[slot] for name, arrays in self.slots.items() if slot in arrays}


def merge_states(
    plan: Plan,
    states: Sequence[OptimizerState],
    *,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
    squared: Collection[str] = (),
) -> OptimizerState:
    """Merge the states of all parts, in order, into the whole's (see `merge.merge`).

    Momenta and first moments of gradients merge like the weights. Second moments get the square of the weights' scale.
    If an element of the whole is s times the sum of those of c parts, its second moment is s^2 c times the sum of
    theirs. That is s^2 times the part's own if c = 1, and the mean if the weights' is a mean.

    :param plan: the plan that the parts were made by.
    :param states: of the parts, in order.
    :param into: the duplicated whole, or the original graph.
    :param normalize: what is divided by K: the weights of the output, or the output itself.
    :param squared: slots that hold second moments besides `SQUARED`.
    :returns: the whole's state; its steps are those of the part that took the fewest.
    :raises MergeError: when the states are of different optimizers, or don't fit the plan.
    """
    return merge_states_by(partial(merge, plan, into=into, normalize=normalize), states, squared)


def merge_states_by(
    merged: Callable[[Sequence[Mapping[str, Array]]], Mapping[str, Array]],
    states: Sequence[OptimizerState],
    squared: Collection[str] = (),
) -> OptimizerState:
    """Merge the states of all parts, in order, by the function that merges their weights (see `merge_states`).

    :raises MergeError: when the states are of different optimizers.
    """
    kinds = sorted({state.kind for state in states})
    if len(kinds) > 1:
        raise MergeError(f"the parts' optimizers are {' and '.join(kinds)}; train all parts with the same one.")
    slots: dict[str, dict[str, Array]] = {}
    for slot in sorted({slot for state in states for arrays in state.slots.values() for slot in arrays}):
        parts = [state.slot(slot) for state in states]
        whole = merged(parts)
        if slot in SQUARED or slot in squared:
            ones = [{name: np.broadcast_to(np.ones((), array.dtype), array.shape) for name, array in part.items()}
                    for part in parts]  # fmt: skip
            counts = merged(ones)
            whole = {name: array * counts[name] for name, array in whole.items()}
        for name, array in whole.items():
            slots.setdefault(name, {})[slot] = array
    return OptimizerState(kinds[0] if kinds else "", min((state.step for state in states), default=0), slots)


def unmerge_states(plan: Plan, state: OptimizerState) -> list[OptimizerState]:
    """Slice the original graph's state into states of parts that merge to it (see `merge.unmerge`).

    The states aren't reset: a part trains on from where the whole is, and each slot is scaled like its weight.

    :param plan: the plan of the parts that are wanted.
    :param state: of the optimizer that trained the original graph.
    :returns: a state for each part, in order.
    :raises MergeError: when an array doesn't fit the plan.
    """
    slots: list[dict[str, dict[str, Array]]] = [{} for _ in range(plan.k)]
    for slot in sorted({slot for arrays in state.slots.values() for slot in arrays}):
        whole = state.slot(slot)
        parts = unmerge(plan, whole)
        if slot in SQUARED:
            factors = unmerge(plan, {name: np.ones_like(array) for name, array in whole.items()})
            for part, factor in zip(parts, factors, strict=True):
                part.update({name: array * factor[name] for name, array in part.items()})
        for mine, part in zip(slots, parts, strict=True):
            for name, array in part.items():
                mine.setdefault(name, {})[slot] = array
    return [OptimizerState(state.kind, state.step, mine) for mine in slots]


def save_state(state: OptimizerState, path: str | os.PathLike[str]) -> None:
    """Write a state as safetensors, whole or not at all: arrays under `slot/initializer`.

    :raises ModelError: when the file can't be written.
    """
    arrays = {f"{slot}/{name}": array for name, slots in state.slots.items() for slot, array in slots.items()}
    save_arrays(arrays, path, {METADATA: json.dumps({"kind": state.kind, "step": state.step})})


def load_state(path: str | os.PathLike[str]) -> OptimizerState:
    """Read a state that `save_state` wrote.

    :raises ModelError: when the file can't be read, or holds no state.
    """
    path = Path(path)
    stored = read_safetensors(path)
    try:
        found = from_json(read_metadata(path)[METADATA])
        kind, step = str(found["kind"]), int(found["step"])
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{path} holds no optimizer state; name a file that training wrote.") from None
    slots: dict[str, dict[str, Array]] = {}
    for key, array in stored.items():
        slot, _, name = key.partition("/")
        slots.setdefault(name, {})[slot] = np.array(array[(slice(None),) if array.shape else ()])
    return OptimizerState(kind, step, slots)


def state_file(model: Path) -> Path:
    """The file of the state of the optimizer that trained a model: beside the model's file."""
    return model.with_suffix(_SUFFIX)


def save_trained(files: Sequence[Path], trained: Iterable[tuple[Draft, OptimizerState | None]]) -> None:
    """Write models with their optimizers' states beside them, all at once: all files are the old ones or all the new.

    :param files: of the models, in one folder.
    :param trained: the model of each, and its state; if that is None, a state that is there is removed, since it is of
        other weights.
    :raises ModelError: when they can't be written; all files are then as they were.
    """
    outdated = [name for path in files for name in (*own_data(path), state_file(path).name)]
    with replacing_files(files[0], outdated) as fresh:
        for path, (model, state) in zip(files, trained, strict=True):
            write(model, fresh / path.name, path.parent)
            if state is not None:
                save_state(state, fresh / state_file(path).name)


def found_states(models: Sequence[Path]) -> list[OptimizerState]:
    """The states beside the files of models.

    :returns: one for each file, in order; none unless each file has one.
    :raises ModelError: when one can't be read.
    """
    files = [state_file(path) for path in models]
    return [load_state(path) for path in files] if all(path.is_file() for path in files) else []
