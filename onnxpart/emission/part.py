"""Graph + plan -> K part models, and the duplicated whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Kept, sizes
from onnxpart.analysis.shuffles import CHAIN, permutation
from onnxpart.emission.writer import Writer
from onnxpart.errors import PartitionError
from onnxpart.planning.placement import Layout, NotAGrid, layout_of
from onnxpart.planning.plan import Plan
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Stream


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
    writer = Writer(model, lambda value, tensor, _: declare(layout, value, tensor, part))
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
        emit_node(writer, analysis, layout, index, node, part, lambda name: name, lane=-1)
    return writer.finish(plan, part)


def declare(layout: Layout, value: onnx.ValueInfoProto, tensor: str, part: int) -> None:
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


def emit_node(
    writer: Writer,
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
        writer.unflattener.append(_select(writer, analysis, layout, index, node, part, resolve), place)
        return
    if rule is None or (all(not layout.divided(n) for n in (*op.inputs, *op.outputs) if n)):
        writer.unflattener.append(node, place)
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
    writer: Writer,
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
