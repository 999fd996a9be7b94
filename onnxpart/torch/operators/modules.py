"""Layers that behave differently in training; what they learn is the graph's, not their own."""

import torch
from torch import nn
from torch.nn import functional as F

from onnxpart.torch.chance import uniform


class BatchNorm(nn.Module):
    """ONNX BatchNormalization; in training it updates the running mean and variance that it is given.

    `momentum` is torch's: the share of the new batch, which is 1 - the ONNX attribute.
    """

    def __init__(self, momentum: float, epsilon: float) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
    ) -> torch.Tensor:
        """Normalise x [N, C, ...] with vectors [C]."""
        return F.batch_norm(x, mean, var, scale, bias, self.training, self.momentum, self.epsilon)


class Dropout(nn.Module):
    """ONNX Dropout: zeros a share of the elements in training, and does nothing else.

    `lane` holds nothing: parts that are stacked into one batch have one each, so that each draws its own mask.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.lane: torch.Tensor
        self.register_buffer("lane", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop elements of x, of any shape."""
        if not self.training or self.ratio == 0:
            return x
        kept = (uniform(x, self.lane) >= self.ratio).to(x.dtype)
        return x * (kept / max(1 - self.ratio, 1e-6))
