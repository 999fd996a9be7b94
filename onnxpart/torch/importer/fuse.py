"""Calls that together are one of torch's functions, as exporters write them, become a call of that function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from onnxpart.torch.importer.operators import runtime

SHAPE = "shape"
"""Key of a node's `meta`: its value's shape, None for each unknown size; missing where even the rank is unknown."""
Tensors: TypeAlias = Mapping[str, Tensor]
Found: TypeAlias = Mapping[str, Any]


def fuse(graph: fx.Graph, tensors: Tensors) -> None:
    """Let a graph call linear layers, group norms, RMS norms and parametric ReLUs where it computes them.

    :param graph: changed in place; what nothing reads any more stays. :param tensors: what its `get_attr` nodes get,
        by their targets.
    """
    for pattern, rule in _RULES:
        for node in list(graph.nodes):
            with graph.inserting_before(node):
                made = next(filter(None, (rule(graph, tensors, found) for found in _matches(node, pattern, {}))), None)
            if made is not None:
                made.meta = dict(node.meta)
                node.replace_all_uses_with(made)
                graph.erase_node(node)


def _matches(value: object, pattern: object, found: Found) -> Iterator[Found]:
    """What the names in a pattern stand for, in each way in which a value fits it.

    :param pattern: a name, the target of a call and the patterns of its arguments, or what the value must equal.
    :param found: what names stand for already.
    """
    if isinstance(pattern, str):
        if found.get(pattern, value) is value:
            yield {**found, pattern: value}
    elif not isinstance(pattern, tuple):
        if value == pattern:
            yield found
    elif _is_call(value, pattern[0]):
        values = [*value.args, *value.kwargs.values()]
        yield from _all_match(values, pattern[1:], found)
        if value.target in (torch.add, torch.mul):
            yield from _all_match(values[::-1], pattern[1:], found)


def _all_match(values: Sequence[object], patterns: Sequence[object], found: Found) -> Iterator[Found]:
    """The same for arguments. A call that something else reads, too, doesn't fit: it would be computed twice."""
    if len(values) != len(patterns):
        return
    if not patterns:
        yield found
    elif not isinstance(patterns[0], tuple) or _readers(values[0]) == 1:
        for first in _matches(values[0], patterns[0], found):
            yield from _all_match(values[1:], patterns[1:], first)


def _linear(graph: fx.Graph, tensors: Tensors, found: Found) -> fx.Node | None:
    """A product with a matrix that is turned."""
    turned = found["turned"]
    if not _is_call(turned, "permute") or turned.args[1] != [1, 0] or _rank(turned.args[0], tensors) != 2:
        return None
    return graph.call_function(F.linear, (found["x"], turned.args[0]))


def _with_bias(graph: fx.Graph, tensors: Tensors, found: Found) -> fx.Node | None:
    """A product with a matrix, turned or not, and a vector that is added."""
    matrix, bias = found.get("weight", found.get("matrix")), found["bias"]
    if _rank(matrix, tensors) != 2 or _rank(bias, tensors) != 1:
        return None
    if len(tensors[bias.target]) != tensors[matrix.target].shape[0 if "weight" in found else 1]:
        return None
    weight = matrix if "weight" in found else graph.call_method("t", (matrix,))
    return graph.call_function(F.linear, (found["x"], weight, bias))


def _group_norm(graph: fx.Graph, tensors: Tensors, found: Found) -> fx.Node | None:
    """A norm of groups as if they were channels, and a weight and a bias for each channel."""
    x, (rows, groups, *rest), back = found["x"], found["grouped"], found["back"]
    weight, bias = (_per_channel(found[name], x, tensors) for name in ("weight", "bias"))
    if weight is None or bias is None or [_number(found[name], tensors) for name in ("ones", "zeros")] != [1, 0]:
        return None
    shape = _shape(x) or ()
    if len(rest) != 1 or not isinstance(groups, int) or not _is_size(rows, x, 0) or len(back) != len(shape):
        return None
    same = all(_is_size(size, x, axis) for axis, size in enumerate(back[1:], 1))  # and the first is then the same
    if not same or any(tensors[str(each.target)].numel() != shape[1] for each in (weight, bias)):
        return None
    return graph.call_function(F.group_norm, (x, groups, weight, bias, found["epsilon"]))


def _rms_norm(graph: fx.Graph, tensors: Tensors, found: Found) -> fx.Node | None:
    """A quotient by the root of a mean square over the last axes, and a weight for each of their elements."""
    shape, weight, epsilon = _shape(found["x"]), _tensor(found["weight"], tensors), _number(found["epsilon"], tensors)
    if not shape or weight is None or not weight.dim() or epsilon is None or _number(found["two"], tensors) != 2:
        return None
    last, sizes = list(range(len(shape)))[-weight.dim() :], [*weight.shape]
    if sorted(axis % len(shape) for axis in found["axes"]) != last or [shape[axis] for axis in last] != sizes:
        return None
    return graph.call_function(F.rms_norm, (found["x"], sizes, found["weight"], epsilon))


def _prelu(graph: fx.Graph, tensors: Tensors, found: Found) -> fx.Node | None:
    """A slope for each channel, or a single one; of the network's own input `torch.vmap` does it with a warning."""
    x = found["x"]
    weight = None if isinstance(x, fx.Node) and x.op == "placeholder" else _per_channel(found["slope"], x, tensors)
    return None if weight is None else graph.call_function(F.prelu, (x, weight))


_Rule: TypeAlias = Callable[[fx.Graph, Tensors, Found], fx.Node | None]
_NORM = (F.instance_norm, ("reshape", "x", "grouped"), None, None, "ones", "zeros", True, "momentum", "epsilon")
_SQUARES = (torch.mean, (runtime.power, "x", "two"), "axes", True)
_RULES: Sequence[tuple[tuple[object, ...], _Rule]] = (
    ((torch.matmul, "x", "turned"), _linear),
    ((torch.add, (F.linear, "x", "weight"), "bias"), _with_bias),
    ((torch.add, (torch.matmul, "x", "matrix"), "bias"), _with_bias),
    ((torch.add, (torch.mul, ("reshape", _NORM, "back"), "weight"), "bias"), _group_norm),
    (
        (torch.mul, (torch.mul, "x", (torch.reciprocal, (torch.sqrt, (torch.add, _SQUARES, "epsilon")))), "weight"),
        _rms_norm,
    ),
    ((runtime.parametric_relu, "x", "slope"), _prelu),
)


def _is_call(value: object, target: object) -> TypeGuard[fx.Node]:
    """Whether a value is the result of a function, or of a method by its name."""
    return isinstance(value, fx.Node) and value.op in ("call_function", "call_method") and value.target == target


def _readers(value: object) -> int:
    """How many calls read the elements of a value, not only its size."""
    users = value.users if isinstance(value, fx.Node) else ()
    return sum(not _is_call(user, "size") for user in users)


def _is_size(value: object, x: object, axis: int) -> bool:
    """Whether a value is the size of x along an axis."""
    if _is_call(value, "size"):
        return value.args == (x, axis)
    return isinstance(value, int) and value == (_shape(x) or ())[axis]


def _per_channel(value: object, x: object, tensors: Tensors) -> fx.Node | None:
    """The vector, or single number, that a value has along the second axis of x; None for another value."""
    held, views = value, list[fx.Node]()
    while _is_call(held, "unsqueeze") or _is_call(held, "reshape"):
        views.append(held)
        held = held.args[0]
    shape, spread = _shape(x) or (), _tensor(held, tensors)
    if len(shape) < 2 or spread is None or spread.dim() != 1 or len(spread) not in (1, shape[1]):
        return None
    wanted = [1, len(spread), *[1] * (len(shape) - 2)]
    for view in reversed(views):
        if len(view.all_input_nodes) > 1:
            return None
        spread = getattr(spread, str(view.target))(*view.args[1:])
    fits = [1] * (len(shape) - spread.dim()) + [*spread.shape] == wanted
    return held if isinstance(held, fx.Node) and fits else None


def _shape(value: object) -> Sequence[int | None] | None:
    return value.meta.get(SHAPE) if isinstance(value, fx.Node) else None


def _tensor(value: object, tensors: Tensors) -> Tensor | None:
    """A tensor that the module holds; None for other values."""
    return tensors[str(value.target)] if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _number(value: object, tensors: Tensors) -> float | None:
    """The number that a tensor has everywhere and that no training changes; None for other values."""
    tensor = _tensor(value, tensors)
    numbers = set() if tensor is None or isinstance(tensor, nn.Parameter) else set(tensor.flatten().tolist())
    return float(numbers.pop()) if len(numbers) == 1 else None


def _rank(value: object, tensors: Tensors) -> int | None:
    tensor = _tensor(value, tensors)
    return None if tensor is None else tensor.dim()
