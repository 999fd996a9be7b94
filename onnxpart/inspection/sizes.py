"""How large the whole and its parts are: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import helper

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import sizes
from onnxpart.analysis.rules.contraction import einsum_letters
from onnxpart.analysis.rules.recurrent import GATES
from onnxpart.ir.region_shapes import repeats
from onnxpart.ir.shapes import Shape
from onnxpart.planning.partition import Partition, partition_of
from onnxpart.planning.plan import Plan

COUNTED = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", *GATES))
"""Operators whose multiply-accumulates are counted."""


@dataclass(frozen=True)
class Size:
    """Of one network: number of parameters, multiply-accumulates per sample, bytes of the parameters."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class OperatorMacs:
    """Multiply-accumulates per sample of one contraction, in the whole and in each part."""

    node: str
    whole: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Of the original network and of each part; `operators` says where the multiply-accumulates are."""

    whole: Size
    parts: tuple[Size, ...]
    operators: tuple[OperatorMacs, ...]


def measure(analysis: Analysis, plan: Plan) -> Sizes:
    """Measure the original network and the parts of a plan.

    :param analysis: the analysis that `plan` was made from.
    :returns: multiply-accumulates of contractions and recurrent operators outside subgraphs, per sample where the batch
        is symbolic and per run where it isn't; other symbolic dimensions have their trial values, sequences are counted
        in full, and an Einsum without a rule isn't counted.
    :raises MergeError: when the plan is of another model.
    """
    partition = partition_of(analysis, plan)
    batch = _batch(analysis)
    operators = []
    for op in analysis.ops:
        if not _counts(analysis, op):
            continue
        times = repeats(analysis.shapes, analysis.model.flat.paths[op.index])
        whole, *parts = [_macs(op, _Shapes(partition, part)) * times // batch for part in (None, *range(plan.k))]
        operators.append(OperatorMacs(op.title, whole, tuple(parts)))
    return Sizes(
        Size(plan.parameters(), sum(o.whole for o in operators), _bytes(analysis, plan, None)),
        tuple(
            Size(plan.parameters(p), sum(o.parts[p] for o in operators), _bytes(analysis, plan, p))
            for p in range(plan.k)
        ),
        tuple(operators),
    )


def _counts(analysis: Analysis, op: Op) -> bool:
    """Whether the operator is a contraction of activations whose shapes are known."""
    if op.op_type not in COUNTED or op.outputs[0] in analysis.state.weights_only:
        return False
    if op.op_type == "Einsum" and op.index in analysis.state.barriers:
        return False
    return all(n in analysis.shapes.shape for n in (*op.inputs, *op.outputs) if n)


def _batch(analysis: Analysis) -> int:
    """Trial size of the symbolic batch; 1 where the batch is fixed."""
    first = next(iter(analysis.model.proto.graph.input), None)
    if first is None or not first.type.tensor_type.shape.dim:
        return 1
    if first.type.tensor_type.shape.dim[0].HasField("dim_value"):
        return 1
    return analysis.shapes.shape[first.name][0]


def _bytes(analysis: Analysis, plan: Plan, part: int | None) -> int:
    total = 0
    for initializer in plan.initializers:
        if initializer.constant:
            continue
        shape = initializer.shape if part is None else initializer.part_shape(part)
        element = analysis.model.initializers[initializer.name].data_type
        total += prod(shape) * np.dtype(helper.tensor_dtype_to_np_dtype(element)).itemsize
    return total


@dataclass(frozen=True)
class _Shapes:
    """Shapes of tensors in one part, or in the whole network (`part` None)."""

    partition: Partition
    part: int | None

    def __getitem__(self, name: str) -> Shape:
        shape = self.partition.analysis.shapes.shape[name]
        if self.part is None:
            return shape
        planned = self.partition.plan.by_name.get(name)
        if planned is not None:
            return planned.part_shape(self.part)
        return tuple(sizes(self.partition.division.kept(name, self.part), shape))


def _macs(op: Op, shapes: _Shapes) -> int:
    """Multiply-accumulates of one contraction over the trial batch."""
    kind, names = op.op_type, op.inputs
    if kind == "Conv":
        return prod(shapes[op.outputs[0]]) * prod(shapes[names[1]][1:])
    if kind == "ConvTranspose":
        return prod(shapes[names[0]]) * prod(shapes[names[1]][1:])
    if kind == "Gemm":
        return prod(shapes[op.outputs[0]]) * shapes[names[0]][0 if op.attributes.get("transA") else 1]
    if kind == "MatMul":
        return prod(shapes[op.outputs[0]]) * shapes[names[0]][-1]
    if kind in GATES:
        return prod(shapes[names[0]][:2]) * (prod(shapes[names[1]]) + prod(shapes[names[2]]))
    operands = [shapes[name] for name in names]
    letters, _ = einsum_letters(op.attributes["equation"].decode(), [len(s) for s in operands])
    found: dict[str, int] = {}
    for term, shape in zip(letters, operands, strict=True):
        for letter, size in zip(term, shape, strict=True):
            found[letter] = max(size, found.get(letter, 1))
    return prod(found.values())
