"""The axes of a module's inputs that may be of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeGuard

import torch
from torch import Tensor

from onnxpart.errors import UsageError

BATCH = "batch"
"""Name of the first axis of the inputs."""
Axes = Mapping[str, Any] | Sequence[Any]
"""The form of torch.export's `dynamic_shapes`: for parameters of `forward`, by name or in order, axis -> its size.

That is a name, a Dim, `Dim.AUTO` or `Dim.DYNAMIC`; axes with None or a number, and those that aren't given, have the
example's. A sequence in the place of a mapping has all axes."""
Named = Mapping[str, Mapping[int, str]]


def is_axes(value: object) -> TypeGuard[Axes]:
    """Whether these are names of axes, and not another example."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else [value]
    return not any(isinstance(item, Tensor) for item in items)


def named_axes(inputs: Mapping[str, Tensor], dynamic: Axes) -> Named:
    """Return the axes of any size by their names; `Dim.AUTO` and `Dim.DYNAMIC` share one where their sizes are equal.

    :raises UsageError: for axes that the inputs don't have, and sizes of another kind.
    """
    entries = dynamic if isinstance(dynamic, Mapping) else dict(zip_longest(inputs, dynamic))
    result: dict[str, dict[int, str]] = {}
    alike: dict[int, str] = {}
    for name, given in entries.items():
        found = dict(given if isinstance(given, Mapping) else enumerate(given or ()))
        if not found:
            continue
        x = inputs.get(name)
        if x is None or any(not 0 <= axis < x.ndim for axis in found):
            shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in inputs.items())
            raise UsageError(f"dynamic names {found} of {name!r}, and the inputs are {shapes}; name their axes.")
        result[name] = {}
        for axis, size in found.items():
            if size is None or isinstance(size, int) or size == torch.export.Dim.STATIC:
                continue
            if size in (torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC):
                size = alike.setdefault(x.shape[axis], f"{name}_{axis}")
            label = getattr(size, "__name__", size)
            if not isinstance(label, str) or not label.isidentifier():
                raise UsageError(
                    f"dynamic gives axis {axis} of {name!r} the size {size}; give a name or a Dim of its own."
                )
            result[name][axis] = label
    return result


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Named:
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


def with_batch(inputs: Mapping[str, Tensor], dynamic: Named) -> list[dict[int, str]]:
    """Return for each input the axes of any size, by their names; the first is the batch."""
    size = next((len(x) for x in inputs.values() if x.ndim), None)
    result = []
    for name, x in inputs.items():
        axes = {0: BATCH} if x.ndim and len(x) == size else {}
        result.append({**dynamic.get(name, {}), **axes})
    return result
