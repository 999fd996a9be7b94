"""Layers that behave differently in training; their parameters belong to the graph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.torch.part_random import uniform

_BATCH_NORMS: Mapping[int | None, type[nn.modules.batchnorm._BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
"""Batch norms by the rank of their inputs."""


class BatchNorm(nn.Module):
    """ONNX BatchNormalization; in training it updates the running mean and variance that it is given.

    `momentum` is torch's: the share of the new batch, which is 1 - the ONNX attribute. The running variance takes
    torch's variance of a batch, over n - 1; if the graph reads the running statistics (`returned`), it takes ONNX's,
    over n. `kind`: torch's layer for inputs of this rank, if that is known.
    """

    def __init__(self, momentum: float, epsilon: float, returned: bool, rank: int | None) -> None:
        super().__init__()
        self.momentum, self.epsilon, self.returned = momentum, epsilon, returned
        self.kind = _BATCH_NORMS.get(rank)

    def forward(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Normalise x [N, C, ...] with vectors [C]; return the statistics too if they are `returned`."""
        if not self.returned:
            return F.batch_norm(x, mean, var, scale, bias, self.training, self.momentum, self.epsilon)
        if not self.training:
            return F.batch_norm(x, mean, var, scale, bias, False, 0.0, self.epsilon), mean, var
        with torch.no_grad():
            axes = [axis for axis in range(x.dim()) if axis != 1]
            new_var, new_mean = torch.var_mean(x, axes, correction=0)
            mean.lerp_(new_mean.to(mean.dtype), self.momentum)
            var.lerp_(new_var.to(var.dtype), self.momentum)
        return F.batch_norm(x, None, None, scale, bias, True, 0.0, self.epsilon), mean.clone(), var.clone()


class Dropout(nn.Dropout):
    """ONNX Dropout: zeros a share of the elements in training, and does nothing else; returns the mask if `masked`.

    `part` has a value that nobody reads. Stacked parts have one each, so that each draws its own mask.
    """

    def __init__(self, ratio: float, masked: bool) -> None:
        super().__init__(min(max(ratio, 0.0), 1.0))
        self.masked = masked
        self.part: Tensor
        self.register_buffer("part", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Any:
        """Drop elements of x, of any shape; return a tensor, or that and the mask."""
        if not self.training or self.p == 0:
            return (x, torch.ones_like(x, dtype=torch.bool)) if self.masked else x
        kept = uniform(x, self.part) >= self.p
        y = x * (kept.to(x.dtype) / max(1 - self.p, 1e-6))
        return (y, kept) if self.masked else y
