"""A checked model in canonical form (see `onnxpart.frontend.passes` for what that is, and `validate`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxpart.ir.flatten import Flat, flatten
from onnxpart.ir.protos import all_nodes, opsets_of
from onnxpart.ir.trainable import FLOATS, Kind, frozen, kinds
from onnxpart.storage.onnx_file import Data
from onnxpart.storage.rows import Array

OLDEST_OPSET = 7
"""Before this opset, broadcasting was an attribute."""
_LABELLED = (Kind.PARAMETER, Kind.STATISTIC)
"""The kinds of initializers whose axes may be units."""


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model in canonical form: data, and what follows from them alone.

    `proto` is the model, `constants` the initializers that were Constant nodes, `parameters` those that are known to be
    trained, `data` where its external data are, `name` what to call it in messages, `digest` the SHA-256 of its graph
    without the values of large weights, so that training doesn't change it.
    """

    proto: onnx.ModelProto
    name: str
    digest: str = ""
    data: Data | None = None
    constants: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    @property
    def files(self) -> list[Path]:
        """The file that it was read from; none when it was in memory."""
        return [Path(self.name)] if isinstance(self.data, Path) else []

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The graph's initializers by name, in graph order."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def decoded(self) -> dict[str, Array]:
        """The arrays that were asked for so far (see `arrays.array_of`), since decoding takes long."""
        return {}

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Opset version by domain; the default domain is the empty string."""
        return opsets_of(self.proto)

    @cached_property
    def flat(self) -> Flat:
        """All operators in order, those inside If, Loop and Scan included."""
        return flatten(self.proto.graph, self.opsets[""])

    @cached_property
    def op_types(self) -> frozenset[str]:
        """The types of all operators, those inside others included."""
        return frozenset(node.op_type for node in all_nodes(self.proto.graph))

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each initializer, by the operators that read it."""
        return kinds(self.proto.graph.initializer, self.flat.nodes)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """The parameters that the model itself names as not trained."""
        return frozen(self.proto)

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [value.name for value in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.proto.graph.output]

    def external(self, name: str) -> bool:
        """Whether the initializer `name` lies in a file of its own."""
        return self.initializers[name].data_location == TensorProto.EXTERNAL

    def is_float(self, name: str) -> bool:
        """Whether the initializer `name` holds floating-point numbers."""
        return self.initializers[name].data_type in FLOATS

    def has_labels(self, name: str) -> bool:
        """Whether the axes of the initializer `name` may be units."""
        return self.kinds[name] in _LABELLED

    def trainable(self, name: str) -> bool:
        """Whether training changes the initializer `name`: a parameter or a statistic.

        It does if that is known, or if it has labels and wasn't a Constant node: exporters write weights as
        initializers.
        """
        return name in self.parameters or (self.has_labels(name) and name not in self.constants)
