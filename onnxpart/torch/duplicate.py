"""The paper's duplicated mix in a module of the user's: a norm that normalises the units of each part apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxpart.plan import InitializerPlan, from_ranges

Norm = nn.LayerNorm | nn.RMSNorm


class PartwiseNorm(nn.Module):
    """Takes the place of a norm over the last axis, whose parameters it has, under the same names."""

    order: Tensor
    back: Tensor

    def __init__(self, norm: Norm, units: Sequence[Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.sizes = [len(here) for here in units]
        self.normalise: Callable[..., Tensor] = F.layer_norm if isinstance(norm, nn.LayerNorm) else F.rms_norm
        self.eps = norm.eps
        order = torch.cat(list(units)).to(norm.weight.device)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each part's units, [..., units]."""
        pieces = torch.split(x.index_select(-1, self.order), self.sizes, dim=-1)
        normed = torch.cat([self.normalise(piece, piece.shape[-1:], eps=self.eps) for piece in pieces], dim=-1)
        scaled = normed.index_select(-1, self.back) * self.weight
        return scaled if self.bias is None else scaled + self.bias


def partwise(norm: nn.Module, planned: InitializerPlan) -> PartwiseNorm | None:
    """The norm that takes the place of another whose weight is divided as planned; None for another kind of module."""
    if isinstance(norm, PartwiseNorm):
        return norm
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm) or len(norm.normalized_shape) > 1:
        return None
    kept = [blocks[0][0] for blocks in planned.blocks]
    if any(ranges is None for ranges in kept):
        return None
    return PartwiseNorm(norm, [torch.from_numpy(from_ranges(ranges)) for ranges in kept if ranges is not None])
