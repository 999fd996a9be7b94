"""Graph + plan -> the duplicated whole."""

from __future__ import annotations

import numpy as np
import onnx

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.emission.part import declare, emit_node
from onnxpart.emission.writer import Writer
from onnxpart.errors import PartitionError
from onnxpart.ir.protos import replace_reads
from onnxpart.planning.placement import layout_of
from onnxpart.planning.plan import Plan, copy_name
from onnxpart.storage.draft import Draft


def emit_whole(analysis: Analysis, plan: Plan) -> onnx.ModelProto:
    """The duplicated whole, in memory (see `draft_whole`)."""
    return draft_whole(analysis, plan).model()


def draft_whole(analysis: Analysis, plan: Plan) -> Draft:
    """The duplicated whole: every mix, and every region that can't be divided, once per part.

    Where nothing is duplicated or replicated this is the original graph. What is external in the source is a stream.
    """
    return _Whole(analysis, plan).draft


class _Whole:
    """Builds the duplicated whole; turns tensors between the form over all units and the forms per part."""

    def __init__(self, analysis: Analysis, plan: Plan) -> None:
        self.analysis, self.plan = analysis, plan
        self.layout = layout_of(analysis, plan)
        self.writer = Writer(analysis.model, lambda value, tensor, lane: declare(self.layout, value, tensor, lane))
        self.done: dict[tuple[str, int], str] = {}
        self._initializers()
        for index in range(len(analysis.ops)):
            if self.layout.modes[index] == "per_part":
                for part in range(plan.k):
                    self._lane(index, part)
            else:
                self._once(index)
        for name in analysis.model.outputs:
            producer = analysis.producer.get(name)
            if producer is not None and self.layout.modes[producer] == "per_part":
                self._mean(name)
        self.draft = self.writer.finish(plan, None)

    def _initializers(self) -> None:
        for name in self.analysis.model.initializers:
            self.writer.hold(name)
            planned = self.plan.by_name.get(name)
            if planned is not None and planned.stored == "apart":
                for part in range(self.plan.k):
                    self.writer.hold_slice(planned, part, copy_name(name, part))

    def _once(self, index: int) -> None:
        """The operator over all units; the shape of what exists once per part is told by the first part's."""
        op = self.analysis.ops[index]
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        if op.op_type in ("Shape", "Size") and self._in_lanes(op.inputs[0]):
            node.input[0] = copy_name(op.inputs[0], 0)
            emit_node(
                self.writer, self.analysis, self.layout, index, node, 0, lambda name: self._piece(name, 0), lane=-1
            )
            return
        replace_reads(node, {name: self._merged(name) for name in op.reads})
        self.writer.unflattener.append(node, (self.analysis.model.flat.paths[index], -1))

    def _in_lanes(self, name: str) -> bool:
        producer = self.analysis.producer.get(name)
        return producer is not None and self.layout.modes[producer] == "per_part"

    def _merged(self, name: str) -> str:
        """The tensor over all units, joined from the parts' where need be."""
        if not name or not self._in_lanes(name):
            return name
        if not self.layout.divided(name):
            return self._mean(name)
        return self._joined(name)

    def _mean(self, name: str) -> str:
        if (name, -1) not in self.done:
            lanes = [copy_name(name, p) for p in range(self.plan.k)]
            self.done[name, -1] = self.writer.add("Mean", lanes, name)
        return name

    def _joined(self, name: str) -> str:
        if (name, -1) in self.done:
            return name
        self.done[name, -1] = name
        if not self.layout.joinable(name):
            raise PartitionError(f"the parts' pieces of {name!r} can't be joined; try another K.")
        kept = [self.layout.kept(name, p) for p in range(self.plan.k)]
        (axis,) = {a for k in kept for a, indices in enumerate(k) if indices is not None}
        order = np.concatenate([k[axis] for k in kept if k[axis] is not None])
        lanes = [copy_name(name, p) for p in range(self.plan.k)]
        inverse = np.argsort(order)
        if np.array_equal(inverse, np.arange(len(inverse))):
            return self.writer.add("Concat", lanes, name, axis=axis)
        joined = self.writer.add("Concat", lanes, self.writer.unique(f"{name}__joined"), axis=axis)
        index = self.writer.constant(inverse, f"{name}__order")
        return self.writer.add("Gather", [joined, index], name, axis=axis)

    def _lane(self, index: int, part: int) -> None:
        """The operator as part `part` has it, beside the other parts'."""
        op = self.analysis.ops[index]
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        replace_reads(node, {name: self._piece(name, part) for name in op.reads})
        for j, name in enumerate(op.outputs):
            node.output[j] = copy_name(name, part) if name else ""
        node.name = copy_name(op.node.name, part) if op.node.name else ""
        emit_node(
            self.writer, self.analysis, self.layout, index, node, part, lambda name: self._piece(name, part), part
        )

    def _piece(self, name: str, part: int) -> str:
        """What part `part` holds of a tensor."""
        if not name:
            return name
        if self._in_lanes(name):
            return copy_name(name, part)
        if (name, part) in self.done:
            return self.done[name, part]
        result = name
        planned = self.plan.by_name.get(name)
        producer = self.analysis.producer.get(name)
        if planned is not None and planned.stored == "apart":
            result = copy_name(name, part)
        elif producer is not None and name in self.analysis.state.weights_only and self.layout.varies(name):
            self._lane(producer, part)
            self.done.update({(n, part): copy_name(n, part) for n in self.analysis.ops[producer].outputs if n})
            result = copy_name(name, part)
        elif name not in self.analysis.virtual and self.layout.divided(name):
            result = self._cut(name, part)
        self.done[name, part] = result
        return result

    def _cut(self, name: str, part: int) -> str:
        op = self.analysis.ops[self.analysis.consumers[name][0]]
        r = Rewrite(
            op,
            onnx.NodeProto(name=copy_name(name, part)),
            lambda n: self.layout.kept(n, part),
            self.writer.unique,
        )
        value, shape = name, list(self.analysis.shapes.shape[name])
        for axis, indices in enumerate(self.layout.kept(name, part)):
            if indices is not None:
                value = r.select(value, name, axis, indices, shape)
                shape[axis] = len(indices)
        self.writer.select(r)
        return value
