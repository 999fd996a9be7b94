"""Sequences and optionals that only hand tensors on, replaced by the tensors that go through them.

What a sequence holds is followed from node to node: tensors, and slices of a tensor along an axis (what a split without
sizes gives, and what a loop appends). What reads from it then reads these. A loop that appends one tensor in every
iteration collects it instead. What can't be followed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxpart.ir.protos import captured, graphs_of, is_onnx, names_of, replace_reads, set_repeated, unused
from onnxpart.ir.shapes import Shapes

OPERATORS = frozenset(
    (
        "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
    )
)  # fmt: skip
"""The operators that are followed."""


@dataclass(frozen=True)
class Piece:
    """A tensor in a sequence; or, with an axis, all of its slices along that (`kept`: with the axis, of length 1)."""

    name: str
    axis: int | None = None
    kept: bool = False


Pieces = tuple[Piece, ...]


class Sequences:
    """Follows the sequences and optionals of a graph whose values have names of their own."""

    def __init__(self, graph: GraphProto, shapes: Shapes, opset: int) -> None:
        self.graph, self.shapes, self.opset = graph, shapes, opset
        self.held: dict[str, Pieces] = {}
        self.optional: dict[str, str] = {}
        self.changed = False
        self.collected: set[str] = set()
        """What loops collect in place of a sequence."""
        self.new: list[NodeProto] = []
        self.taken = names_of(graph) | set(shapes.model.initializers)

    def run(self) -> bool:
        """Replace what can be; returns whether anything was."""
        self._graph(self.graph)
        return self.changed

    def _graph(self, graph: GraphProto) -> None:
        """Follow what goes through a graph, and those inside it."""
        outer, self.new = self.new, []
        for node in graph.node:
            default = is_onnx(node)
            behind = list(self._loop(node)) if default and node.op_type == "Loop" else []
            for inner in graphs_of(node):
                self._graph(inner)
            follow = _FOLLOW.get(node.op_type) if default else None
            if follow is not None and follow(self, node):
                self.changed = True
            else:
                self.new.append(node)
            self.new += behind
        set_repeated(graph.node, self.new)
        self.new = outer

    # -- loops --------------------------------------------------------------------------------------------------

    def _loop(self, node: NodeProto) -> Iterator[NodeProto]:
        """Take sequences out of what a loop carries; returns nodes that make them of what is left."""
        (body,) = graphs_of(node)
        fits = len(body.input) == len(node.input) and len(body.output) == len(node.output) + 1
        for i in reversed(range(len(body.input) - 2 if fits else 0)):
            first, state = node.input[i + 2], body.input[i + 2]
            if not state.type.HasField("sequence_type") or first not in self.held:
                continue
            made, last = body.output[i + 1].name, node.output[i]
            maker = next(child for child in body.node if made in child.output)
            if maker.op_type == "Identity" and maker.input[0] == state.name:
                for child in body.node:
                    replace_reads(child, {state.name: first})
                yield helper.make_node("Identity", [first], [last], name=last)
            elif self._appends(body, maker, state.name) and _plain(self.held[first]):
                yield from self._collect(node, body, i, maker.input[1])
                body.node.remove(maker)
            else:
                continue
            self.changed = True
            for names, at in ((node.input, i + 2), (body.input, i + 2), (body.output, i + 1), (node.output, i)):
                del names[at]

    def _appends(self, body: GraphProto, maker: NodeProto, state: str) -> bool:
        """Whether a node of the body puts one more at the state's end, and nothing else looks at either."""
        if maker.op_type != "SequenceInsert" or maker.input[0] != state or len(list(filter(None, maker.input))) > 2:
            return False
        names = {state, maker.output[0]}
        return not any(names & {*n.input, *captured(n)} for n in body.node if n.output[0] != maker.output[0])

    def _collect(self, node: NodeProto, body: GraphProto, i: int, element: str) -> Iterator[NodeProto]:
        """Let a loop collect what it appends to a sequence."""
        passed, stack = unused(f"{element}_each", self.taken), unused(f"{element}_all", self.taken)
        body.node.append(helper.make_node("Identity", [element], [passed], name=passed))
        value = body.output.add(name=passed)
        value.type.CopyFrom(body.input[i + 2].type.sequence_type.elem_type)
        value.type.tensor_type.ClearField("shape")
        node.output.append(stack)
        self.collected.add(passed)
        pieces, last = self.held[node.input[i + 2]], node.output[i]
        names = [unused(f"{last}_{j}", self.taken) for j in range(len(pieces))] + [last]
        yield helper.make_node("SplitToSequence", [stack], names[:1], name=names[0], axis=0, keepdims=0)
        front = self.ints(0, scalar=True)
        for piece, before, after in zip(reversed(pieces), names, names[1:], strict=False):
            yield helper.make_node("SequenceInsert", [before, piece.name, front], [after], name=after)

    # -- new nodes ----------------------------------------------------------------------------------------------

    def add(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its result."""
        output = output or unused(f"{inputs[0]}_{op_type.lower()}", self.taken)
        self.new.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def ints(self, *values: int, scalar: bool = False) -> str:
        """A new integer initializer."""
        name = unused("sequence", self.taken)
        array = np.asarray(values[0] if scalar else values, np.int64)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def with_axis(self, op_type: str, name: str, axis: int, output: str = "") -> str:
        """Append a Squeeze or Unsqueeze."""
        if self.opset < 13:
            return self.add(op_type, [name], output, axes=[axis])
        return self.add(op_type, [name, self.ints(axis)], output)

    def rank(self, piece: Piece) -> int | None:
        """Rank of each of a piece's tensors."""
        shape = self.shapes.shape.get(piece.name)
        return None if shape is None else len(shape) - (piece.axis is not None and not piece.kept)

    def position(self, node: NodeProto, i: int) -> int | None:
        """The known value of an input that is a position."""
        value = self.shapes.value(node.input[i])
        return None if value is None or value.size != 1 else int(value.item())


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


# -- what makes sequences -----------------------------------------------------------------------------------------
def _construct(s: Sequences, node: NodeProto) -> bool:
    s.held[node.output[0]] = tuple(Piece(name) for name in node.input)
    return False


def _split(s: Sequences, node: NodeProto) -> bool:
    """Slices of length 1 (ONNX Runtime minds `keepdims` for these even where the length is given), or sizes."""
    shape = s.shapes.shape.get(node.input[0])
    given = s.shapes.value(node.input[1]) if len(node.input) > 1 and node.input[1] else np.asarray(1)
    if shape is None or given is None:
        return False
    axis = _attribute(node, "axis", 0) % len(shape)
    if given.ndim == 0 and given == 1:
        s.held[node.output[0]] = (Piece(node.input[0], axis, bool(_attribute(node, "keepdims", 1))),)
    elif not s.shapes.dynamic_dims(node.input[0])[axis]:
        step = int(given.item()) if given.ndim == 0 else 0
        sizes = [min(step, shape[axis] - i) for i in range(0, shape[axis], step)] if step else [int(v) for v in given]
        outputs = [unused(f"{node.output[0]}_{i}", s.taken) for i in range(len(sizes))]
        given_as: dict[str, Any] = {"split": sizes} if s.opset < 13 else {}
        inputs = [node.input[0], *([] if given_as else [s.ints(*sizes)])]
        s.new.append(helper.make_node("Split", inputs, outputs, name=outputs[0], axis=axis, **given_as))
        s.held[node.output[0]] = tuple(Piece(name) for name in outputs)
    return False


def _insert(s: Sequences, node: NodeProto) -> bool:
    pieces = s.held.get(node.input[0])
    at = len(pieces or ()) if len(node.input) < 3 or not node.input[2] else s.position(node, 2)
    if pieces is not None and at is not None and (at in (0, len(pieces)) or _plain(pieces)):
        at += len(pieces) if at < 0 else 0
        s.held[node.output[0]] = (*pieces[:at], Piece(node.input[1]), *pieces[at:])
    return False


def _erase(s: Sequences, node: NodeProto) -> bool:
    pieces = s.held.get(node.input[0])
    at = -1 if len(node.input) < 2 or not node.input[1] else s.position(node, 1)
    if pieces and at is not None and _plain(pieces):
        at %= len(pieces)
        s.held[node.output[0]] = (*pieces[:at], *pieces[at + 1 :])
    return False


def _identity(s: Sequences, node: NodeProto) -> bool:
    if node.input[0] in s.held:
        s.held[node.output[0]] = s.held[node.input[0]]
    if node.input[0] in s.optional:
        s.optional[node.output[0]] = s.optional[node.input[0]]
    return False


def _plain(pieces: Iterable[Piece]) -> bool:
    return all(piece.axis is None for piece in pieces)


# -- what reads them ------------------------------------------------------------------------------------------------
def _at(s: Sequences, node: NodeProto) -> bool:
    """Let a SequenceAt be the tensor that stands there."""
    pieces = s.held.get(node.input[0])
    if not pieces:
        return False
    (out,) = node.output
    if len(pieces) == 1 and pieces[0].axis is not None:
        index = node.input[1]
        taken = s.add("Gather", [pieces[0].name, index], "" if pieces[0].kept else out, axis=pieces[0].axis)
        if pieces[0].kept:
            s.with_axis("Unsqueeze", taken, pieces[0].axis, out)
        return True
    at = s.position(node, 1)
    if at is None or not _plain(pieces) or not -len(pieces) <= at < len(pieces):
        return False
    s.add("Identity", [pieces[at].name], out)
    return True


def _length(s: Sequences, node: NodeProto) -> bool:
    """Let a SequenceLength count tensors, and the slices of others."""
    pieces = s.held.get(node.input[0])
    if pieces is None:
        return False
    (out,) = node.output
    total = s.ints(sum(piece.axis is None for piece in pieces), scalar=True)
    for piece in pieces:
        if piece.axis is not None:
            count = s.add("Gather", [s.add("Shape", [piece.name]), s.ints(piece.axis, scalar=True)], axis=0)
            total = s.add("Add", [total, count])
    s.add("Identity", [total], out)
    return True


def _concat(s: Sequences, node: NodeProto) -> bool:
    """Let a ConcatFromSequence join the tensors themselves."""
    pieces = s.held.get(node.input[0])
    ranks = [s.rank(piece) for piece in pieces or ()]
    if not pieces or None in ranks:
        return False
    rank = ranks[0] or 0
    stacked = bool(_attribute(node, "new_axis", 0))
    axis = _attribute(node, "axis", 0) % (rank + stacked)
    if not all(not piece.kept if stacked else _joins(s, piece, axis) for piece in pieces):
        return False
    join = _stack if stacked else _join
    s.add("Concat", [join(s, piece, axis) for piece in pieces], node.output[0], axis=axis)
    return True


def _joins(s: Sequences, piece: Piece, axis: int) -> bool:
    """Whether slices can be joined along an axis of theirs: it is one long, or what lies behind it has a known size."""
    if piece.axis is None or (piece.kept and piece.axis == axis):
        return True
    sizes, dynamic = _sliced(s.shapes.shape[piece.name], piece), _sliced(s.shapes.dynamic_dims(piece.name), piece)
    return not piece.kept and ((sizes[axis], dynamic[axis]) == (1, False) or not any(dynamic[axis + 1 :]))


def _sliced(values: Sequence[int], piece: Piece) -> list[int]:
    """What is said of the axes of a tensor, for those of its slices."""
    return [value for a, value in enumerate(values) if a != piece.axis]


def _stack(s: Sequences, piece: Piece, axis: int) -> str:
    """Tensors along a new axis."""
    return s.with_axis("Unsqueeze", piece.name, axis) if piece.axis is None else _move(s, piece, axis)


def _move(s: Sequences, piece: Piece, axis: int) -> str:
    """The tensor with the axis that its slices lie along moved to `axis`."""
    order = [a for a in range(len(s.shapes.shape[piece.name])) if a != piece.axis]
    order.insert(axis, piece.axis or 0)
    return piece.name if order == sorted(order) else s.add("Transpose", [piece.name], perm=order)


def _join(s: Sequences, piece: Piece, axis: int) -> str:
    """Tensors along an axis that they have."""
    if piece.axis is None or piece.kept:
        return piece.name
    sizes = _sliced(s.shapes.shape[piece.name], piece)
    moved = _move(s, piece, axis)
    if sizes[axis] == 1 and not _sliced(s.shapes.dynamic_dims(piece.name), piece)[axis]:
        return s.with_axis("Squeeze", moved, axis + 1)
    return s.add("Reshape", [moved, s.ints(*[0] * axis, -1, *sizes[axis + 1 :])])


# -- optionals ----------------------------------------------------------------------------------------------------
def _optional(s: Sequences, node: NodeProto) -> bool:
    s.optional[node.output[0]] = node.input[0] if node.input else ""
    return False


def _element(s: Sequences, node: NodeProto) -> bool:
    name = s.optional.get(node.input[0], "")
    if name in s.held:
        s.held[node.output[0]] = s.held[name]
        return False
    if not name and node.input[0] not in s.shapes.shape:
        return False
    s.add("Identity", [name or node.input[0]], node.output[0])
    return True


def _has_element(s: Sequences, node: NodeProto) -> bool:
    given = node.input[0] if node.input else ""
    if given and given not in s.optional and given not in s.held and given not in s.shapes.shape:
        return False
    there = bool(s.optional.get(given, given))
    s.graph.initializer.append(numpy_helper.from_array(np.asarray(there), unused("sequence", s.taken)))
    s.add("Identity", [s.graph.initializer[-1].name], node.output[0])
    return True


_FOLLOW: dict[str, Callable[[Sequences, NodeProto], bool]] = {
    "ConcatFromSequence": _concat,
    "Identity": _identity,
    "Optional": _optional,
    "OptionalGetElement": _element,
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _construct,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
