"""A checked model in canonical form.

Local functions are inlined, tensor-valued Constant nodes turned into initializers, running statistics of batch norms
initializers of their own, nodes in topological order, and initializers no longer listed among the inputs; graphs inside
nodes have no initializers and share the outermost one's names. Everything after it relies on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxpart.ir.flatten import Flat, flatten
from onnxpart.ir.protos import captured, constant_node
from onnxpart.storage.draft import Draft, empty, fill, to_array, without_initializers
from onnxpart.storage.onnx_file import stored
from onnxpart.storage.outputs import model_files
from onnxpart.storage.rows import CHUNK, Array, Rows, stream

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


def files_of(model: Model) -> list[Path]:
    """The files that a model was read from: its own, and those of its external data; none when it was in memory."""
    return [] if model.folder is None else model_files(Path(model.name))


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


def with_arrays(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of `proto` whose initializers named in `values` hold those arrays."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            fill(tensor, values[tensor.name])
    return result
