"""Sizes computed while importing: chains of Shape, Gather, Concat, ... become Python ints, not tensors.

A size that is known only at run time (mostly the batch) is an item that yields an int there, so `Reshape(x,
Concat(Gather(Shape(x), 0), -1))` becomes `x.reshape(x.size(0), -1)`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from itertools import chain

from onnx import TensorProto

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.values import Integers, are_known


def fold(node: Node) -> Integers | None:
    """Compute a node's only result from its integers; None if it is none of a chain of sizes."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return None
    if node.op_type != "Shape" and not node.holds_integers():
        return None
    return rule(node)


def _shape(node: Node) -> Integers | None:
    data, rank = node.integers(0), node.rank(0)
    if data is not None and node.holds_integers():
        return Integers(() if data.scalar else (len(data.items),))
    if rank is None:
        return None
    start, end, _ = slice(node.attribute("start", 0), node.attribute("end", rank)).indices(rank)
    return Integers(tuple(node.size(0, axis) for axis in range(start, end)))


def _gather(node: Node) -> Integers | None:
    data, indices = node.integers(0), node.integers(1)
    if data is None or data.scalar or indices is None or not indices.known:
        return None
    return Integers(tuple(data.items[i] for i in indices.items), indices.scalar)


def _slice(node: Node) -> Integers | None:
    bounds = [node.integer_list(name, i) for i, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
    data, (starts, ends, _, steps) = node.integers(0), bounds
    known = all(are_known(bound or ()) for bound in bounds)
    if data is None or data.scalar or not starts or not ends or not known:
        return None
    return Integers(data.items[slice(starts[0], ends[0], steps[0] if steps else 1)])


def _concat(node: Node) -> Integers | None:
    parts = [node.integers(i) for i in range(len(node.inputs))]
    lists = [part.items for part in parts if part is not None and not part.scalar]
    return Integers(tuple(chain.from_iterable(lists))) if len(lists) == len(parts) else None


def _squeeze(node: Node) -> Integers | None:
    data = node.integers(0)
    return Integers(data.items, scalar=True) if data and len(data.items) == 1 else None


def _unsqueeze(node: Node) -> Integers | None:
    data = node.integers(0)
    return Integers(data.items) if data and data.scalar else None


def _product(node: Node) -> Integers | None:
    data = node.integers(0)
    return Integers((math.prod(data.items),), not node.attribute("keepdims", 1)) if data else None


def _reshaped(node: Node) -> Integers | None:
    data, target = node.integers(0), node.integers(1)
    if data is None or target is None or not target.known or target.scalar or len(target.items) > 1:
        return None
    return Integers(data.items, scalar=not target.items)


def _picked(node: Node) -> Integers | None:
    condition, left, right = node.constant(0), node.integers(1), node.integers(2)
    if condition is None or condition.ndim > 1 or left is None or right is None:
        return None
    flags = tuple(bool(flag) for flag in condition.reshape(-1))
    length = max(len(flags), len(left.items), len(right.items))
    rows = zip(_repeat(flags, length), _repeat(left.items, length), _repeat(right.items, length), strict=True)
    return Integers(
        tuple(a if flag else b for flag, a, b in rows), condition.ndim == 0 and left.scalar and right.scalar
    )


def compare_sizes(node: Node) -> list[bool] | None:
    """Compare two lists of sizes while importing, as far as they are known: a size is never negative."""
    left, right = node.integers(0), node.integers(1)
    if left is None or right is None or not node.holds_integers():
        return None
    length = max(len(left.items), len(right.items))
    pairs = list(zip(_repeat(left.items, length), _repeat(right.items, length), strict=True))
    result = [_is_equal(a, b) for a, b in pairs]
    return None if None in result else [bool(flag) for flag in result]


def _is_equal(a: int, b: int) -> bool | None:
    if are_known((a, b)):
        return a == b
    known = [item for item in (a, b) if are_known((item,))]
    return False if known and known[0] < 0 else None


def _same(node: Node) -> Integers | None:
    return node.integers(0) if node.attribute("to", TensorProto.INT64) == TensorProto.INT64 else None


def _arithmetic(node: Node) -> Integers | None:
    left, right = node.integers(0), node.integers(1)
    if left is None or right is None:
        return None
    length = max(len(left.items), len(right.items))
    pairs = zip(_repeat(left.items, length), _repeat(right.items, length), strict=True)
    function = _ARITHMETIC[node.op_type]
    return Integers(tuple(function(a, b) for a, b in pairs), left.scalar and right.scalar)


def _repeat(items: tuple[int, ...], length: int) -> tuple[int, ...]:
    return items * length if len(items) == 1 else items


def _divide(a: int, b: int) -> int:
    """Divide sizes; ONNX divides towards zero, which makes no difference, since sizes are never negative."""
    if are_known((a, b)):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divide,
}
_RULES: dict[str, Callable[[Node], Integers | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "ReduceProd": _product,
    "Reshape": _reshaped,
    "Where": _picked,
    "Cast": _same,
    "Identity": _same,
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
}
