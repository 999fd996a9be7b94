"""Networks as people write them in PyTorch, as small as they can be, and a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 5)
        self.fc1, self.drop, self.fc2 = nn.Linear(24, 12), nn.Dropout(), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        y: Tensor = self.fc2(self.drop(F.relu(self.fc1(x))))
        return y


class Block(nn.Module):
    """Two convolutions around which the input is led."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.down = None
        if stride > 1 or i != o:
            self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


class ResNet18(nn.Module):
    """A stem and four stages of two blocks, 4 to 32 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        stages = [(4, 4, 1), (4, 8, 2), (8, 16, 2), (16, 32, 2)]
        self.stages = nn.ModuleList(nn.Sequential(Block(i, o, s), Block(o, o, 1)) for i, o, s in stages)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for stage in self.stages:
            x = stage(x)
        y: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


class Layer(nn.Module):
    """Causal attention and a hidden layer, each behind a norm and added to what came in."""

    mask: Tensor

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.attn, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ln_2, self.fc, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mask", torch.tril(torch.ones(places, places)).view(1, 1, places, places))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.attn(self.ln_1(x)).split(c, dim=2))
        scores = (q @ k.transpose(2, 3) * (c // self.heads) ** -0.5).masked_fill(
            self.mask[:, :, :t, :t] == 0, -torch.inf
        )
        y = self.drop(scores.softmax(-1)) @ v
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(b, t, c)))
        made: Tensor = x + self.drop(self.out(F.gelu(self.fc(self.ln_2(x)))))
        return made


class GPT2(nn.Module):
    """Token and place embeddings, two layers, a last norm, and the token embedding again as the output's weight."""

    def __init__(self, width: int = 16, places: int = 6) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(CLASSES, width), nn.Embedding(places, width)
        self.layers = nn.ModuleList(Layer(width, 4, places) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, CLASSES, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.lm_head(self.ln_f(x))[:, -1]
        return y


class LSTM(nn.Module):
    """The last step of two recurrent layers over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(CLASSES, 6), nn.LSTM(6, 8, 2, batch_first=True)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.drop(self.body(self.embed(tokens))[0][:, -1]))
        return y


def _images(channels: int, size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(8, channels, size, size)


def _tokens() -> Tensor:
    return torch.randint(0, CLASSES, (8, 6))


NETWORKS: dict[str, tuple[type[nn.Module], Callable[[], Tensor]]] = {
    "lenet": (LeNet, _images(1, 20)),
    "resnet18": (ResNet18, _images(3, 8)),
    "gpt2": (GPT2, _tokens),
    "lstm": (LSTM, _tokens),
}
"""Name -> the network, and how a batch for it is drawn."""


def learn(module: nn.Module, optimizer: torch.optim.Optimizer, draw: Callable[[], Tensor], steps: int = 3) -> None:
    """A hand-written training loop over random samples of random classes."""
    module.train()
    for _ in range(steps):
        x = draw()
        optimizer.zero_grad()
        F.cross_entropy(module(x), torch.randint(0, CLASSES, (len(x),))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def deviation(module: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> float:
    """How far the module's outputs are from the mean of the parts', relative to these."""
    mean = torch.stack([part.eval()(x) for part in parts]).mean(0)
    return float((module.eval()(x) - mean).abs().max() / mean.abs().max())
