"""Graph + plan -> K part models, and the duplicated whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxpart.analyse import CHAIN, Analysis, permutation
from onnxpart.control import Place, captured, live, replace_reads, unused
from onnxpart.errors import MergeError, PartitionError
from onnxpart.files import Array
from onnxpart.layout import Layout, NotAGrid
from onnxpart.model import Model, constant_node
from onnxpart.nest import Nest
from onnxpart.plan import METADATA, METADATA_PART, InitializerPlan, Plan, slice_array, slice_stream
from onnxpart.rules.context import Op
from onnxpart.rules.rewrite import Kept, Rewrite, sizes
from onnxpart.stream import Draft, Stream, empty, stream


def copy_name(name: str, part: int) -> str:
    """Name, in the duplicated whole, of what exists once per part."""
    return f"{name}__part{part}"


class _Writer:
    """Nodes and initializers of a graph in the making; hands out names that are not in use."""

    def __init__(self, model: Model, declare: Callable[[onnx.ValueInfoProto, str, int], None]) -> None:
        self.model = model
        self.nest = Nest(model.flat.regions, declare)
        self.initializers: dict[str, Array | TensorProto | Stream] = {}
        self._names = {n for node in model.flat.nodes for n in (*node.input, *node.output, node.name)}
        self._names |= set(model.initializers)

    def unique(self, name: str) -> str:
        """`name`, or that with a number behind it."""
        return unused(name, self._names)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node named after its output."""
        self.nest.insert(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: Iterable[int], hint: str) -> str:
        """A new integer initializer."""
        name = self.unique(hint)
        self.initializers[name] = np.asarray(list(values), np.int64)
        return name

    def rewritten(
        self, op: Op, node: onnx.NodeProto, kept: Callable[[str], Kept], rule_rewrite: object, place: Place
    ) -> None:
        """Append a node adapted to a part."""
        r = Rewrite(op, node, kept, self.unique)
        if callable(rule_rewrite):
            rule_rewrite(r)
        self.select(r)
        for new in (r.node, *r.after):
            self.nest.append(new, place)

    def select(self, r: Rewrite) -> None:
        """Put what a rewrite needs in front."""
        for new in r.before:
            self.nest.insert(new)
        self.initializers.update(r.constants)

    def hold(self, name: str) -> None:
        """Take over an initializer of the source as it is."""
        tensor = self.model.initializers[name]
        self.initializers[name] = stream(self.model.rows(name)) if self.model.external(name) else tensor

    def hold_slice(self, initializer: InitializerPlan, part: int, name: str) -> None:
        """Take over a part's piece of an initializer of the source, under the name `name`."""
        source = initializer.name
        if self.model.external(source):
            self.initializers[name] = slice_stream(initializer, part, self.model.rows(source))
        else:
            self.initializers[name] = slice_array(initializer, part, self.model.array(source))

    def finish(self, plan: Plan, part: int | None) -> Draft:
        """The model: live nodes and initializers, everything else as in the source."""
        source = self.model.proto
        model = onnx.ModelProto(
            ir_version=source.ir_version,
            opset_import=source.opset_import,
            producer_name=source.producer_name,
            producer_version=source.producer_version,
            domain=source.domain,
            model_version=source.model_version,
            doc_string=source.doc_string,
            metadata_props=source.metadata_props,
        )
        graph = model.graph
        graph.name, graph.doc_string = source.graph.name, source.graph.doc_string
        graph.metadata_props.extend(source.graph.metadata_props)
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        if part is None and plan.same_graph:
            graph.value_info.extend(source.graph.value_info)
        nodes, used = live(self.nest.nodes, [v.name for v in source.graph.output])
        read = {n for node in source.graph.node for n in (*node.input, *captured(node))}
        constants, streams = [], {}
        for name, value in self.initializers.items():
            if name in self.model.constants:
                if name in used:
                    constants.append(constant_node(_tensor(value, name, self.model)))
                continue
            if name not in used and (name in read or name not in self.model.initializers):
                continue
            graph.initializer.append(_tensor(value, name, self.model))
            if isinstance(value, Stream):
                streams[name] = value
        graph.node.extend([*constants, *nodes])
        entries = {METADATA: plan.to_json()}
        if part is not None:
            entries[METADATA_PART] = str(part)
        rest = {p.key: p.value for p in model.metadata_props if p.key not in (METADATA, METADATA_PART)}
        helper.set_model_props(model, {**rest, **entries})
        return Draft(model, streams)


def _tensor(value: Array | TensorProto | Stream, name: str, model: Model) -> TensorProto:
    if isinstance(value, TensorProto):
        return value
    doc = model.initializers[name].doc_string if name in model.initializers else ""
    if isinstance(value, Stream):
        return empty(name, value, doc)
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
    if doc:
        tensor.doc_string = doc
    return tensor


def emit_part(analysis: Analysis, plan: Plan, part: int) -> onnx.ModelProto:
    """One part as a model of its own, in memory (see `draft_part`)."""
    return draft_part(analysis, plan, part).model()


def draft_part(analysis: Analysis, plan: Plan, part: int, weights: Mapping[str, Stream] | None = None) -> Draft:
    """One part as a model of its own; what is external in the source is a stream.

    :param weights: to use instead of the slices of the whole's, in the part's shapes.
    :returns: a valid model with the inputs and outputs of the whole, initializer names unchanged.
    """
    model = analysis.model
    layout = layout_of(analysis, plan)
    writer = _Writer(model, lambda value, tensor, _: _declare(layout, value, tensor, part))
    for name in model.initializers:
        given = None if weights is None else weights.get(name)
        if given is not None:
            writer.initializers[name] = given if model.external(name) else given.array()
        elif name in plan.by_name:
            writer.hold_slice(plan.by_name[name], part, name)
        else:
            writer.hold(name)
    for index, op in enumerate(analysis.ops):
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        _emit(writer, analysis, layout, index, node, part, lambda name: name, lane=-1)
    return writer.finish(plan, part)


def _declare(layout: Layout, value: onnx.ValueInfoProto, tensor: str, part: int) -> None:
    """Declare the sizes that a part's piece of a tensor has (part -1: those of the whole, as they are)."""
    kind, shapes = value.type.tensor_type, layout.analysis.shapes
    if part < 0 or layout.k == 1:
        return
    kind.ClearField("shape")
    if tensor in shapes.shape:
        kind.shape.SetInParent()
        own = sizes(layout.kept(tensor, part), shapes.shape[tensor])
        for size, dynamic in zip(own, shapes.dynamic_dims(tensor), strict=True):
            kind.shape.dim.add(dim_value=None if dynamic else size)


def _emit(
    writer: _Writer,
    analysis: Analysis,
    layout: Layout,
    index: int,
    node: onnx.NodeProto,
    part: int,
    resolve: Callable[[str], str],
    lane: int,
) -> None:
    """Append operator `index` as part `part` has it; `node` carries the names to use already."""
    op, rule, place = analysis.ops[index], analysis.rules[index], (analysis.model.flat.paths[index], lane)
    if op.op_type in CHAIN and _several(layout, op.outputs[0], part):
        return  # within a shuffle: the selection at its end stands for it
    if op.op_type in CHAIN and _several(layout, op.inputs[0], part):
        writer.nest.append(_select(writer, analysis, layout, index, node, part, resolve), place)
        return
    if rule is None or (all(not layout.divided(n) for n in (*op.inputs, *op.outputs) if n)):
        writer.nest.append(node, place)
        return
    writer.rewritten(op, node, lambda name: _kept(layout, name, part, op), rule.rewrite, place)


def _kept(layout: Layout, name: str, part: int, op: Op) -> Kept:
    try:
        return layout.kept(name, part)
    except NotAGrid:
        raise PartitionError(f"{op.title}: the units of {name!r} form no grid in part {part}; try another K.") from None


def _several(layout: Layout, name: str, part: int) -> bool:
    try:
        layout.kept(name, part)
    except NotAGrid:
        return name in layout.analysis.virtual or _fail(name, part)
    return False


def _fail(name: str, part: int) -> bool:
    raise PartitionError(f"the units of {name!r} form no grid in part {part}; try another K or order.")


def _select(
    writer: _Writer,
    analysis: Analysis,
    layout: Layout,
    index: int,
    node: onnx.NodeProto,
    part: int,
    resolve: Callable[[str], str],
) -> onnx.NodeProto:
    """The end of a shuffle whose middle is no grid: one selection from where it starts."""
    op = analysis.ops[index]
    name = op.outputs[0]
    root = analysis.virtual[op.inputs[0]]
    kept_root, kept = layout.kept(root, part), layout.kept(name, part)
    (axis,) = (a for a, indices in enumerate(kept) if indices is not None)
    moved = permutation(analysis, root, name, axis)
    have, want = kept_root[axis], kept[axis]
    assert moved is not None
    assert have is not None
    assert want is not None
    positions = writer.constant(np.searchsorted(have, moved[want]), f"{node.name or node.output[0]}__index")
    return helper.make_node("Gather", [resolve(root), positions], [node.output[0]], name=node.name, axis=axis)


def layout_of(analysis: Analysis, plan: Plan) -> Layout:
    """The layout that a plan implies for its model; the analysis keeps the last one.

    :raises MergeError: when the plan is of another model.
    """
    if analysis.layout is not None and analysis.layout[0] is plan:
        return analysis.layout[1]
    if sum(n for _, n in plan.units) != analysis.labels.count:
        raise MergeError(f"the plan is not one of {analysis.model.name}; split the model again.")
    layout = Layout(analysis, plan.parts_of_labels(), plan.k, frozenset(plan.duplicated_nodes))
    analysis.layout = plan, layout
    return layout


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
        self.writer = _Writer(analysis.model, lambda value, tensor, lane: _declare(self.layout, value, tensor, lane))
        self.done: dict[tuple[str, int], str] = {}
        self._initializers()
        for index in range(len(analysis.ops)):
            if self.layout.modes[index] == "lanes":
                for part in range(plan.k):
                    self._lane(index, part)
            else:
                self._once(index)
        for name in analysis.model.outputs:
            producer = analysis.producer.get(name)
            if producer is not None and self.layout.modes[producer] == "lanes":
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
            _emit(self.writer, self.analysis, self.layout, index, node, 0, lambda name: self._piece(name, 0), lane=-1)
            return
        replace_reads(node, {name: self._merged(name) for name in op.reads})
        self.writer.nest.append(node, (self.analysis.model.flat.paths[index], -1))

    def _in_lanes(self, name: str) -> bool:
        producer = self.analysis.producer.get(name)
        return producer is not None and self.layout.modes[producer] == "lanes"

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
        _emit(self.writer, self.analysis, self.layout, index, node, part, lambda name: self._piece(name, part), part)

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
        elif producer is not None and name in self.analysis.state.pure and self.layout.varies(name):
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
