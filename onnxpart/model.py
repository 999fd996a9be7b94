"""A checked model in canonical form.

Local functions are inlined, tensor-valued Constant nodes turned into initializers, running statistics of batch norms
initializers of their own, nodes in topological order, and initializers no longer listed among the inputs; graphs inside
nodes have no initializers and share the outermost one's names. Everything after it relies on that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.inliner import inline_local_functions

from onnxpart.control import Flat, Misfit, captured, constant_value, flatten, live
from onnxpart.errors import ModelError
from onnxpart.files import Array, check_external, fetch, inner_tensors, packed, read, read_safetensors, stored
from onnxpart.nest import normal
from onnxpart.norms import own_statistics
from onnxpart.resolve import resolve
from onnxpart.shapes import SMALL
from onnxpart.stream import CHUNK, Draft, Rows, empty, fill, stream, to_array, without_initializers

OLDEST_OPSET = 7
"""Before this, broadcasting was an attribute."""

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""The element types that are trained."""
_SETTINGS = frozenset(("Clip", "Dropout", "OneHot", "Pad", "Range", "Resize", "Upsample"))
"""Operators whose inputs behind the first are settings."""
_PARAMETRIC = frozenset(
    (
        "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
        "GroupNormalization", "RMSNormalization", "PRelu", "LSTM", "GRU", "RNN",
    )
)  # fmt: skip


@dataclass
class Model:
    """An ONNX model in canonical form.

    `proto` is the model, `constants` the initializers that were Constant nodes, `parameters` those of which it is known
    that they are trained, `folder` where its external data lie,
    `name` what to call it in messages, `digest` the SHA-256 of its graph, the values of large weights left out: it is
    the same after training.
    """

    proto: onnx.ModelProto
    name: str
    digest: str
    folder: Path | None = None
    constants: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    _arrays: dict[str, Array] = field(default_factory=dict, repr=False)

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The graph's initializers by name, in graph order."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Opset version by domain; the default domain is the empty string."""
        return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in self.proto.opset_import}

    @cached_property
    def flat(self) -> Flat:
        """All operators in order, those inside If, Loop and Scan included."""
        return flatten(self.proto.graph, self.opsets.get("", 1))

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [value.name for value in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.proto.graph.output]

    def array(self, name: str) -> Array:
        """The array of the initializer `name`; external data are mapped, not read."""
        if self.external(name):
            return stream(self.rows(name)).array()
        if name not in self._arrays:
            self._arrays[name] = to_array(self.initializers[name])
        return self._arrays[name]

    def external(self, name: str) -> bool:
        """Whether the initializer `name` lies in a file of its own."""
        return self.initializers[name].data_location == TensorProto.EXTERNAL

    def rows(self, name: str) -> Rows:
        """The initializer `name`, to be read a few rows at a time if it is external."""
        return rows_of(self.initializers[name], self.folder) if self.external(name) else self.array(name)

    def is_float(self, name: str) -> bool:
        """Whether the initializer `name` holds floating-point numbers."""
        return self.initializers[name].data_type in FLOATS

    def trainable(self, name: str) -> bool:
        """Whether the initializer `name` is a parameter.

        It is if that is known, or if it has labels and wasn't a Constant node: exporters write weights as initializers.
        """
        return name in self.parameters or (self.has_labels(name) and name not in self.constants)

    def has_labels(self, name: str) -> bool:
        """Whether the axes of the initializer `name` may be units.

        A single float is taken for a constant of the formula (an exponent, an epsilon) unless it stands where its
        operator has a weight, bias or scale; so are the floats that are an operator's settings (scales of Resize).
        """
        return name in self._labelled

    @cached_property
    def _labelled(self) -> frozenset[str]:
        floats = {name for name in self.initializers if self.is_float(name)} - self._settings
        return frozenset(n for n in floats if prod(self.initializers[n].dims) > 1 or n in self._in_slots)

    @cached_property
    def _settings(self) -> frozenset[str]:
        nodes = self.flat.nodes
        return frozenset(name for node in nodes if node.op_type in _SETTINGS for name in node.input[1:] if name)

    @cached_property
    def _in_slots(self) -> frozenset[str]:
        return frozenset(
            name for node in self.flat.nodes for name in node.input[1:] if node.op_type in _PARAMETRIC and name
        )


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Model:
    """Read, check and canonicalise a model.

    :param source: path of an ONNX file, or a model in memory (which is left as it is).
    :raises ModelError: when the file is missing, damaged or invalid, or its external data can't be used.
    """
    proto, name, folder = read_checked(source)
    for value in proto.graph.input:
        kind = str(value.type.WhichOneof("value") or "tensor_type").removesuffix("_type").replace("_", " ")
        if kind != "tensor":
            raise ModelError(f"{name}: its input {value.name!r} is no tensor but {kind}; export it with tensors alone.")
    if not proto.graph.initializer and not any(node.op_type == "Constant" for node in proto.graph.node):
        raise ModelError(f"{name} has no initializers, so there are no weights to divide; export it with its weights.")
    model = _canonical(proto, name, folder)
    while (simpler := resolve(model)) is not None:
        model = _canonical(simpler, name, folder, model.constants)
    return replace(model, digest=digest(model.proto, model.constants, folder))


def read_checked(source: str | os.PathLike[str] | onnx.ModelProto) -> tuple[onnx.ModelProto, str, Path | None]:
    """Read and check a model: itself, its nodes in order, with what to call it and the folder of its external data.

    :raises ModelError: when the file is missing, damaged or invalid, or its external data can't be used.
    """
    if isinstance(source, onnx.ModelProto):
        proto, name, folder = onnx.ModelProto(), source.graph.name or "model", None
        proto.CopyFrom(source)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer):
            raise ModelError(f"{name} has external data, and no folder to look for them; give the path of its file.")
    else:
        path = Path(source)
        proto, name, folder = read(path), str(path), path.parent
        check_external(proto, path)
        _check_lengths(proto, name)
        _fetch_small(proto, folder)
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{name} holds no graph: it is empty, truncated or not an ONNX model; export it again.")
    light = without_weights(proto)
    _sort(proto, light, name)
    _check(light, name)
    return proto, name, folder


def _fetch_small(proto: onnx.ModelProto, folder: Path) -> None:
    """Read external data that are looked at, that have several elements in a byte, or that are within nodes."""
    small = [t for t in proto.graph.initializer if prod(t.dims) <= SMALL or packed(t.data_type) > 1]
    for tensor in (*small, *inner_tensors(proto)):
        if tensor.data_location == TensorProto.EXTERNAL:
            fetch(tensor, folder)


def digest(proto: onnx.ModelProto, constants: frozenset[str], folder: Path | None) -> str:
    """SHA-256 of what a plan is made from: the canonical graph without the values of floats."""
    graph = proto.graph
    light = onnx.ModelProto(opset_import=proto.opset_import)
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    result = hashlib.sha256(light.SerializeToString(deterministic=True))
    read = {name for node in graph.node for name in (*node.input, *captured(node))}
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name in constants):
        if tensor.name not in read:
            continue
        what = (tensor.name, tensor.data_type, tuple(tensor.dims), tensor.name in constants)
        result.update(repr(what).encode())
        if tensor.data_type not in (*FLOATS, TensorProto.STRING):
            for chunk in stream(rows_of(tensor, folder)).chunks(CHUNK):
                result.update(chunk.tobytes())
    return result.hexdigest()


def rows_of(tensor: TensorProto, folder: Path | None) -> Rows:
    """An initializer, to be read a few rows at a time if it is external."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return to_array(tensor)
    assert folder is not None
    return stored(tensor, folder)


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


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the bytes of large weights, which stand as inputs instead."""
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    graph = proto.graph
    light.graph.name = graph.name
    for field_ in ("node", "output", "sparse_initializer", "quantization_annotation"):
        getattr(light.graph, field_).extend(getattr(graph, field_))
    names = {tensor.name for tensor in graph.initializer}
    light.graph.input.extend(value for value in graph.input if value.name not in names)
    for tensor in graph.initializer:
        size = prod(tensor.dims)
        external = tensor.data_location == TensorProto.EXTERNAL
        if size <= SMALL and not external:
            light.graph.initializer.append(tensor)
            continue
        light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _sort(proto: onnx.ModelProto, light: onnx.ModelProto, name: str) -> None:
    """Bring the nodes of both models into topological order, if they aren't.

    :raises ModelError: for a graph with a cycle.
    """
    producer = {value: number for number, node in enumerate(light.graph.node) for value in node.output if value}
    before = {
        number: {producer[value] for value in (*node.input, *captured(node)) if value in producer}
        for number, node in enumerate(light.graph.node)
    }
    if all(max(numbers, default=-1) < number for number, numbers in before.items()):
        return
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError:
        raise ModelError(f"{name}: the graph has a cycle, so its nodes have no order; fix the export.") from None
    for graph in (proto.graph, light.graph):
        nodes = [graph.node[number] for number in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _check(light: onnx.ModelProto, name: str) -> None:
    version = max((o.version for o in light.opset_import if o.domain in ("", "ai.onnx")), default=1)
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{name} is of opset {version}, before {OLDEST_OPSET}; convert it with onnx.version_converter first."
        )
    for value in light.graph.output:
        if value.type.WhichOneof("value") in (None, "tensor_type"):  # the checker wants a type and a shape, nobody else
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as error:
        what = " ".join(str(error).split("==> Context")[0].split())
        raise ModelError(f"{name} is not a valid ONNX model: {what}; fix the export.") from None


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions written out; the same one if it has none."""
    if not proto.functions:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    functions = {(function.domain, function.name): function for function in result.functions}
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [result.graph, *result.functions]
    while bodies:
        for node in bodies.pop().node:
            bodies += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
            if (node.domain, node.op_type) in functions:
                given = {attribute.name for attribute in node.attribute}
                defaults = functions[node.domain, node.op_type].attribute_proto
                node.attribute.extend(d for d in defaults if d.name not in given)  # the inliner leaves them out
    return inline_local_functions(result)


def _canonical(proto: onnx.ModelProto, name: str, folder: Path | None, known: frozenset[str] = frozenset()) -> Model:
    """The model in canonical form, without a digest; `known` are initializers that were Constant nodes."""
    proto = without_functions(proto)
    own_statistics(proto)
    graph = proto.graph
    kept, constants = [], list(known)
    for node in live(graph.node, [value.name for value in graph.output])[0]:
        tensor = constant_value(node)
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
            constants.append(tensor.name)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    try:
        constants += normal(graph, opset)
    except Misfit as misfit:
        raise ModelError(f"{name}: {misfit}; fix the export.") from None
    names = {tensor.name for tensor in graph.initializer}
    if any(value.name in names for value in graph.input):
        inputs = [value for value in graph.input if value.name not in names]
        del graph.input[:]
        graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)
    return Model(proto, name, "", folder, frozenset(constants))


def constant_node(tensor: TensorProto) -> onnx.NodeProto:
    """The Constant node that gives a tensor under its name."""
    return helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)


def redraft(model: Model) -> Draft:
    """The model as a file of its own: constants as nodes again, external data as streams."""
    proto, streams = without_initializers(model.proto), {}
    nodes = list(model.proto.graph.node)
    constants = [constant_node(tensor) for name, tensor in model.initializers.items() if name in model.constants]
    del proto.graph.node[:]
    proto.graph.node.extend([*constants, *nodes])
    for name, tensor in model.initializers.items():
        if model.external(name):
            streams[name] = stream(model.rows(name))
            tensor = empty(name, streams[name], tensor.doc_string)
        if name not in model.constants:
            proto.graph.initializer.append(tensor)
    return Draft(proto, streams)


def restored(model: Model) -> onnx.ModelProto:
    """The model as a file of its own, in memory."""
    return redraft(model).model()


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
    return {name: model.rows(name) for name in model.initializers}


def _is_safetensors(source: object) -> bool:
    return isinstance(source, str | os.PathLike) and str(source).endswith(".safetensors")


def with_arrays(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of `proto` whose initializers named in `values` hold those arrays."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            fill(tensor, values[tensor.name])
    return result
