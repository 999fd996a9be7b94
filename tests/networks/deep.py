"""Networks whose blocks repeat."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn

from scripts.paper.gpt import Gpt
from tests.networks.exported import BasicBlock
from tests.networks.net import Net


def residual_mlp(blocks: int = 4, *, tied: bool = False, post_norm: bool = False, seen: bool = False) -> ModelProto:
    """x [N, 5] -> y [N, 3] by a stream of 6 units that blocks add to.

    `tied`: all blocks are one. `post_norm`: a norm stands on the stream. `seen`: what the second block gives is an
    output, too.
    """
    net = Net(("x", ("N", 5)))
    x = net.linear("x", 5, 6, name="first")
    weights = [(net.random("up", 8, 6), net.random("down", 6, 8)) for _ in range(1 if tied else blocks)] * blocks
    streams = []
    for up, down in weights[:blocks]:
        hidden = net.op("Relu", net.op("Gemm", x, up, transB=1))
        branch = net.op("Gemm", hidden, down, transB=1)
        x = net.op("Add", x, branch)
        if post_norm:
            x = net.op("LayerNormalization", x, net.positive("scale", 6), net.random("bias", 6))
        streams.append(x)
    return net.model(net.linear(x, 6, 3, name="last"), *streams[1:2] * seen)


class ResNet(nn.Module):
    """Two stages of basic blocks, [N, 3, 16, 16] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(8, 4)
        self.body = nn.Sequential(
            *(BasicBlock(4, 4) for _ in range(3)), BasicBlock(4, 8, 2), *(BasicBlock(8, 8) for _ in range(2))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


class Vit(nn.Module):
    """Torch's own encoder over patches, [N, 3, 16, 16] -> [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[int]]] = {
    "gpt": (lambda: Gpt(11, 6, 8, 2, 4), lambda: torch.randint(0, 11, (2, 6)), [4]),
    "resnet": (ResNet, lambda: torch.randn(2, 3, 16, 16), [3, 2]),
    "vit": (Vit, lambda: torch.randn(2, 3, 16, 16), [3]),
}
"""Module, input, and how many blocks its stacks have; the first block of a stage of another width is in no stack."""
