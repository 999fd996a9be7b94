"""Networks that classify images, written in PyTorch: residual ones, and a vision transformer."""

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

import onnxpart.torch
from scripts.paper.gpt import Block


class Residual(nn.Module):
    """Two 3x3 convolutions, or one between 1x1 convolutions of a fourth of the outputs; past them a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inner = outputs // 4 if bottleneck else outputs
        shapes = [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
        if bottleneck:
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        layers = [layer for shape in shapes for layer in (*_convolution(*shape), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions give to x [N, C, H, W]."""
        return F.relu(self.layers(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, each (channels, blocks), and a layer; all stages but the first halve sides."""

    def __init__(
        self, stem: Sequence[nn.Module], stages: Sequence[tuple[int, int]], classes: int, bottleneck: bool = False
    ) -> None:
        super().__init__()
        self.stem, blocks = nn.Sequential(*stem), list[nn.Module]()
        channels = next(layer.out_channels for layer in stem if isinstance(layer, nn.Conv2d))
        for number, (outputs, count) in enumerate(stages):
            for block in range(count):
                blocks.append(Residual(channels, outputs, 2 if number and not block else 1, bottleneck))
                channels = outputs
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, 3, H, W]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def resnet(depth: int) -> ResNet:
    """Return ResNet-18 or ResNet-50, with 1,000 classes."""
    stem = (*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    if depth == 18:
        return ResNet(stem, ((64, 2), (128, 2), (256, 2), (512, 2)), 1000)
    return ResNet(stem, ((256, 3), (512, 4), (1024, 6), (2048, 3)), 1000, bottleneck=True)


class Vit(nn.Module):
    """Pieces of 6x6 pixels as tokens, blocks, a norm, and the output of their mean.

    Places start as large as pieces are. At a deviation of 0.1 they are lost beside them, and the network hardly learns.
    """

    def __init__(self, width: int, heads: int, blocks: int, side: int) -> None:
        super().__init__()
        self.pieces = nn.Conv2d(3, width, 6, 6)
        self.place = nn.Parameter(torch.randn((side // 6) ** 2, width) * 0.5)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, 3, side, side]."""
        tokens = self.pieces(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens + self.place)).mean(1))  # type: ignore[no-any-return]


def small_resnet(channels: int = 64) -> ResNet:
    """Return three stages of a block each, twice as wide after each, behind a stem that halves sides; ten classes."""
    stem = (*_convolution(3, channels, 3, 2), nn.ReLU())
    return ResNet(stem, tuple((channels * 2**i, 1) for i in range(3)), 10)


def small_vit(width: int = 256, heads: int = 8, blocks: int = 2, side: int = 24) -> Vit:
    """Return a vision transformer of images [N, 3, side, side]; ten classes."""
    return Vit(width, heads, blocks, side)


@cache
def exported(build: Callable[[], nn.Module], seed: int, side: int = 24) -> ModelProto:
    """Return a network of images [N, 3, side, side] as ONNX, its weights from the seed."""
    with torch.random.fork_rng([]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        file = Path(folder) / "network.onnx"
        onnxpart.torch.export(build(), torch.zeros(2, 3, side, side), file)
        return onnx.load(file)
