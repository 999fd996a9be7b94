"""A small transformer language model, written in PyTorch and exported, and its losses."""

import math
import tempfile
from functools import cache
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

import onnxpart.torch


class Block(nn.Module):
    """Attention, to what comes before alone or to all, and two layers, each behind a norm and a shortcut past it."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map a stream [N, T, width] to the next."""
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=self.causal)
        x = x + self.project(y.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Gpt(nn.Module):
    """Embeddings of characters and places, blocks, a norm and the output."""

    def __init__(self, kinds: int, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(kinds, width), nn.Parameter(torch.randn(length, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, kinds)
        nn.init.normal_(self.token.weight, std=0.1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score the next of each of the characters [N, T]."""
        return self.head(self.norm(self.blocks(self.token(tokens) + self.place)))  # type: ignore[no-any-return]


def entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [N, T, kinds]."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def bits(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the bits per character."""
    return entropy(logits, tokens) / math.log(2)


@cache
def gpt(seed: int, kinds: int, length: int, width: int = 256, heads: int = 8, blocks: int = 2) -> ModelProto:
    """Return the network: tokens ``[N, length]`` to logits ``[N, length, kinds]``, weights from the seed."""
    with torch.random.fork_rng([]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        module, file = Gpt(kinds, length, width, heads, blocks), Path(folder) / "gpt.onnx"
        onnxpart.torch.export(module, torch.zeros(2, length, dtype=torch.int64), file)
        return onnx.load(file)
