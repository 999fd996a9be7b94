"""ONNX into a trainable torch module: one pass over the nodes, each entered in a graph of torch.fx."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from functools import cache

import onnx

from onnxpart.errors import OnnxpartError
from onnxpart.frontend.load import read_checked
from onnxpart.frontend.norm_statistics import own_statistics
from onnxpart.frontend.torch_export import advice
from onnxpart.ir.protos import all_graphs, opsets_of
from onnxpart.ir.trainable import frozen, padding
from onnxpart.planning.plan import original_name
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import Data, tensor_rows
from onnxpart.storage.rows import stream
from onnxpart.torch.importer.builder import Builder, Scope
from onnxpart.torch.importer.decompose import inlined, with_branches
from onnxpart.torch.importer.module import ImportedModule, tensor_name
from onnxpart.torch.importer.trainable import trainable
from onnxpart.torch.importer.types import inferred, info_of
from onnxpart.torch.importer.values import Constant
from onnxpart.torch.tensors import DTYPES


def import_onnx(model: onnx.ModelProto | str | os.PathLike[str]) -> ImportedModule:
    """Turn a model into a module that computes the same, can be trained, and knows its initializers' names.

    The module takes the graph's inputs by position or name and returns a tensor, or a tuple for several outputs. It is
    in training mode, like every new torch module; call `eval()` for inference. Each float initializer that is a weight
    is one parameter, however often it is used; a frozen one has no gradient. Batch-norm statistics and other constants
    are buffers. In training mode batch norm and dropout train, whatever the file says, with the file's momentum.
    External data and streams are copied one initializer after the other. A model whose batch norms were folded by the
    exporter trains as it is, with a warning.

    :raises OnnxpartError: for a file that can't be read, an operator without an entry in the table, or a form
        that torch can't do.
    """
    return imported(model, ())


def imported(model: onnx.ModelProto | Draft | str | os.PathLike[str], parameters: Collection[str]) -> ImportedModule:
    """The same as `import_onnx`, but the given initializers are parameters, too, whatever their size."""
    proto, _, data = read_checked(model)
    _check_types(proto.graph)
    for sentence in advice(proto):
        _warn(sentence)
    held = frozen(proto)
    proto = inlined(proto)
    own_statistics(proto)
    names = frozenset(_tensors(proto))
    inputs = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        for value in proto.graph.input
        if value.name not in names
    }
    builder = _built(proto, data, parameters)
    while builder.scope.taken:  # without an If more is known of what comes after it
        proto = with_branches(proto, builder.scope.taken)
        builder = _built(proto, data, parameters)
    module = builder.finish(proto.graph, lambda: ImportedModule(inputs, names))
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(tensor_name(key) not in held)
    return module


def _built(proto: onnx.ModelProto, data: Data | None, parameters: Collection[str]) -> Builder:
    """The graph of a model."""
    arrays = {name: stream(tensor_rows(tensor, data)).array() for name, tensor in _tensors(proto).items()}
    rows = padding(proto)
    rows |= {name: rows[first] for name in arrays if (first := original_name(name)) in rows}
    scope = Scope(
        opsets=opsets_of(proto),
        infos={name: info_of(kind) for name, kind in inferred(proto).items()},
        trainable=trainable(proto.graph).union(parameters),
        initializers={name: Constant(name, array, rows.get(name)) for name, array in arrays.items()},
    )
    builder = Builder(scope)
    builder.add_graph(proto.graph)
    return builder


@cache
def _warn(sentence: str) -> None:
    """Warn once, not for each of K parts."""
    warnings.warn(sentence, stacklevel=4)


def _tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return all initializers, those of bodies too."""
    tensors: dict[str, onnx.TensorProto] = {}
    for graph in all_graphs(proto.graph):
        for tensor in graph.initializer:
            if tensors.setdefault(tensor.name, tensor) != tensor:
                raise OnnxpartError(f"initializers of two bodies are called {tensor.name!r} and differ; rename one.")
    return tensors


def _check_types(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        kind = value.type
        while kind.WhichOneof("value") in ("sequence_type", "optional_type"):
            kind = (kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type).elem_type
        element = kind.tensor_type.elem_type
        if kind.WhichOneof("value") not in (None, "tensor_type") or (element and element not in DTYPES):
            what = onnx.TensorProto.DataType.Name(element).lower() if element else kind.WhichOneof("value")
            raise OnnxpartError(f"{value.name!r} has type {what}, for which torch has no tensors; cut it off.")
