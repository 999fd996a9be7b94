"""Layers that behave differently in training; what they learn is the graph's, not their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.torch.part_random import uniform


class BatchNorm(nn.Module):
    """ONNX BatchNormalization; in training it updates the running mean and variance that it is given.

    `momentum` is torch's: the share of the new batch, which is 1 - the ONNX attribute. The variance of a batch that
    goes into the running one is torch's, over n - 1; where the graph asks for the running statistics (`returned`),
    it is ONNX's, over n.
    """

    def __init__(self, momentum: float, epsilon: float, returned: bool) -> None:
        super().__init__()
        self.momentum, self.epsilon, self.returned = momentum, epsilon, returned

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


class Dropout(nn.Module):
    """ONNX Dropout: zeros a share of the elements in training, and does nothing else; returns the mask if `masked`.

    `part` holds nothing: parts that are stacked into one batch have one each, so that each draws its own mask.
    """

    def __init__(self, ratio: float, masked: bool) -> None:
        super().__init__()
        self.ratio, self.masked = ratio, masked
        self.part: Tensor
        self.register_buffer("part", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Drop elements of x, of any shape."""
        if not self.training or self.ratio == 0:
            return (x, torch.ones_like(x, dtype=torch.bool)) if self.masked else x
        kept = uniform(x, self.part) >= self.ratio
        y = x * (kept.to(x.dtype) / max(1 - self.ratio, 1e-6))
        return (y, kept) if self.masked else y
