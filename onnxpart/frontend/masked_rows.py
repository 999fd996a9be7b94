"""Rows that a mask chooses, written as rows: exporters repeat the mask along them, and write element by element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxpart.ir.protos import all_graphs, all_nodes, is_onnx, names_of, set_repeated, unused
from onnxpart.ir.shapes import Shape, Shapes

WRITE, FIND = "ScatterND", "NonZero"
"""The operators of such a write: the one that writes, and the one that tells where."""


class _Rows(NamedTuple):
    """A mask, of size 1 along the axes of a row; how many these are; a row for each place that the mask chooses."""

    mask: str
    axes: int
    rows: str


def may_write_rows(graph: GraphProto) -> bool:
    """Whether anything is written at places that are found; else there is nothing to do for `write_rows`."""
    return {node.op_type for node in all_nodes(graph) if is_onnx(node, WRITE, FIND)} == {WRITE, FIND}


def write_rows(graph: GraphProto, shapes: Shapes) -> bool:
    """Write rows where a mask was repeated along them, in place; returns whether there were any.

    What a repeated mask chooses are, in order, all elements of the first row that the mask chooses, then of the next.

    :param graph: the outermost one; it and those within it have one namespace. New values are named after the writes.
    :param shapes: those of its model.
    """
    taken, changed = names_of(graph) | set(shapes.model.initializers), False
    made = {name: node for node in all_nodes(graph) for name in node.output}
    for inner in all_graphs(graph):
        found = {n.output[0]: rows for n in inner.node if is_onnx(n, WRITE) and (rows := _rows(n, made, shapes))}
        if found:
            nodes = [_written(n, found[n.output[0]], taken) if n.output[0] in found else [n] for n in inner.node]
            set_repeated(inner.node, [node for several in nodes for node in several])
            changed = True
    return changed


def _rows(node: NodeProto, made: Mapping[str, NodeProto], shapes: Shapes) -> _Rows | None:
    """The rows that a node writes element by element; None where it writes anything else."""
    data, places, elements = node.input

    def before(name: str, op_type: str) -> str:
        """What a value is made of by an operator; nothing where it is made by another."""
        maker = made.get(name)
        return maker.input[0] if maker is not None and is_onnx(maker, op_type) else ""

    turned = made.get(places)
    if turned is None or any(list(a.ints) != [1, 0] for a in turned.attribute):
        return None
    whole = before(before(places, "Transpose"), FIND)
    mask, rows = before(whole, "Expand"), before(elements, "Reshape")
    if not (mask and rows) or shapes.model.opsets[""] < 13:
        return None
    tables = [table for table in (shapes, shapes.other, shapes.by_data) if table is not None]
    names = (data, whole, mask, rows, elements)
    if any(name not in table.shape for table in tables for name in names):
        return None
    axes = {_fit(*(table.shape[name] for name in names)) for table in tables}
    return _Rows(mask, axes.pop(), rows) if len(axes) == 1 and 0 not in axes else None


def _fit(data: Shape, whole: Shape, mask: Shape, rows: Shape, elements: Shape) -> int:
    """How many axes a row has, given the sizes of all that makes a write; 0 where it isn't one of rows."""
    axes = len(rows) - 1
    if axes < 1 or len(elements) != 1 or data != whole or len(mask) != len(data) or axes >= len(data):
        return 0
    return axes if mask == (*data[:-axes], *[1] * axes) and rows[1:] == data[-axes:] else 0


def _written(node: NodeProto, found: _Rows, taken: set[str]) -> Iterator[NodeProto]:
    """The nodes that stand for a write."""
    axes, mask, chosen, places = (unused(f"{node.output[0]}/{what}", taken) for what in ("axes", "mask", "rows", "at"))
    numbers = numpy_helper.from_array(np.arange(-found.axes, 0), axes)
    yield helper.make_node("Constant", [], [axes], axes, value=numbers)
    yield helper.make_node("Squeeze", [found.mask, axes], [mask], mask)
    yield helper.make_node(FIND, [mask], [chosen], chosen)
    yield helper.make_node("Transpose", [chosen], [places], places, perm=[1, 0])
    written = NodeProto()
    written.CopyFrom(node)
    written.input[1:] = [places, found.rows]
    yield written
