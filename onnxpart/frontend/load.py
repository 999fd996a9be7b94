"""Read, check and canonicalise a model."""

from __future__ import annotations

import os
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxpart.errors import ModelError
from onnxpart.frontend import passes
from onnxpart.frontend.export_advice import refuse_foreign
from onnxpart.frontend.torch_export import untie
from onnxpart.ir.arrays import digest, rows_of
from onnxpart.ir.model import OLDEST_OPSET, Model
from onnxpart.ir.protos import SMALL, all_graphs, captured, opsets_of, without_weights
from onnxpart.ir.validate import check_light
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import Data, check_external, fetch, inner_tensors, locate, packed, read
from onnxpart.storage.rows import Array, Rows, stream
from onnxpart.storage.safetensors import read_safetensors

KNOWN_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
"""Element types of tensors."""


def load(source: str | os.PathLike[str] | onnx.ModelProto | Draft) -> Model:
    """Read, check and canonicalise a model.

    :param source: path of an ONNX file, or a model or draft in memory (which is left as it is).
    :raises ModelError: when the file is missing, damaged or invalid, or its external data can't be used.
    """
    proto, name, data = read_checked(source)
    _check_values(proto, name)
    for value in proto.graph.input:
        kind = str(value.type.WhichOneof("value") or "tensor_type").removesuffix("_type").replace("_", " ")
        if kind != "tensor":
            raise ModelError(
                f"{name}: its input {value.name!r} isn't a tensor but {kind}; export the model with tensors as its "
                "inputs."
            )
        if value.type.tensor_type.elem_type == TensorProto.UNDEFINED:
            raise ModelError(f"{name}: its input {value.name!r} has no element type; fix the export.")
        size = min((dim.dim_value for dim in value.type.tensor_type.shape.dim), default=0)
        if size < 0:
            raise ModelError(f"{name}: its input {value.name!r} has an axis of size {size}; fix the export.")
    if not proto.graph.initializer and not any(node.op_type == "Constant" for node in proto.graph.node):
        raise ModelError(f"{name} has no initializers, so there are no weights to divide; export it with its weights.")
    model = passes.run(Model(proto, name, data=data))
    return replace(model, digest=digest(model.proto, model.constants, data))


def read_checked(source: str | os.PathLike[str] | onnx.ModelProto | Draft) -> tuple[onnx.ModelProto, str, Data | None]:
    """Read and check a model: its nodes in order, its parameters apart (see `torch_export.untie`).

    :returns: the model, what to call it, and its external data, if it may have any.
    :raises ModelError: when the file is missing, damaged or invalid, or its external data can't be used.
    """
    data: Data | None = None
    if isinstance(source, onnx.ModelProto | Draft):
        draft = source if isinstance(source, Draft) else Draft(source)
        proto, name, data = onnx.ModelProto(), draft.proto.graph.name or "model", draft.streams or None
        proto.CopyFrom(draft.proto)
        external = [tensor for tensor in proto.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
        if any(tensor.name not in draft.streams for tensor in external):
            raise ModelError(f"{name} has external data, but no folder to look for it in; give the path of its file.")
        for tensor in external:
            locate(tensor)
    else:
        path = Path(source)
        refuse_foreign(path)
        proto, name, data = read(path), str(path), path.parent
        _check_types(proto, name)
        check_external(proto, path)
        _check_lengths(proto, name)
        _fetch_small(proto, path.parent)
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{name} holds no graph: it is empty, truncated or not an ONNX model; export it again.")
    untie(proto)
    light = without_weights(proto)
    _sort(proto, light, name)
    _check(light, name)
    return proto, name, data


def _check_types(proto: onnx.ModelProto, name: str) -> None:
    """Check that initializers are of types that ONNX knows.

    :raises ModelError: when one isn't.
    """
    for tensor in proto.graph.initializer:
        if tensor.data_type not in KNOWN_TYPES:
            raise ModelError(
                f"{name}: initializer {tensor.name!r} is of the element type {tensor.data_type}, which this version of "
                "onnx doesn't know; the file is damaged, or of a newer version."
            )


def _check_values(proto: onnx.ModelProto, name: str) -> None:
    """Check that values, those of inner graphs included, are of types that ONNX knows, or of none.

    :raises ModelError: when one isn't.
    """
    for graph in all_graphs(proto.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type
            while (field := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
                kind = getattr(kind, field).elem_type
            element = kind.tensor_type.elem_type
            if element not in TensorProto.DataType.values():
                raise ModelError(f"{name}: {value.name!r} has the unknown element type {element}; fix the export.")


def _fetch_small(proto: onnx.ModelProto, folder: Path) -> None:
    """Read external data that are looked at, that have several elements in a byte, or that are within nodes."""
    small = [t for t in proto.graph.initializer if prod(t.dims) <= SMALL or packed(t.data_type) > 1]
    for tensor in (*small, *inner_tensors(proto)):
        if tensor.data_location == TensorProto.EXTERNAL:
            fetch(tensor, folder)


def _check_lengths(proto: onnx.ModelProto, name: str) -> None:
    """Check that large weights are there: lengths are compared with the least that any packing needs."""
    for tensor in proto.graph.initializer:
        size = prod(tensor.dims)
        if size <= SMALL or tensor.data_location == TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
            continue
        wide = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        if len(tensor.raw_data) < size * wide // 8:
            raise ModelError(
                f"{name}: initializer {tensor.name!r} holds too few bytes; the file is damaged, export it again."
            )


def _sort(proto: onnx.ModelProto, light: onnx.ModelProto, name: str) -> None:
    """Bring the nodes of both models into topological order, if they aren't.

    :raises ModelError: for a graph with a cycle.
    """
    producer = {value: number for number, node in enumerate(light.graph.node) for value in node.output if value}
    reads = [[*node.input, *captured(node)] for node in light.graph.node]
    if all(producer.get(value, -1) < number for number, values in enumerate(reads) for value in values):
        return
    before = {number: {producer[v] for v in values if v in producer} for number, values in enumerate(reads)}
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError:
        raise ModelError(f"{name}: the graph has a cycle, so its nodes have no order; fix the export.") from None
    for graph in (proto.graph, light.graph):
        nodes = [graph.node[number] for number in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _check(light: onnx.ModelProto, name: str) -> None:
    """Check a light copy of a model.

    :raises ModelError: when its operator set is too old, or ONNX doesn't accept it.
    """
    version = opsets_of(light)[""]
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{name} has opset {version}, and the oldest that is read is {OLDEST_OPSET}; convert it with "
            "onnx.version_converter first."
        )
    try:
        check_light(light)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split("==> Context")[0].split())
        raise ModelError(f"{name} is not a valid ONNX model: {what}; fix the export.") from None


def arrays(source: Model | onnx.ModelProto | str | os.PathLike[str]) -> dict[str, Array]:
    """Initializer name -> array, for a model or for a safetensors or ONNX file; external data are mapped.

    :raises ModelError: when the file can't be read.
    """
    found = {name: stream(rows).array() for name, rows in stored_arrays(source).items()}
    return {name: array.copy() for name, array in found.items()} if _is_safetensors(source) else found


def stored_arrays(source: Model | onnx.ModelProto | str | os.PathLike[str]) -> dict[str, Rows]:
    """Initializer name -> array (see `arrays`), to be read a few rows at a time where it lies in a file of arrays."""
    if isinstance(source, str | os.PathLike) and _is_safetensors(source):
        return dict(read_safetensors(Path(source)))
    model = source if isinstance(source, Model) else load(source)
    return {name: rows_of(model, name) for name in model.initializers}


def _is_safetensors(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and str(source).endswith(".safetensors")
