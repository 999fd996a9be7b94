"""Shapes and values of a model, by ONNX's own inference at trial sizes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxpart.errors import ModelError
from onnxpart.ir.flatten import ENTER, LEAVE
from onnxpart.ir.fold import Folding
from onnxpart.ir.model import Model
from onnxpart.ir.protos import SMALL, light_copy
from onnxpart.ir.region_shapes import cross, grown
from onnxpart.ir.shapes import OTHER_SIZES, SELECTIONS, TRIALS, Shape, Shapes, Trial, record

MAKERS = frozenset(("Concat", "ConstantOfShape", "Expand", "Range", "Tile"))
"""Operators that may make a long list."""
INTEGERS = (TensorProto.INT64, TensorProto.INT32)
"""The types that sizes have."""
CARRIERS = frozenset(("Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"))
"""Operators through which ONNX's inference carries the integers of a list."""
DOUBLINGS, MAX_LIST = 16, 1 << 20
"""After this many joins a list may have more than this many integers."""


def infer(model: Model) -> Shapes:
    """Shapes of every tensor of `model`; a tensor of unknown shape has no entry.

    :returns: the shapes at those sizes of `TRIALS` and `OTHER_SIZES` that the fewest nodes refuse; the first ones if
        several are equal.
    :raises ModelError: when the shapes contradict each other.
    """
    light = light_of(model)
    best = _infer(model, light, TRIALS)
    if input_shapes(model, _resized(OTHER_SIZES[0])[0]) != input_shapes(model):
        for sizes in OTHER_SIZES:
            if not _refused(best):
                break
            with suppress(ModelError):
                best = min(best, _infer(model, light, _resized(sizes)), key=_refused)
    return best


def _refused(shapes: Shapes) -> int:
    """How many nodes can't run at the sizes of `shapes` and at its other sizes."""
    return len(shapes.refused) + (len(shapes.other.refused) if shapes.other is not None else 0)


def _resized(sizes: tuple[tuple[int, int], tuple[int, int]]) -> tuple[Trial, ...]:
    """The trials at other lengths and images' sizes: the first and the second."""
    return tuple(
        replace(trial, length=length, image=image)
        for trial, (length, image) in zip(TRIALS, (*sizes, sizes[0]), strict=True)
    )


def _infer(model: Model, light: onnx.ModelProto, trials: tuple[Trial, ...]) -> Shapes:
    """Shapes under some trial values."""
    first = infer_at(model, light, trials[0])
    op_types = {node.op_type for node in model.flat.nodes}
    selects = not op_types.isdisjoint(SELECTIONS)
    if _symbolic(model) or model.flat.regions or selects:
        first.other = infer_at(model, light, trials[1])
    if selects or "If" in op_types:
        first.by_data = infer_at(model, light, trials[2])
    if model.flat.regions and grown(first):
        return _while_growing(model, light, first, trials)
    return first


def _while_growing(model: Model, light: onnx.ModelProto, first: Shapes, trials: tuple[Trial, ...]) -> Shapes:
    """Shapes where the states of loops grow: at the second iteration, and for other trial values at the third."""
    result = infer_at(model, light, trials[0], grown(first))
    result.by_data = first.by_data
    assert first.other is not None
    second = grown(first.other)
    third = grown(infer_at(model, light, trials[1], second))
    result.other = infer_at(model, light, trials[1], {**second, **third})
    return result


def _symbolic(model: Model) -> bool:
    return any(
        not dim.HasField("dim_value") for value in model.proto.graph.input for dim in value.type.tensor_type.shape.dim
    )


def input_shapes(model: Model, trial: Trial = TRIALS[0]) -> dict[str, Shape]:
    """Shapes of the inputs with trial values in place of symbols; the same symbol gets the same value."""
    return _trial_shapes(model, trial)[0]


def _trial_shapes(model: Model, trial: Trial) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes of the inputs, and the trial value of each symbol."""
    symbols: dict[str, int] = {}
    shapes = {}
    for value in model.proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = []
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                shape.append(dim.dim_value)
                continue
            size = trial.batch if axis == 0 else trial.image if len(dims) >= 4 and axis >= 2 else trial.length
            shape.append(symbols.setdefault(dim.dim_param, size) if dim.dim_param else size)
        shapes[value.name] = tuple(shape)
    return shapes, symbols


def infer_at(
    model: Model, light: onnx.ModelProto, trial: Trial, states: Mapping[str, Shape | None] | None = None
) -> Shapes:
    """Shapes and values at one set of trial sizes.

    :param light: the model as `light_of` gives it; its inputs get the sizes. :param states: the known shapes of loops'
        states.
    :raises ModelError: when the shapes contradict each other.
    """
    shapes = Shapes(model)
    given, symbols = _trial_shapes(model, trial)
    for value in light.graph.input:
        if value.name in given:
            elem_type = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, elem_type, given[value.name]))
    try:
        inferred = shape_inference.infer_shapes(light, check_type=False, strict_mode=False, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ModelError(f"{model.name}: the shapes contradict each other ({error}); fix the export.") from None
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        record(shapes, value.name, value.type)
    for name, tensor in model.initializers.items():
        shapes.shape[name], shapes.dtype[name] = tuple(tensor.dims), tensor.data_type
    fold = Folding(shapes, symbols, trial.found)
    with np.errstate(all="ignore"):
        for node, path in zip(model.flat.nodes, model.flat.paths, strict=True):
            if path and node.domain in (ENTER, LEAVE):
                cross(shapes, model.flat.regions[path[-1][0]], node, trial, states or {})
            else:
                fold.visit(node)
    if refused := fold.refused():
        outermost = (node.output for node, path in zip(model.flat.nodes, model.flat.paths, strict=True) if not path)
        shapes.refused = [names[0] for names in outermost if not refused.isdisjoint(names)]
    return shapes


def long_lists(graph: onnx.GraphProto) -> list[str]:
    """Lists of more than `MAX_LIST` integers, which ONNX's inference writes out, however long they are.

    :returns: names of those that are joined again and again, and of those whose length is a constant.
    """
    joins = sum(node.op_type == "Concat" and _along_first(node) for node in graph.node)
    count: dict[str, float] = {}
    if joins >= DOUBLINGS:
        count.update({t.name: prod(t.dims) for t in graph.initializer if t.data_type in INTEGERS and len(t.dims) <= 1})
        _carry(graph, count)
    makers = [node for node in graph.node if node.op_type in MAKERS and node.op_type != "Concat"]
    known = {t.name: t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL} if makers else {}
    for node in makers:
        told = node.input[:] if node.op_type == "Range" else node.input[-1:]
        if all(value in known and prod(known[value].dims) == 1 for value in told):
            numbers = [float(numpy_helper.to_array(known[value]).ravel()[0]) for value in told]
            start, stop, step = numbers if len(numbers) == 3 else (0.0, numbers[0], 1.0)
            count[node.output[0]] = abs((stop - start) / step) if step else 0
    return [value for value, size in count.items() if size > MAX_LIST]


def _carry(graph: onnx.GraphProto, count: dict[str, float]) -> None:
    """Add the least length of each list that is made of lists in `count` and of shapes."""
    for node in graph.node:
        if node.op_type in ("Shape", "Size"):
            count[node.output[0]] = 1
        elif node.op_type in CARRIERS and all(value in count for value in node.input):
            sizes = [count[value] for value in node.input]
            size = sum(sizes) if node.op_type == "Concat" and _along_first(node) else max(sizes)
            count[node.output[0]] = min(size, 2 * MAX_LIST)


def _along_first(node: onnx.NodeProto) -> bool:
    return any(a.name == "axis" and a.i in (0, -1) for a in node.attribute)


def light_of(model: Model) -> onnx.ModelProto:
    """The model without the values of large initializers; integers become inputs for that."""
    graph = model.proto.graph
    light = light_copy(model.proto, "node", "input")
    light.ir_version, light.graph.name = model.proto.ir_version, graph.name
    for tensor in graph.initializer:
        kind, dims = tensor.data_type, tensor.dims
        integer = kind in INTEGERS
        if (integer or len(dims) <= 1) and prod(dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif integer:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, kind, dims))
        else:
            light.graph.initializer.add(name=tensor.name, data_type=kind, dims=dims)
    for value in graph.output:
        out = onnx.ValueInfoProto(name=value.name)
        if value.type.HasField("tensor_type"):
            out.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        light.graph.output.append(out)
    return light
