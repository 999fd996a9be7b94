"""Models as graphs of onnx-graphsurgeon, to be edited, and back, with what graphsurgeon itself would drop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto, TensorProto

from onnxpart.errors import ModelError
from onnxpart.frontend.load import read_checked
from onnxpart.ir.protos import all_graphs, keep, without_weights
from onnxpart.storage.onnx_file import fetch

_OF_MODEL = ("domain", "model_version", "doc_string")
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def graph_of(source: onnx.ModelProto | str | os.PathLike[str]) -> gs.Graph:
    """Return a model, a part or a whole as a graph of onnx-graphsurgeon; all weights are in memory.

    :param source: a model, which is left as it is, or the path of its file. Its names stay.
    :raises ModelError: when it can't be read, or has something that graphsurgeon can't hold.
    """
    proto, name, data = read_checked(source)
    _check_held(proto, name)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            assert isinstance(data, Path)
            fetch(tensor, data)
    return gs.import_onnx(proto)


def model_of(graph: gs.Graph, source: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """Return a graph of onnx-graphsurgeon as a model, with the metadata and descriptions of the model that it was.

    :param graph: what `graph_of` gave, edited or not; it stays as it is.
    :param source: what it was made of. The model has its metadata, among them an embedded plan. Nodes that are still
        there (the same operator, with the same outputs), values and initializers of the same names have theirs.
    :raises ModelError: when the graph isn't one that ONNX accepts, or `source` can't be read.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else graph.name or "the graph"
    try:
        result: onnx.ModelProto = gs.export_onnx(graph)
    except Exception as error:  # graphsurgeon raises what Python does
        raise ModelError(
            f"{name}: graphsurgeon can't export the graph ({_said(error)}); check what was edited."
        ) from None
    before = read_checked(source)[0]
    _hoist(before, result)
    _carry_over(before, result)
    return read_checked(result)[0]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _check_held(proto: onnx.ModelProto, name: str) -> None:
    """Check on a copy without weights that graphsurgeon gives every node back as it got it.

    :raises ModelError: when it doesn't.
    """
    light = without_weights(proto)
    before = [_content(node) for node in _nodes(light)]
    try:
        after = [_content(node) for node in _nodes(gs.export_onnx(gs.import_onnx(light)))]
    except Exception as error:  # graphsurgeon raises what Python does
        raise ModelError(
            f"{name}: graphsurgeon can't hold the graph ({_said(error)}); edit it with onnx itself."
        ) from None
    if before != after:
        lost = next(node for node, content in zip(_nodes(light), before, strict=True) if content not in after)
        raise ModelError(
            f"{name}: graphsurgeon can't hold the node {lost.name or lost.output[0]!r} ({lost.op_type}) as it is; edit "
            "the model with onnx itself."
        )


def _nodes(proto: onnx.ModelProto) -> list[NodeProto]:
    """The nodes of a model, of the graphs inside them, and of its functions."""
    return [node for body in (*all_graphs(proto.graph), *proto.functions) for node in body.node]


def _content(node: NodeProto) -> tuple[Any, ...]:
    """What a node computes; the graphs in it are compared by their nodes."""
    attributes = [
        (a.name, a.type, a.ref_attr_name, b"" if a.type in _GRAPHS else _bare(a).SerializeToString())
        for a in node.attribute
    ]
    return node.op_type, node.domain, node.overload, node.name, [*node.input], [*node.output], sorted(attributes)


def _bare(attribute: AttributeProto) -> AttributeProto:
    """A copy of an attribute without its description."""
    result = AttributeProto()
    result.CopyFrom(attribute)
    result.ClearField("doc_string")
    return result


def _hoist(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Put initializers that graphsurgeon has moved into the graphs that read them back into the outermost one, once."""
    outer = {tensor.name for tensor in source.graph.initializer}
    placed = {tensor.name for tensor in target.graph.initializer}
    _, *inner = all_graphs(target.graph)
    for graph in inner:
        for tensor in graph.initializer:
            if tensor.name in outer - placed:
                target.graph.initializer.append(tensor)
                placed.add(tensor.name)
        keep(graph.initializer, lambda tensor: tensor.name not in outer)


def _carry_over(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Give a model the metadata and descriptions of another, in place: its own, and those of what is in both."""
    for field in _OF_MODEL:
        if source.HasField(field):
            setattr(target, field, getattr(source, field))
    target.metadata_props.extend(source.metadata_props)
    target.graph.metadata_props.extend(source.graph.metadata_props)
    known = dict(_described(source))
    for key, entry in _described(target):
        if key in known:
            del entry.metadata_props[:]
            entry.metadata_props.extend(known[key].metadata_props)
            if known[key].doc_string:
                entry.doc_string = known[key].doc_string


def _described(proto: onnx.ModelProto) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What carries metadata and a description in a model, each under what tells it from others."""
    for node in _nodes(proto):
        yield ("node", node.op_type, *node.output), node
    for graph in all_graphs(proto.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            yield ("value", value.name), value
        for tensor in graph.initializer:
            yield ("initializer", tensor.name), tensor
