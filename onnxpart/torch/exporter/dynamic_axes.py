"""The axes of a module's inputs that may be of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor

from onnxpart.errors import UsageError

BATCH = "batch"
"""Name of the first axis of the inputs."""
Axes = Mapping[str, Mapping[int, str | torch.export.Dim]]
"""For parameters of `forward`: axis -> the name of its size, or a Dim, as in torch.export's `dynamic_shapes`."""


def is_axes(value: object) -> TypeGuard[Axes]:
    """Whether these are names of axes, and not another example."""
    return isinstance(value, Mapping) and all(isinstance(axes, Mapping) for axes in value.values())


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Axes:
    """Return the axes along which two examples differ; axes with the same two sizes share a name.

    :raises UsageError: for inputs of other names or ranks.
    """
    ranks, others = ({name: x.ndim for name, x in example.items()} for example in (one, other))
    if ranks != others:
        raise UsageError(
            f"the inputs of one example have the ranks {ranks}, those of the other {others}; give two with the same "
            "ranks."
        )
    sizes: dict[tuple[int, int], str] = {}
    return {
        name: {
            axis: sizes.setdefault(pair, f"{name}_{axis}")
            for axis, pair in enumerate(zip(x.shape, other[name].shape, strict=True))
            if pair[0] != pair[1]
        }
        for name, x in one.items()
    }


def with_batch(inputs: Mapping[str, Tensor], dynamic: Axes) -> list[dict[int, str]]:
    """Return for each input the axes of any size, by their names; the first is the batch.

    :raises UsageError: for axes that the inputs don't have.
    """
    for name, found in dynamic.items():
        rank = inputs[name].ndim if name in inputs else None
        if rank is None or any(not 0 <= axis < rank for axis in found):
            shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in inputs.items())
            raise UsageError(f"dynamic names {dict(found)} of {name!r}, and the inputs are {shapes}; name their axes.")
    size = next((len(x) for x in inputs.values() if x.ndim), None)
    result = []
    for name, x in inputs.items():
        axes = {0: BATCH} if x.ndim and len(x) == size else {}
        given = {axis: dim if isinstance(dim, str) else dim.__name__ for axis, dim in dynamic.get(name, {}).items()}
        result.append(given | axes)
    return result
