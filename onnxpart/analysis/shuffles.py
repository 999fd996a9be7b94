"""Chains of movements that only rearrange the units of one axis."""

from __future__ import annotations

import numpy as np

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Field, Fields, varying
from onnxpart.analysis.op import Op, State

CHAIN = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"))
"""Movements that may be replaced as a chain by one selection (channel shuffle)."""


def _several_axes(fields: Fields) -> bool:
    return any(len(varying(f)) > 1 for f in fields)


def find_shuffles(analysis: Analysis) -> None:
    """Find tensors within chains of movements that start and end with units along one and the same axis."""
    outputs = set(analysis.model.outputs)
    for index in reversed(range(len(analysis.ops))):
        op = analysis.ops[index]
        if op.op_type not in CHAIN or analysis.rules[index] is None:
            continue
        name = op.outputs[0]
        if not _several_axes(analysis.fields(name)) or name in outputs:
            continue
        root = _chain_start(analysis, index)
        if root is None:
            continue
        shape = analysis.shapes.shape[root]
        users = analysis.consumers.get(name, [])
        if all(
            analysis.ops[u].op_type in CHAIN
            and (
                analysis.ops[u].outputs[0] in analysis.virtual
                or _ends(analysis, root, shape, analysis.ops[u].outputs[0])
            )
            for u in users
        ):
            analysis.virtual[name] = root


def _chain_start(analysis: Analysis, index: int) -> str | None:
    """The nearest earlier tensor of the chain whose units lie along one axis."""
    name: str = analysis.ops[index].inputs[0]
    while _several_axes(analysis.fields(name)):
        producer = analysis.producer.get(name)
        if producer is None or analysis.ops[producer].op_type not in CHAIN:
            return None
        name = analysis.ops[producer].inputs[0]
    return name


def _ends(analysis: Analysis, root: str, shape: tuple[int, ...], name: str) -> bool:
    """Whether the chain from `root` to `name` rearranges the units of one axis and nothing else."""
    if _several_axes(analysis.fields(name)) or analysis.shapes.shape[name] != shape:
        return False
    axes = {axis for f in analysis.fields(root) for axis in varying(f)}
    if len(axes) != 1:
        return False
    (axis,) = axes
    for a, size in enumerate(shape):
        if size == 1:
            continue
        moved = permutation(analysis, root, name, a)
        if moved is None or (a != axis and not np.array_equal(moved, np.arange(size))):
            return False
    return True


def permutation(analysis: Analysis, root: str, name: str, axis: int) -> Field | None:
    """Where each index along `axis` of `name` comes from along the same axis of `root`; None if not from there.

    :returns: int32 [size of the axis].
    """
    chain = []
    current = name
    while current != root:
        index = analysis.producer[current]
        chain.append(index)
        current = analysis.ops[index].inputs[0]
    shape = analysis.shapes.shape[root]
    trial = State(analysis.model, analysis.shapes)
    trial.fields[root] = (
        np.arange(shape[axis], dtype=np.int32).reshape([-1 if a == axis else 1 for a in range(len(shape))]),
    )
    for index in reversed(chain):
        rule = analysis.rules[index]
        assert rule is not None
        op = Op(trial, index, analysis.ops[index].node)
        trial.fields[op.outputs[0]] = rule.labels(op)[0]
    (moved,) = trial.fields[name]
    if varying(moved) != frozenset((axis,)):
        return None
    return moved.reshape(-1)
