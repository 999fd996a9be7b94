"""The rows of embeddings that a module doesn't train: those of padding, which ONNX's Gather knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn


def padding_of(module: nn.Module) -> dict[str, int]:
    """Return the row of padding of each embedding, by the first name of its weight in the module.

    :param module: with `nn.Embedding`s, or the program of one (see `torch.export`).
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = (pair for path, child in module.named_modules() for pair in _found(module, path, child))
    return {names[id(weight)]: row for weight, row in found if row is not None and id(weight) in names}


def _found(root: nn.Module, path: str, child: nn.Module) -> Iterator[tuple[Tensor, int | None]]:
    """The weight and the row of padding of an embedding, or of each that a program calls."""
    if isinstance(child, nn.Embedding):
        yield child.weight, child.padding_idx
    for node in child.graph.nodes if isinstance(child, fx.GraphModule) else ():
        if node.target is torch.ops.aten.embedding.default and len(node.args) > 2 and node.args[2] >= 0:
            yield root.get_parameter(".".join(filter(None, (path, str(node.args[0].target))))), node.args[2]
