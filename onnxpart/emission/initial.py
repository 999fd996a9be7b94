"""First weights of parts, by their own fan-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any, Literal, get_args

import numpy as np

from onnxpart.analysis.rewrite import sizes
from onnxpart.ir.arrays import rows_of
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import slice_stream
from onnxpart.storage.rows import Array, Stream, rows_shape, windows


def fans(partition: Partition, name: str, part: int | None) -> tuple[int, int]:
    """Inputs to one unit, and units that one input feeds, of a contraction's weight in a part; None: in the whole."""
    shape, outputs = _entering(partition, name, part), partition.analysis.state.weights[name].outputs
    total, inputs_axis = prod(shape), next((n for a, n in enumerate(shape) if a not in outputs), 1)
    return max(1, total // max(1, _units(partition, name, part))), max(1, total // max(1, inputs_axis))


def _units(partition: Partition, name: str, part: int | None) -> int:
    """Units that a contraction's weight makes, in a part; None: in the whole."""
    shape = _entering(partition, name, part)
    return prod(shape[axis] for axis in partition.analysis.state.weights[name].outputs)


def _entering(partition: Partition, name: str, part: int | None) -> Sequence[int]:
    """Shape of the tensor that enters a contraction as its weight."""
    tensor = partition.analysis.state.weights[name].tensor
    shape = partition.analysis.shapes.shape[tensor]
    if part is None:
        return shape
    if tensor == name:
        return partition.plan.by_name[name].part_shape(part)
    return sizes(partition.division.kept(tensor, part), shape)


InitKind = Literal["slices", "he", "glorot", "scaled"]
INITS: tuple[InitKind, ...] = get_args(InitKind)


def initial(partition: Partition, part: int, init: str, seed: int) -> dict[str, Stream]:
    """First weights of a part that aren't slices of the whole's (see `split`).

    Only the weights of contractions change, and with `he` and `glorot` the biases too. Everything else stays as sliced,
    and so do frozen parameters.
    """
    analysis, result = partition.analysis, {}
    weights, biases = analysis.state.weights, set() if init == "scaled" else analysis.state.biases
    held = analysis.model.frozen
    for number, initializer in enumerate(partition.plan.initializers):
        name, factor = initializer.name, 0.0
        if name in held or not (name in weights or name in biases):
            continue
        if name in weights:
            factor = _factor(partition, name, part, init)
        rows = rows_of(analysis.model, name)
        if init == "scaled":
            result[name] = _scaled(slice_stream(initializer, part, rows), factor)
        else:
            result[name] = _drawn(initializer.part_shape(part), rows.dtype, init, factor, (seed, part, number))
    return result


def _factor(partition: Partition, name: str, part: int, init: str) -> float:
    """The factor of a weight's slice, or of its random numbers."""
    fan_in, fan_out = fans(partition, name, part)
    if init == "scaled":
        return sqrt(fans(partition, name, None)[0] / fan_in)
    return sqrt(partition.analysis.state.weights[name].gain / fan_in if init == "he" else 6.0 / (fan_in + fan_out))


def _scaled(values: Stream, factor: float) -> Stream:
    """An array times a number, in its own type."""
    return Stream(values.shape, values.dtype, partial(_products, values, factor))


def _products(values: Stream, factor: float, size: int) -> Iterator[Array]:
    for piece in values.chunks(size):
        yield (piece * np.float32(factor)).astype(values.dtype)


def _drawn(shape: tuple[int, ...], dtype: np.dtype[Any], init: str, bound: float, seed: tuple[int, ...]) -> Stream:
    """Random numbers: normal with standard deviation `bound` for `he`, otherwise uniform in [-bound, bound]."""
    return Stream(shape, dtype, partial(_numbers, shape, dtype, init, bound, seed))


def _numbers(
    shape: tuple[int, ...], dtype: np.dtype[Any], init: str, bound: float, seed: tuple[int, ...], size: int
) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    for start, stop in windows(shape, dtype, size):
        rows = rows_shape(shape, start, stop)
        unit = rng.standard_normal(rows, np.float32) if init == "he" else 2 * rng.random(rows, np.float32) - 1
        yield (unit * np.float32(bound)).astype(dtype) if bound else np.zeros(rows, dtype)
