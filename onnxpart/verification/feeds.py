"""Random inputs for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import helper

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.op import Op
from onnxpart.analysis.rules.recurrent import GATES, LENGTHS
from onnxpart.ir.flatten import ENTER, Role, role_of
from onnxpart.storage.rows import Array


def inputs(analysis: Analysis, trial: int, rng: np.random.Generator) -> dict[str, Array]:
    """Random inputs for a model: normal floats, and integers that are valid indices if they are used as indices.

    The count of a Loop is 2 or 3, and its condition true. The condition of an If is true in the first trial only.

    :param analysis: of the model.
    :param trial: which sizes symbolic dimensions have: 0 for the first ones, 1 for the others (see `ir.infer.infer`).
    :param rng: draws them.
    :returns: input name -> array of the input's type and shape.
    """
    feed: dict[str, Array] = {}
    shapes = (analysis.shapes.other if trial else None) or analysis.shapes
    for value in analysis.model.proto.graph.input:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        shape, role = shapes.shape[value.name], _role(analysis, value.name)
        if role:
            number = {Role.COUNT: 2 + trial, Role.GOING: 1, Role.CONDITION: trial == 0}[role]
            feed[value.name] = np.full(shape, number, dtype)
        elif dtype == np.bool_:
            feed[value.name] = np.asarray(rng.random(shape) < 0.7)
        elif np.issubdtype(dtype, np.integer):
            feed[value.name] = np.asarray(rng.integers(0, _limit(analysis, value.name), shape), dtype)
        else:
            feed[value.name] = np.asarray(rng.normal(size=shape), dtype)
    return feed


def _readers(analysis: Analysis, name: str, passing: Callable[[Op], bool]) -> Iterator[tuple[Op, str]]:
    """The operators that read a value, directly or through `passing` operators, and what each of them reads."""
    waiting, seen = [name], {name}
    while waiting:
        value = waiting.pop()
        for i in analysis.consumers.get(value, []):
            op = analysis.ops[i]
            yield op, value
            if op.outputs and op.outputs[0] not in seen and passing(op):
                seen.add(op.outputs[0])
                waiting.append(op.outputs[0])


def _role(analysis: Analysis, name: str) -> Role | None:
    """What an input decides about an If or Loop, if anything."""
    moving = ("Cast", "Identity", "Reshape", "Squeeze")
    for op, _ in _readers(analysis, name, lambda op: op.op_type in moving):
        if op.domain == ENTER and role_of(op.node) in (Role.CONDITION, Role.COUNT, Role.GOING):
            return role_of(op.node)
    return None


def _limit(analysis: Analysis, name: str) -> int:
    """One more than the largest number that look-ups and sequences allow an input to hold; 2 if it has none."""
    limits = []
    for op, value in _readers(analysis, name, lambda op: op.op_type == "Cast" or op.domain == ENTER):
        if op.op_type == "Gather" and op.inputs[1] == value:
            limits.append(op.shape(0)[op.axis(0)])
        elif op.op_type in GATES and op.has(LENGTHS) and op.inputs[LENGTHS] == value:
            limits.append(op.shape(0)[int(op.attributes.get("layout", 0))] + 1)
    return min(limits, default=2)
