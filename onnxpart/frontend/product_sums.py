"""Contractions that are spelled as products and a sum, written as Einsums: rules know the weights of those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, product
from string import ascii_letters

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxpart.ir.einsum import parse
from onnxpart.ir.protos import all_graphs, all_nodes, is_onnx, names_of, set_repeated, unused
from onnxpart.ir.shapes import Shapes

SUM = "ReduceSum"
"""The operator that such a contraction ends in."""
_LINEAR = ("Add", "Einsum", "Mul", "Unsqueeze")
"""What a sum is taken into; what anything else gives is a factor."""
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
"""The types for which runtimes have an Einsum."""
_DEEPEST, _MOST = 16, 8
"""So many nodes behind each other, and so many terms, are looked at."""
Axes = tuple[int, ...]
"""For each axis of a tensor the axis of its sum's products that it is."""


@dataclass(frozen=True)
class _Factor:
    """A value, and its axes."""

    name: str
    axes: Axes


Term = tuple[_Factor, ...]
"""A product of factors that broadcast along axes which they haven't."""


def may_contract(graph: GraphProto) -> bool:
    """Whether anything is summed that a sum is taken into; else there is nothing to do for `contract_sums`."""
    made = {name for node in all_nodes(graph) if is_onnx(node, *_LINEAR) for name in node.output}
    return any(is_onnx(node, SUM) and node.input[0] in made for node in all_nodes(graph))


def contract_sums(graph: GraphProto, shapes: Shapes) -> bool:
    """Write sums of products in which a weight makes units as Einsums, in place; returns whether there were any.

    A sum of terms is the sum of each term's. A weight makes units if it has an axis of the result that no activation
    has, and an axis that is summed over with an activation.

    :param graph: the outermost one; it and those within it have one namespace. New values are named after the sums.
    :param shapes: those of its model.
    """
    taken, changed = names_of(graph) | set(shapes.model.initializers), False
    uses = Counter(name for node in all_nodes(graph) for name in node.input)
    uses.update(value.name for inner in all_graphs(graph) for value in inner.output)
    for inner in all_graphs(graph):
        once = {n.output[0]: n for n in inner.node if is_onnx(n, *_LINEAR) and uses[n.output[0]] == 1}
        found = {n.output[0]: c for n in inner.node if is_onnx(n, SUM) and (c := _contraction(n, once, shapes))}
        if found:
            nodes = [
                _einsums(n, *found[n.output[0]], shapes, taken) if n.output[0] in found else [n] for n in inner.node
            ]
            set_repeated(inner.node, [node for several in nodes for node in several])
            changed = True
    return changed


def _contraction(node: NodeProto, once: Mapping[str, NodeProto], shapes: Shapes) -> tuple[list[Term], Axes] | None:
    """The terms of a sum, and the axes of its result; None where it isn't to be written as Einsums."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    data = node.input[0]
    summed = shapes.value(node.input[1]) if len(node.input) > 1 else attributes.get("axes")
    if data not in once or data not in shapes.shape or summed is None or attributes.get("keepdims", 1):
        return None
    if not np.size(summed) or shapes.model.opsets[""] < 12 or shapes.dtype.get(data) not in _FLOATS:
        return None
    terms = _Terms(once, shapes)
    axes = terms.axes(shapes.shape[data])
    over = {axes[int(i)] for i in summed}
    out = tuple(axis for axis in axes if axis not in over)
    found = terms.of(data, axes)
    needed = {axis for axis in axes if axis in out or terms.sizes[axis] != 1}
    if len(found) > _MOST or not all(needed <= _covered(term) for term in found):
        return None  # a term that is the same along a summed axis would count more than once
    return (found, out) if any(_makes_units(term, out, shapes) for term in found) else None


class _Terms:
    """Takes values apart into terms; `sizes` are those of the products' axes, at trial sizes."""

    def __init__(self, once: Mapping[str, NodeProto], shapes: Shapes) -> None:
        self.once, self.shapes = once, shapes
        self.sizes: dict[int, int] = {}

    def axes(self, shape: Iterable[int]) -> Axes:
        """New axes of given sizes."""
        new = dict(zip(count(len(self.sizes)), shape, strict=False))
        self.sizes |= new
        return tuple(new)

    def of(self, name: str, axes: Axes, depth: int = 0) -> list[Term]:
        """The terms of a value whose axes are given; more than `_MOST` are too many.

        What no initializer is a factor of is one itself.
        """
        node = self.once.get(name)
        if node is None or depth == _DEEPEST or any(read not in self.shapes.shape for read in node.input):
            return [(_Factor(name, axes),)]
        if node.op_type == "Einsum":
            return [self._of_einsum(node, axes) or (_Factor(name, axes),)]
        if node.op_type == "Unsqueeze":
            added = {a % len(axes) for a in self._unsqueezed(node)}
            return self.of(node.input[0], tuple(axis for i, axis in enumerate(axes) if i not in added), depth + 1)
        a, b = (self.of(read, self._broadcast(read, axes), depth + 1) for read in node.input)
        found = [*a, *b] if node.op_type == "Add" else [(*left, *right) for left, right in product(a, b)]
        held = any(factor.name in self.shapes.model.initializers for term in found for factor in term)
        return found[: _MOST + 1] if held else [(_Factor(name, axes),)]

    def _broadcast(self, name: str, axes: Axes) -> Axes:
        """The axes of an operand, given those of the result; one of size 1 that is repeated is a new one."""
        shape = self.shapes.shape[name]
        pairs = zip(axes[len(axes) - len(shape) :], shape, strict=True)
        return tuple(axis if size == self.sizes[axis] else self.axes([size])[0] for axis, size in pairs)

    def _unsqueezed(self, node: NodeProto) -> list[int]:
        if len(node.input) == 1:
            return list(node.attribute[0].ints)
        value = self.shapes.value(node.input[1])
        return [] if value is None else [int(axis) for axis in value.ravel()]

    def _of_einsum(self, node: NodeProto, axes: Axes) -> Term | None:
        """The operands of an Einsum, what it sums over being axes of their own; None where it takes a diagonal."""
        operands, out = parse(node.attribute[0].s.decode())
        if any("." in letters or len(set(letters)) < len(letters) for letters in operands):
            return None
        known = dict(zip(out, axes, strict=True))
        for name, letters in zip(node.input, operands, strict=True):
            for letter, size in zip(letters, self.shapes.shape[name], strict=True):
                if letter not in known:
                    known[letter] = self.axes([size])[0]
        pairs = zip(node.input, operands, strict=True)
        return tuple(_Factor(name, tuple(known[letter] for letter in letters)) for name, letters in pairs)


def _covered(factors: Iterable[_Factor]) -> set[int]:
    """The axes of some factors."""
    return {axis for factor in factors for axis in factor.axes}


def _apart(term: Term, shapes: Shapes) -> tuple[list[_Factor], list[_Factor]]:
    """The factors that are initializers, and the others."""
    held = [factor for factor in term if factor.name in shapes.model.initializers]
    return held, [factor for factor in term if factor not in held]


def _makes_units(term: Term, out: Axes, shapes: Shapes) -> bool:
    """Whether a weight has an axis of the result, and one that is summed over, and only the latter is others', too."""
    held, others = _apart(term, shapes)
    given = _covered(others)
    weights = [{*factor.axes} for factor in held if shapes.model.trainable(factor.name)]
    return any(mine & {*out} - given and (mine & given) - {*out} for mine in weights)


def _einsums(node: NodeProto, terms: list[Term], out: Axes, shapes: Shapes, taken: set[str]) -> list[NodeProto]:
    """The nodes that stand for a sum: what is held as one weight, the others as one, both contracted, by term."""
    found: list[NodeProto] = []

    def add(op_type: str, inputs: list[str], last: bool, **attributes: str) -> str:
        name = node.output[0] if last else unused(f"{node.output[0]}/term", taken)
        found.append(helper.make_node(op_type, inputs, [name], node.name if last else name, **attributes))
        return name

    def einsum(factors: list[_Factor], kept: Axes, last: bool = False) -> _Factor:
        letters = dict(zip(dict.fromkeys(axis for f in factors for axis in f.axes), ascii_letters, strict=False))
        terms = ["".join(letters[axis] for axis in axes) for axes in (*(f.axes for f in factors), kept)]
        inputs = [f.name for f in factors]
        return _Factor(add("Einsum", inputs, last, equation=f"{','.join(terms[:-1])}->{terms[-1]}"), kept)

    sums: list[str] = []
    for term in terms:
        sides = [side for side in _apart(term, shapes) if side]
        joined = [
            side[0] if len(side) == 1 else einsum(side, tuple(dict.fromkeys(axis for f in side for axis in f.axes)))
            for side in sides
        ]
        sums.append(einsum(joined[::-1], out, last=len(terms) == 1).name)
    while len(sums) > 1:
        sums = [add("Add", sums[:2], last=len(sums) == 2), *sums[2:]]
    return found
