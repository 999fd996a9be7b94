"""Plan + arrays -> whole: Eq. (1) of the paper as a scatter, and back. Needs no graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from onnxpart.errors import MergeError
from onnxpart.planning.plan import Index, InitializerPlan, Plan, copy_name, slice_array
from onnxpart.storage.rows import Array, Rows, Stream, rows_shape, stream, windows

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

    :param plan: the plan that the parts were made by.
    :param parts: for each part, in order, initializer name -> array in the part's shape; weights, gradients or momenta;
        any subset of the plan's initializers, but the same for every part. Other names are ignored.
    :param into: the duplicated whole, or the original graph.
    :param normalize: `weights` divides the weights of the output by K; `output` sums weights and biases of the output
        as they are, for a network whose output is scaled by 1/K.
    :returns: initializer name -> array in the whole's shape and the parts' dtype; elements in no part are zero,
        elements in every part are means. An initializer that the duplicated whole holds once per part is in the result
        once per part (see `plan.copy_name`).
    :raises MergeError: when the parts don't fit the plan.
    """
    streams = merge_streams(plan, parts, into=into, normalize=normalize)
    return {name: merged.array() for name, merged in streams.items()}


def merge_streams(
    plan: Plan,
    parts: Sequence[Mapping[str, Rows]],
    *,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
) -> dict[str, Stream]:
    """Merge arrays a few rows at a time, whether they are in memory or not (see `merge`).

    :raises MergeError: when the parts don't fit the plan.
    """
    result: dict[str, Stream] = {}
    for initializer in held(plan, parts):
        name = initializer.name
        if into == "duplicated" and initializer.stored == "apart":
            own = [array for part in parts for array in copies(part, name)]
            result.update({copy_name(name, p): stream(array) for p, array in enumerate(own)})
        if all(name in part for part in parts):
            result[name] = scatter_stream(initializer, [p[name] for p in parts], into=into, normalize=normalize)
        elif into == "original":
            raise MergeError(f"the parts hold {name!r} once per smaller part in them; merge into the duplicated whole.")
    return result


def held(plan: Plan, parts: Sequence[Mapping[str, Rows]]) -> list[InitializerPlan]:
    """The initializers that every part holds, as an array or as copies.

    :param plan: the plan that the parts were made by.
    :param parts: for each part, in order, initializer name -> array.
    :returns: the plan's initializers, in its order; those that no part holds are left out.
    :raises MergeError: when the parts don't fit the plan.
    """
    if len(parts) != plan.k:
        raise MergeError(f"the plan has {plan.k} parts, but {len(parts)} were given; give one set of arrays per part.")
    found = []
    for initializer in plan.initializers:
        name = initializer.name
        own = [copies(part, name) for part in parts]
        if not any(own):
            continue
        found.append(initializer)
        for p, part in enumerate(parts):
            if not own[p]:
                raise MergeError(f"part {p} has no initializer {name!r}; give the parts of one split.")
            if name in part:
                _check(initializer, p, part[name])
    return found


def copies(part: Mapping[str, Rows], name: str) -> list[Rows]:
    """A part's arrays of an initializer; a part that was merged from others may hold their copies beside each other."""
    if copy_name(name, 0) not in part:
        return [part[name]] if name in part else []
    return [part[n] for n in takewhile(part.__contains__, (copy_name(name, p) for p in range(len(part))))]


def _check(initializer: InitializerPlan, part: int, array: Rows) -> None:
    """Check the shape of a part's array.

    :raises MergeError: when it isn't the plan's.
    """
    want = initializer.part_shape(part)
    if tuple(array.shape) != want:
        raise MergeError(
            f"part {part}: {initializer.name!r} has shape {tuple(array.shape)}, but the plan says {want}; "
            "it comes from another split."
        )


def unmerge(plan: Plan, whole: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Slice the whole's arrays into parts that merge to them: a reduction's weights times K, the rest as it is.

    :param plan: the plan of the parts that are wanted.
    :param whole: initializer name -> array in the original graph's shape, weights or momenta; any subset of the plan's
        initializers. Other names are ignored.
    :returns: for each part, in order, initializer name -> array in the part's shape and the whole's dtype. Merged into
        the original graph they give `whole` again, but for rounding; elements that are in no part become zero.
    :raises MergeError: when an array doesn't fit the plan.
    """
    parts: list[dict[str, Array]] = [{} for _ in range(plan.k)]
    for initializer in plan.initializers:
        name = initializer.name
        if name not in whole:
            continue
        if whole[name].shape != initializer.shape:
            raise MergeError(
                f"{name!r} has shape {whole[name].shape}, but the plan says {initializer.shape}; it comes from "
                "another network."
            )
        array = _unscaled(initializer, whole[name])
        for p, part in enumerate(parts):
            part[name] = slice_array(initializer, p, array)
    return parts


def _unscaled(initializer: InitializerPlan, array: Array) -> Array:
    """The whole's array as the parts hold it: each element times the divisor of its sum over the parts."""
    divisor = scale(initializer, "original", "weights", len(initializer.blocks))
    if divisor is None:
        return array
    return np.multiply(array, divisor / np.maximum(initializer.counts(), 1), dtype=wide(array.dtype)).astype(
        array.dtype
    )


def scatter(
    initializer: InitializerPlan,
    arrays: Sequence[Array],
    *,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
) -> Array:
    """Merge one initializer (see `merge`).

    Elements in several parts are summed in float64. Weights in one part are divided in float32 at least. Both are
    rounded once to the parts' dtype.

    :param initializer: its entry in the plan.
    :param arrays: for each part, in order, an array in the part's shape.
    :param into: the duplicated whole, or the original graph.
    :param normalize: what is divided by K: the weights of the output, or the output itself.
    :returns: an array in the whole's shape and the parts' dtype.
    """
    return scatter_stream(initializer, arrays, into=into, normalize=normalize).array()


def scatter_stream(initializer: InitializerPlan, arrays: Sequence[Rows], *, into: Into, normalize: Normalize) -> Stream:
    """Merge one initializer a few rows at a time (see `scatter`).

    Warns once of each array with NaN or infinite values, except constants.
    """
    divisor = scale(initializer, into, normalize, len(arrays))
    combine = _join if initializer.disjoint else _average

    def chunks(size: int) -> Iterator[Array]:
        infinite: set[int] = set()
        for start, stop in windows(initializer.shape, arrays[0].dtype, size):
            yield combine(initializer, arrays, divisor, (start, stop), infinite)
        for p in [] if initializer.constant else sorted(infinite):
            warnings.warn(f"part {p}: {initializer.name!r} holds NaN or infinite values", stacklevel=2)

    return Stream(initializer.shape, arrays[0].dtype, chunks)


def _pieces(
    initializer: InitializerPlan, arrays: Sequence[Rows], rows: tuple[int, int], infinite: set[int]
) -> Iterator[tuple[Index, Array]]:
    """The parts' pieces of some rows of the whole, and their places there; notes the parts that aren't finite."""
    for p, array in enumerate(arrays):
        for index, mine in initializer.pieces(p, *rows):
            piece = array[mine]
            if not np.isfinite(piece).all():
                infinite.add(p)
            yield index, piece


def _join(
    initializer: InitializerPlan, arrays: Sequence[Rows], scale: int | None, rows: tuple[int, int], infinite: set[int]
) -> Array:
    """Rows of the whole, if no element is in two parts."""
    dtype = arrays[0].dtype
    whole = np.zeros(rows_shape(initializer.shape, *rows), dtype)
    for index, piece in _pieces(initializer, arrays, rows, infinite):
        whole[index] = piece if scale in (None, 1) else np.divide(piece, scale, dtype=wide(dtype)).astype(dtype)
    return whole


def _average(
    initializer: InitializerPlan, arrays: Sequence[Rows], scale: int | None, rows: tuple[int, int], infinite: set[int]
) -> Array:
    """Rows of the whole, if elements are in several parts."""
    total = np.zeros(rows_shape(initializer.shape, *rows), np.float64)
    count = np.zeros(total.shape, np.int16)
    for index, piece in _pieces(initializer, arrays, rows, infinite):
        total[index] += piece
        count[index] += 1
    return np.asarray(total / (np.maximum(count, 1) if scale is None else scale)).astype(arrays[0].dtype)


def scale(initializer: InitializerPlan, into: Into, normalize: Normalize, k: int) -> int | None:
    """The number by which to divide the sum over the parts; None: by how many parts hold the element.

    :param initializer: its entry in the plan.
    :param into: the duplicated whole, or the original graph.
    :param normalize: what is divided by K: the weights of the output, or the output itself.
    :param k: the number of parts.
    """
    if initializer.reduces and (into == "original" or initializer.stored != "sum"):
        return k if normalize == "weights" else 1
    return 1 if initializer.after_reduction and not initializer.constant and normalize == "output" else None


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type to compute in."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
