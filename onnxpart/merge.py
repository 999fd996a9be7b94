"""Plan + arrays -> whole: Eq. (1) of the paper as a scatter. Needs no graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from onnxpart.emit import copy_name
from onnxpart.errors import MergeError
from onnxpart.files import Array
from onnxpart.plan import InitializerPlan, Plan

Into = Literal["duplicated", "original"]
Normalize = Literal["weights", "output"]


def merge(
    plan: Plan,
    parts: Sequence[Mapping[str, Array]],
    *,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
) -> dict[str, Array]:
    """Scatter the parts' arrays into the whole's, Eq. (1) of section 2.2.

    :param parts: for each part, in order, initializer name -> array in the part's shape; weights, gradients or momenta;
        any subset of the plan's initializers, the same for every part. Other names are ignored.
    :param into: the duplicated whole, or the original graph.
    :param normalize: `weights` divides the weights of the output by K; `output` sums weights and biases of the output
        as they are, for a network whose output is scaled by 1/K.
    :returns: initializer name -> array in the whole's shape and the parts' dtype; elements in no part are zero,
        elements in every part are means. For the duplicated whole, what it holds once per part is in the result once
        per part too (see `emit.copy_name`).
    :raises MergeError: when the parts don't fit the plan.
    """
    if len(parts) != plan.k:
        raise MergeError(f"the plan has {plan.k} parts, {len(parts)} were given; give one set of arrays per part.")
    result: dict[str, Array] = {}
    for initializer in plan.initializers:
        held = [p for p in range(plan.k) if initializer.name in parts[p]]
        if not held:
            continue
        if len(held) < plan.k:
            absent = next(p for p in range(plan.k) if p not in held)
            raise MergeError(f"part {absent} has no initializer {initializer.name!r}; give the parts of one split.")
        arrays = [parts[p][initializer.name] for p in range(plan.k)]
        _check(initializer, arrays)
        if into == "duplicated" and initializer.stored == "apart":
            for p, array in enumerate(arrays):
                result[copy_name(initializer.name, p)] = array
        result[initializer.name] = scatter(initializer, arrays, into=into, normalize=normalize)
    return result


def _check(initializer: InitializerPlan, arrays: Sequence[Array]) -> None:
    for p, array in enumerate(arrays):
        want = initializer.part_shape(p)
        if tuple(array.shape) != want:
            raise MergeError(
                f"part {p}: {initializer.name!r} has shape {tuple(array.shape)}, the plan says {want}; "
                "it comes from another split."
            )
        if not np.isfinite(array).all():
            warnings.warn(f"part {p}: {initializer.name!r} holds NaN or infinite values", stacklevel=3)


def scatter(
    initializer: InitializerPlan,
    arrays: Sequence[Array],
    *,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
) -> Array:
    """One initializer of the whole from those of the parts (see `merge`).

    Where parts overlap sums are taken in float64 and rounded once to the parts' dtype.
    """
    dtype = arrays[0].dtype
    scale = _scale(initializer, into, normalize, len(arrays))
    if initializer.disjoint:
        whole = np.zeros(initializer.shape, dtype)
        for p, array in enumerate(arrays):
            for index, rows in initializer.pieces(p):
                piece = array[rows]
                whole[index] = (
                    piece if scale in (None, 1) else np.divide(piece, scale, dtype=_wide(dtype)).astype(dtype)
                )
        return whole
    total = np.zeros(initializer.shape, np.float64)
    count = np.zeros(initializer.shape, np.int16)
    for p, array in enumerate(arrays):
        for index, rows in initializer.pieces(p):
            total[index] += array[rows]
            count[index] += 1
    return np.asarray(total / (np.maximum(count, 1) if scale is None else scale)).astype(dtype)


def _scale(initializer: InitializerPlan, into: Into, normalize: Normalize, k: int) -> int | None:
    """What to divide the sum over the parts by; None: by how many parts hold the element."""
    if initializer.reduces and (into == "original" or initializer.stored != "sum"):
        return k if normalize == "weights" else 1
    return 1 if initializer.tail and normalize == "output" else None


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type to compute in."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
