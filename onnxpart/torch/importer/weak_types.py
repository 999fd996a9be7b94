"""What a graph makes of constants, sizes and masks takes the float type of the activations that it meets.

In the model's code it mostly did: a Python number has no type of its own, and a mask is made in that of the
activations. The graph has the types of the export instead, which are wrong once the parameters alone are cast, as
DeepSpeed and `fully_shard` with a `MixedPrecisionPolicy` do. The rule is that of JAX's weak types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from onnxpart.torch.importer.fuse import SHAPE
from onnxpart.torch.importer.graph_module import ORIGIN
from onnxpart.torch.importer.operators import runtime, values
from onnxpart.torch.importer.operators.recurrent import Recurrent

_MEETINGS = frozenset(
    (torch.add, torch.cat, torch.div, torch.matmul, torch.maximum, torch.minimum, torch.mul, torch.sub, torch.where,
     F.linear)
)  # fmt: skip
"""Functions of tensors that have one type in ONNX."""
_MADE = frozenset((runtime.int_tensor, values.drawn, values.full, values.integer_range))
"""Functions whose results have a type of their own, or are no floats."""


def follow_types(
    graph: fx.Graph, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], floats: Collection[fx.Node]
) -> None:
    """Let a graph cast what depends on no parameter and no input of floats to the type of what it is computed with.

    Nothing changes as long as all floats of a model have one type, or under autocast.

    :param graph: changed in place. :param tensors: what its `get_attr` nodes get, by their targets.
    :param modules: what it calls, by target. :param floats: its inputs of floats.
    """
    strong = set(floats)
    for node in list(graph.nodes):
        called = modules.get(str(node.target)) if node.op == "call_module" else None
        read = _read(node)
        firm = [each for each in read if each in strong]
        if firm and (node.target in _MEETINGS or isinstance(called, Recurrent)):
            for each in read:
                if each not in strong and not _is_number(each, tensors):
                    with graph.inserting_before(node):
                        cast = graph.call_function(runtime.cast_like, (each, firm[0]))
                    cast.meta = {SHAPE: each.meta[SHAPE]} if SHAPE in each.meta else {}
                    cast.meta[ORIGIN] = node.meta.get(ORIGIN, "")
                    node.replace_input_with(each, cast)
        parameter = node.op == "get_attr" and isinstance(tensors[str(node.target)], nn.Parameter)
        if parameter or (firm and node.target not in _MADE and not _is_typed(node)):
            strong.add(node)


def _read(node: fx.Node) -> list[fx.Node]:
    """The values that a node reads, and whose types it shares: not the condition of a choice."""
    if node.target is torch.where:
        return [value for value in node.args[1:] if isinstance(value, fx.Node)]
    return node.all_input_nodes


def _is_number(node: fx.Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is a constant without axes, whose type doesn't matter to torch."""
    return node.op == "get_attr" and not tensors[str(node.target)].dim()


def _is_typed(node: fx.Node) -> bool:
    """Whether a call's result has a type of its own, or is a size."""
    return node.op == "call_method" and node.target in ("size", "to")
