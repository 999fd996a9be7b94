"""The paper's duplicated mix in the user's module: a norm that normalises the units of each part separately."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from onnxpart.analysis.analysis import Analysis
from onnxpart.planning.scaling import NORMALISATIONS


class PartwiseNorm(nn.Module):
    """Replaces a norm, and has its parameters under the same names.

    :param norm: maps a tensor to one of its shape, and mixes units along `axis` alone. :param units: indices that each
        part has, int64 [units of the part].
    """

    order: Tensor
    back: Tensor

    def __init__(self, norm: nn.Module, units: Sequence[Tensor], axis: int) -> None:
        super().__init__()
        self.axis, self.sizes = axis, [len(here) for here in units]
        self.narrow = [_narrowed(norm, size) for size in self.sizes]  # in a list: no children, so names stay
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, parameter)
        device = next(norm.parameters()).device
        self.register_buffer("order", torch.cat(list(units)).to(device), persistent=False)
        self.register_buffer("back", self.order.argsort(), persistent=False)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each part's units."""
        pieces = torch.split(x.index_select(self.axis, self.order), self.sizes, dim=self.axis)
        own = {name: torch.split(p.index_select(0, self.order), self.sizes) for name, p in self.named_parameters()}
        normed = [
            functional_call(norm, {name: split[p] for name, split in own.items()}, (piece,))
            for p, (norm, piece) in enumerate(zip(self.narrow, pieces, strict=True))
        ]
        return torch.cat(normed, dim=self.axis).index_select(self.axis, self.back)


def _narrowed(norm: nn.Module, size: int) -> nn.Module:
    """A copy for fewer units; its parameters are handed over at each call."""
    result = copy.copy(norm)
    result.__dict__["_parameters"] = dict(norm.__dict__["_parameters"])
    if hasattr(norm, "normalized_shape"):
        result.__dict__["normalized_shape"] = (size,)
    return result


@torch.no_grad()
def mixed_axis(module: nn.Module) -> int | None:
    """The axis along which a module with parameters [units] alone mixes units; None for another kind of module."""
    parameters = list(module.parameters())
    if any(module.children()) or any(True for _ in module.buffers()) or not parameters:
        return None
    size = len(parameters[0]) if parameters[0].ndim else 0
    if size < 2 or any(parameter.shape != (size,) for parameter in parameters):
        return None
    rest = [n for n in (2, 3, 5, 7) if n != size]
    for axis, shape in ((-1, (*rest[:2], size)), (1, (rest[0], size, *rest[1:3]))):
        x = torch.rand(shape).to(parameters[0])
        other = x.index_fill(axis, torch.zeros(1, dtype=torch.long, device=x.device), 9)
        try:
            here, there = (module(value).select(axis, 1) for value in (x, other))
        except Exception:  # whatever a module raises for an input that isn't its own
            continue
        return None if torch.equal(here, there) else axis
    return None


def norm_of(analysis: Analysis, weight: str) -> set[int]:
    """The operators that make up the norm of this weight; none if that isn't clear."""
    readers = analysis.consumers[weight]
    if all(analysis.ops[i].node.op_type in NORMALISATIONS for i in readers):
        return set(readers)
    before, waiting = set(readers), list(readers)
    while waiting:
        for name in analysis.inputs(waiting.pop()):
            i = analysis.producer.get(name)
            if i is not None and i not in before and name in analysis.state.depends_on_parameters:
                before.add(i)
                waiting += [] if _has_parameters(analysis, i) else [i]
    mixes = {i for i in before if analysis.ops[i].node.op_type.startswith("Reduce")}
    found = mixes if len(mixes) == 1 else set()
    for i in sorted(before):
        if any(analysis.producer.get(name) in found for name in analysis.inputs(i)):
            found.add(i)
    return found


def _has_parameters(analysis: Analysis, i: int) -> bool:
    parameters = analysis.state.weights_only & analysis.state.depends_on_parameters
    return not parameters.isdisjoint(analysis.inputs(i))
