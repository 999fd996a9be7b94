"""Partition -> K part models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Kept, sizes
from onnxpart.analysis.shuffles import CHAIN, permutation
from onnxpart.emission.writer import Writer
from onnxpart.errors import PartitionError
from onnxpart.planning.division import Division, NotAGrid
from onnxpart.planning.partition import Partition
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Stream


def emit_part(partition: Partition, part: int) -> onnx.ModelProto:
    """One part as a model of its own, in memory (see `draft_part`)."""
    return draft_part(partition, part).model()


def draft_part(partition: Partition, part: int, weights: Mapping[str, Stream] | None = None) -> Draft:
    """One part as a model of its own; initializers that are external in the source are streams.

    :param weights: to use in place of slices of the whole's weights, in the part's shapes.
    :returns: a valid model with the inputs and outputs of the whole, initializer names unchanged.
    :raises PartitionError: when the units of a tensor form no grid in the part.
    """
    model, plan, division = partition.analysis.model, partition.plan, partition.division
    writer = Writer(model, lambda value, tensor, _: declare(division, value, tensor, part))
    for name in model.initializers:
        given = None if weights is None else weights.get(name)
        if given is not None:
            writer.initializers[name] = given if model.external(name) else given.array()
        elif name in plan.by_name:
            writer.hold_slice(plan.by_name[name], part, name)
        else:
            writer.hold(name)
    operators = PartOperators(writer, division, part)
    for index, op in enumerate(partition.analysis.ops):
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        operators.append(index, node)
    return writer.finish(plan, part)


def declare(division: Division, value: onnx.ValueInfoProto, tensor: str, part: int) -> None:
    """Declare the sizes that a part's piece of a tensor has (part -1: those of the whole, as they are).

    A tensor of unknown shape isn't divided, and its declaration stays as it is.
    """
    kind, shapes = value.type.tensor_type, division.analysis.shapes
    if part < 0 or division.k == 1 or tensor not in shapes.shape:
        return
    kind.ClearField("shape")
    kind.shape.SetInParent()
    own = sizes(division.kept(tensor, part), shapes.shape[tensor])
    for size, dynamic in zip(own, shapes.dynamic_dims(tensor), strict=True):
        kind.shape.dim.add(dim_value=None if dynamic else size)


def _same(name: str) -> str:
    """A tensor's name in a part's own model."""
    return name


@dataclass(frozen=True, eq=False)
class PartOperators:
    """Writes operators as part `part` has them.

    `piece` gives the name of the part's piece of a tensor. `copy`: in which copy of the graphs in If, Loop and Scan the
    operators stand (-1: there is one).
    """

    writer: Writer
    division: Division
    part: int
    piece: Callable[[str], str] = _same
    copy: int = -1

    def append(self, index: int, node: onnx.NodeProto) -> None:
        """Append operator `index`; `node` carries the names to use already."""
        analysis, division = self.division.analysis, self.division
        op, rule, place = analysis.ops[index], analysis.rules[index], (analysis.model.flat.paths[index], self.copy)
        if op.op_type in CHAIN and self._within_shuffle(op.outputs[0]):
            return  # the selection at the shuffle's end stands for it
        if op.op_type in CHAIN and self._within_shuffle(op.inputs[0]):
            self.writer.unflattener.append(self._select(op, node), place)
        elif rule is None or not any(division.divided(n) for n in (*op.inputs, *op.outputs) if n):
            self.writer.unflattener.append(node, place)
        else:
            self.writer.rewritten(op, node, lambda name: self.kept(name, op), rule.rewrite, place)

    def kept(self, name: str, op: Op) -> Kept:
        """Kept indices of a tensor that operator `op` reads or makes.

        :raises PartitionError: when the part's elements form no grid.
        """
        try:
            return self.division.kept(name, self.part)
        except NotAGrid:
            where = f"{op.title}: the units of {name!r} don't form a block in part {self.part}"
            raise PartitionError(f"{where}; try another K or order.") from None

    def _within_shuffle(self, name: str) -> bool:
        """Whether the part's elements of a tensor form no grid, which is allowed within a shuffle.

        :raises PartitionError: when they form none elsewhere.
        """
        try:
            self.division.kept(name, self.part)
        except NotAGrid:
            if name in self.division.analysis.virtual:
                return True
            where = f"the units of {name!r} don't form a block in part {self.part}"
            raise PartitionError(f"{where}; try another K or order.") from None
        return False

    def _select(self, op: Op, node: onnx.NodeProto) -> onnx.NodeProto:
        """The end of a shuffle whose middle is no grid: one selection from the tensor that the shuffle starts from."""
        analysis, name = self.division.analysis, op.outputs[0]
        root = analysis.virtual[op.inputs[0]]
        kept_root, kept = self.division.kept(root, self.part), self.division.kept(name, self.part)
        (axis,) = (a for a, indices in enumerate(kept) if indices is not None)
        moved = permutation(analysis, root, name, axis)
        have, want = kept_root[axis], kept[axis]
        assert moved is not None
        assert have is not None
        assert want is not None
        index = self.writer.constant(np.searchsorted(have, moved[want]), f"{node.name or node.output[0]}__index")
        return helper.make_node("Gather", [self.piece(root), index], [node.output[0]], name=node.name, axis=axis)
