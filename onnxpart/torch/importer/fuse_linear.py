"""Products with a weight, with the bias that is added to them, as linear layers, which torch computes fastest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.nn import functional as F


def fuse(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
    """Make linear layers of MatMul by a weight matrix, transposed or not, and Add of a vector.

    :param tensors: what the graph's `get_attr` nodes get, by their targets.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.matmul:
            _use_transposed(node, tensors)
        elif node.target is torch.add:
            _take_in_bias(graph, node, tensors)


def _use_transposed(product: fx.Node, tensors: Mapping[str, Tensor]) -> None:
    """Make a linear layer of a product with a transposed weight."""
    x, turned = product.args
    if not isinstance(turned, fx.Node) or turned.target != "permute" or turned.args[1] != [1, 0]:
        return
    weight = turned.args[0]
    if _rank(weight, tensors) == 2:
        product.target, product.args = F.linear, (x, weight)


def _take_in_bias(graph: fx.Graph, add: fx.Node, tensors: Mapping[str, Tensor]) -> None:
    """Make the linear layer's bias of a vector that is added to a product, if nothing else reads the product."""
    for product, bias in (add.args, add.args[::-1]):
        if _rank(bias, tensors) != 1 or not isinstance(product, fx.Node) or len(product.users) > 1:
            continue
        linear = product.target is F.linear and len(product.args) == 2
        if not linear and not (product.target is torch.matmul and _rank(product.args[1], tensors) == 2):
            continue
        x, weight = product.args
        if _shape(bias, tensors)[0] != _shape(weight, tensors)[0 if linear else 1]:
            continue
        with graph.inserting_before(add):
            weight = weight if linear else graph.call_method("t", (weight,))
            layer = graph.call_function(F.linear, (x, weight, bias))
        layer.meta = dict(add.meta)
        add.replace_all_uses_with(layer)
        graph.erase_node(add)
        graph.erase_node(product)
        return


def _shape(value: object, tensors: Mapping[str, Tensor]) -> torch.Size:
    assert isinstance(value, fx.Node)
    return tensors[str(value.target)].shape


def _rank(value: object, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rank of a tensor that the module holds; None for other values."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return tensors[str(value.target)].dim()
