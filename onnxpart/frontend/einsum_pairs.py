"""Einsums of several operands, written as Einsums of two: rules follow units through those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from onnx import GraphProto, ModelProto, NodeProto, helper

from onnxpart.ir.einsum import parse
from onnxpart.ir.model import Model
from onnxpart.ir.protos import all_nodes, graphs_of, is_onnx, names_of, set_repeated, unused

_DOTS = "."
"""How an ellipsis stands in an equation here: as a letter among others."""


@dataclass(frozen=True)
class _Operand:
    """A value, and the letters of its axes."""

    name: str
    letters: str


def pair_einsums(proto: ModelProto) -> None:
    """Write every Einsum of more than two operands as Einsums of two, in place.

    Axes of a single operand that are summed over are summed first. Then pairs are contracted, each time the pair whose
    result has the fewest axes. An equation that takes a diagonal stays as it is.

    :param proto: a model without local functions; new values are named after the Einsum's result.
    """
    if any(node.op_type == "Einsum" for node in all_nodes(proto.graph)):
        _visit(proto.graph, names_of(proto.graph) | {tensor.name for tensor in proto.graph.initializer})


def einsums_in_pairs(model: Model) -> Iterator[str]:
    """No Einsum is left that `pair_einsums` would write as several."""
    for node in all_nodes(model.proto.graph):
        if is_onnx(node, "Einsum") and len(_pairs(node, set())) > 1:
            yield f"the Einsum {node.name!r} has {len(node.input)} operands"


def _visit(graph: GraphProto, taken: set[str]) -> None:
    nodes, changed = list[NodeProto](), False
    for node in graph.node:
        for inner in graphs_of(node):
            _visit(inner, taken)
        found = _pairs(node, taken) if is_onnx(node, "Einsum") else [node]
        changed |= len(found) > 1
        nodes += found
    if changed:
        set_repeated(graph.node, nodes)


def _pairs(node: NodeProto, taken: set[str]) -> list[NodeProto]:
    """The nodes that compute what an Einsum does; itself where nothing is to be done."""
    terms, out = parse(helper.get_attribute_value(node.attribute[0]).decode())
    terms, out = [term.replace("...", _DOTS) for term in terms], out.replace("...", _DOTS)
    dropped = _DOTS not in out and any(_DOTS in term for term in terms)
    if any(len(set(t)) < len(t) for t in terms) or dropped or len(terms) < 2:
        return [node]
    found: list[NodeProto] = []

    def einsum(operands: Sequence[_Operand], letters: str, result: str = "") -> _Operand:
        name = result or unused(f"{node.output[0]}/pair", taken)
        text = ",".join(o.letters for o in operands) + "->" + letters
        inputs, title = [o.name for o in operands], node.name if result else name
        found.append(helper.make_node("Einsum", inputs, [name], title, equation=text.replace(_DOTS, "...")))
        return _Operand(name, letters)

    operands = [_Operand(name, term) for name, term in zip(node.input, terms, strict=True)]
    for i, operand in enumerate(operands):
        needed = out + "".join(terms[:i] + terms[i + 1 :])
        letters = "".join(c for c in operand.letters if c in needed)
        if letters != operand.letters:
            operands[i] = einsum([operand], letters)
    while len(operands) > 2:
        kept = {pair: _kept(operands, pair, out) for pair in combinations(range(len(operands)), 2)}
        i, j = min(kept, key=lambda pair: (len(kept[pair]), pair))
        pair = einsum([operands[i], operands[j]], kept[i, j])
        operands = [*operands[:i], pair, *operands[i + 1 : j], *operands[j + 1 :]]
    einsum(operands, out, node.output[0])
    return found if len(found) > 1 else [node]


def _kept(operands: Sequence[_Operand], pair: tuple[int, int], out: str) -> str:
    """The letters of the product of two operands that are needed afterwards."""
    needed = out + "".join(o.letters for i, o in enumerate(operands) if i not in pair)
    both = operands[pair[0]].letters + operands[pair[1]].letters
    return "".join(c for c in dict.fromkeys(both) if c in needed)
