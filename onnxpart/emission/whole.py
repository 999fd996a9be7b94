"""Partition -> the duplicated whole."""

from __future__ import annotations

import numpy as np
import onnx

from onnxpart.analysis.rewrite import Rewrite
from onnxpart.emission.part import PartOperators, declare
from onnxpart.emission.writer import Writer
from onnxpart.errors import PartitionError
from onnxpart.ir.protos import replace_reads
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import copy_name
from onnxpart.storage.draft import Draft


def emit_whole(partition: Partition) -> onnx.ModelProto:
    """The duplicated whole, in memory (see `draft_whole`)."""
    return draft_whole(partition).model()


def draft_whole(partition: Partition) -> Draft:
    """The duplicated whole: it has every mix, and every region that can't be divided, once per part.

    :returns: a valid model. If nothing is duplicated or replicated, it is the original graph. Initializers that are
        external in the source are streams.
    :raises PartitionError: when the parts' pieces of a tensor can't be joined where they must be.
    """
    return _Whole(partition).draft


class _Whole:
    """Builds the duplicated whole; turns tensors between the form over all units and the forms per part.

    `done` holds the name of each form that was made so far, by tensor and part (-1: over all units).
    """

    def __init__(self, partition: Partition) -> None:
        self.partition, self.analysis, self.plan = partition, partition.analysis, partition.plan
        self.division = partition.division
        self.writer = Writer(
            self.analysis.model, lambda value, tensor, copy: declare(self.division, value, tensor, copy)
        )
        self.done: dict[tuple[str, int], str] = {}
        self._initializers()
        for index, mode in enumerate(partition.placement.modes):
            if mode == "per_part":
                for part in range(self.plan.k):
                    self._of_part(index, part)
            else:
                self._once(index)
        for name in self.analysis.model.outputs:
            if partition.per_part(name):
                self._mean(name)
        self.draft = self.writer.finish(self.plan, None)

    def _initializers(self) -> None:
        for name in self.analysis.model.initializers:
            self.writer.hold(name)
            planned = self.plan.by_name.get(name)
            if planned is not None and planned.stored == "apart":
                for part in range(self.plan.k):
                    self.writer.hold_slice(planned, part, copy_name(name, part))

    def _once(self, index: int) -> None:
        """The operator over all units; the first part's piece gives the shape of what exists once per part."""
        op = self.analysis.ops[index]
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        if op.op_type in ("Shape", "Size") and self.partition.per_part(op.inputs[0]):
            node.input[0] = copy_name(op.inputs[0], 0)
            self._operators(0, -1).append(index, node)
            return
        replace_reads(node, {name: self._merged(name) for name in op.reads})
        self.writer.unflattener.append(node, (self.analysis.model.flat.paths[index], -1))

    def _operators(self, part: int, copy: int) -> PartOperators:
        return PartOperators(self.writer, self.division, part, lambda name: self._piece(name, part), copy)

    def _merged(self, name: str) -> str:
        """The tensor over all units, joined from the parts' pieces if need be."""
        if not name or not self.partition.per_part(name):
            return name
        if not self.division.divided(name):
            return self._mean(name)
        return self._joined(name)

    def _copies(self, name: str) -> list[str]:
        """The tensors that stand for one that exists once per part."""
        return [copy_name(name, part) for part in range(self.plan.k)]

    def _mean(self, name: str) -> str:
        """The mean of the parts' tensors."""
        if (name, -1) not in self.done:
            self.done[name, -1] = self.writer.add("Mean", self._copies(name), name)
        return name

    def _joined(self, name: str) -> str:
        """The parts' pieces side by side, in the order of the whole."""
        if (name, -1) in self.done:
            return name
        self.done[name, -1] = name
        if not self.division.joinable(name):
            raise PartitionError(f"the parts' pieces of {name!r} can't be joined; try another K.")
        kept = [self.division.kept(name, p) for p in range(self.plan.k)]
        (axis,) = {a for k in kept for a, indices in enumerate(k) if indices is not None}
        order = np.concatenate([k[axis] for k in kept if k[axis] is not None])
        inverse = np.argsort(order)
        if np.array_equal(inverse, np.arange(len(inverse))):
            return self.writer.add("Concat", self._copies(name), name, axis=axis)
        joined = self.writer.add("Concat", self._copies(name), self.writer.unique(f"{name}__joined"), axis=axis)
        index = self.writer.constant(inverse, f"{name}__order")
        return self.writer.add("Gather", [joined, index], name, axis=axis)

    def _of_part(self, index: int, part: int) -> None:
        """The operator as part `part` has it, beside the other parts'."""
        op = self.analysis.ops[index]
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        replace_reads(node, {name: self._piece(name, part) for name in op.reads})
        for j, name in enumerate(op.outputs):
            node.output[j] = copy_name(name, part) if name else ""
        node.name = copy_name(op.node.name, part) if op.node.name else ""
        self._operators(part, part).append(index, node)

    def _piece(self, name: str, part: int) -> str:
        """What part `part` holds of a tensor."""
        if not name:
            return name
        if self.partition.per_part(name):
            return copy_name(name, part)
        if (name, part) not in self.done:
            self.done[name, part] = self._make_piece(name, part)
        return self.done[name, part]

    def _make_piece(self, name: str, part: int) -> str:
        """A part's piece of a tensor that exists over all units: an array of the part, computed again, or cut out."""
        planned = self.plan.by_name.get(name)
        producer = self.analysis.producer.get(name)
        if planned is not None and planned.stored == "apart":
            return copy_name(name, part)
        if producer is not None and name in self.analysis.state.weights_only and self.division.varies(name):
            self._of_part(producer, part)
            self.done.update({(n, part): copy_name(n, part) for n in self.analysis.ops[producer].outputs if n})
            return copy_name(name, part)
        if name not in self.analysis.virtual and self.division.divided(name):
            return self._cut(name, part)
        return name

    def _cut(self, name: str, part: int) -> str:
        """The part's elements, selected along each axis."""
        op = self.analysis.ops[self.analysis.consumers[name][0]]
        proto = onnx.NodeProto(name=copy_name(name, part))
        operators = self._operators(part, -1)
        r = Rewrite(op, proto, lambda n: operators.kept(n, op), self.writer.unique)
        value, shape = name, list(self.analysis.shapes.shape[name])
        for axis, indices in enumerate(operators.kept(name, op)):
            if indices is not None:
                value = r.select(value, name, axis, indices, shape)
                shape[axis] = len(indices)
        self.writer.select(r)
        return value
