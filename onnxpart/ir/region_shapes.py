"""Shapes of values that enter or leave the graphs of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto

from onnxpart.errors import ModelError
from onnxpart.ir.flatten import ENTER, Path, Region, Role, axes_of, role_of, state_of
from onnxpart.ir.shapes import TRIALS, Shape, Shapes, Trial


def cross(shapes: Shapes, region: Region, node: NodeProto, trial: Trial, states: Mapping[str, Shape | None]) -> None:
    """Record the shape and type of a marker's output; nothing if they aren't known.

    :param states: shapes of states in the body that differ from those before the first iteration (None: not known).
    """
    role = role_of(node)
    if not node.output or not node.output[0]:
        return
    name, out = node.input[0], node.output[0]
    if role == Role.COUNT:
        shapes.shape[out], shapes.dtype[out] = (), TensorProto.INT64
        shapes.guessed[out] = np.asarray(trial.iteration)
    elif role == Role.GOING:
        shapes.shape[out], shapes.dtype[out] = (), TensorProto.BOOL
        shapes.folded[out] = np.asarray(True)  # the body isn't entered otherwise
    elif name in shapes.dtype:
        shapes.dtype.setdefault(out, shapes.dtype[name])
        shape = states.get(out, shapes.shape.get(name))
        if shape is not None:
            _record(shapes, region, node, shape, trial)


def _record(shapes: Shapes, region: Region, node: NodeProto, shape: Shape, trial: Trial) -> None:
    """Record the shape of a marker's output, from the given shape of its input."""
    out, role, axes = node.output[0], role_of(node), axes_of(node)
    if node.domain == ENTER:
        if role == Role.EACH:
            _sizes(shapes, region, trial.iterations, len(axes))
        gone = {axis % len(shape) for axis in _within(shapes, node, axes, len(shape))}
        shapes.shape[out] = tuple(n for axis, n in enumerate(shape) if axis not in gone)
        return
    if role == Role.BRANCHES:
        other = shapes.shape.get(node.input[1])
        if other is not None and len(other) == len(shape):
            shapes.shape[out] = tuple(n if n == m else trial.found for n, m in zip(shape, other, strict=True))
        return
    if role == Role.STATE:
        first = next(m for m in region.enters if m.output and m.output[0] == state_of(node))
        known = shapes.shape.get(state_of(node))
        if known is not None:
            shapes.shape[out] = shapes.shape[first.input[0]] if known == shape else shape
        return
    sizes = _sizes(shapes, region, trial.iterations, len(axes))
    rank = len(shape) + len(axes)
    if sizes is not None and out not in shapes.shape:
        rest = iter(shape)
        added = dict(zip((axis % rank for axis in _within(shapes, node, axes, rank)), sizes, strict=True))
        shapes.shape[out] = tuple(added[axis] if axis in added else next(rest) for axis in range(rank))


def _within(shapes: Shapes, node: NodeProto, axes: list[int], rank: int) -> list[int]:
    """The axes, if a tensor of that rank has them."""
    for axis in axes:
        if not -rank <= axis < rank:
            raise ModelError(
                f"{shapes.model.name}: {node.op_type} {node.name!r} runs along axis {axis} of a tensor that has "
                f"{rank} axes; fix the export."
            )
    return axes


def grown(shapes: Shapes) -> dict[str, Shape | None]:
    """States whose shape changes from one iteration to the next, and what it becomes (None: another rank)."""
    result: dict[str, Shape | None] = {}
    for region in shapes.model.flat.regions.values():
        for marker in region.leaves:
            before, after = shapes.shape.get(state_of(marker)), shapes.shape.get(marker.input[0])
            if before is not None and after is not None and before != after:
                if region.node.op_type == "Scan":
                    raise ModelError(
                        f"{shapes.model.name}: the body of Scan {region.node.name!r} turns a state of shape {before} "
                        f"into one of {after}; fix the export."
                    )
                result[state_of(marker)] = after if len(before) == len(after) else None
    return result


def _sizes(shapes: Shapes, region: Region, unknown: int, count: int) -> list[int] | None:
    """Sizes of the last `count` axes of the batch and the iterations, in this order; None if they aren't known."""
    if region.node.op_type == "Loop":
        return [_trips(shapes, region, unknown)]
    found = set()
    for marker in region.enters:
        if role_of(marker) == Role.EACH and marker.input[0] in shapes.shape:
            shape = shapes.shape[marker.input[0]]
            axes = _within(shapes, marker, axes_of(marker), len(shape))
            found.add(tuple(shape[axis] for axis in axes)[-count:])
    if len(found) > 1:
        raise ModelError(
            f"{shapes.model.name}: {region.node.op_type} {region.node.name!r} runs along sequences of lengths "
            f"{', '.join(str(sizes[-1]) for sizes in sorted(found))}; fix the export."
        )
    return list(*found) or None


def repeats(shapes: Shapes, path: Path) -> int:
    """How often the nodes at a path run under the trial values; each branch of an If counts as taken."""
    regions = [shapes.model.flat.regions[number] for number, _ in path]
    return prod(prod(_sizes(shapes, region, TRIALS[0].iterations, 2) or [1]) for region in regions)


def _trips(shapes: Shapes, region: Region, unknown: int) -> int:
    """How often a Loop is repeated: its trip count if that is known and nothing else ends it."""
    most = shapes.value(region.enters[0].input[0]) if region.enters[0].input[0] else None
    going = [shapes.value(marker.input[0]) for marker in (region.enters[1], region.leaves[0]) if marker.input[0]]
    sure = all(value is not None and bool(value.all()) for value in going)
    return int(most.item()) if most is not None and most.size == 1 and sure else unknown
