"""The decoder of `scripts.decoder` as a PyTorch module, and a file with its weights."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.decoder import HEAD, SIZES, TOKENS


class Block(nn.Module):
    """Attention and a gated perceptron, each behind a norm."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Of h [N, T, width] the same."""
        x = self.norm(h)
        query, key, value = (f(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        h = h + self.out(seen.transpose(1, 2).flatten(2))
        x = self.second(h)
        result: Tensor = h + self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Decoder(nn.Module):
    """Tokens [N, T] -> scores [N, T, TOKENS], in bfloat16."""

    def __init__(self, size: str) -> None:
        super().__init__()
        layers, width, inner = SIZES[size]
        self.embedding = nn.Embedding(TOKENS, width)
        self.blocks = nn.Sequential(*(Block(width, inner) for _ in range(layers)))
        self.norm, self.scores = nn.RMSNorm(width), nn.Linear(width, TOKENS, bias=False)
        self.to(torch.bfloat16)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next token."""
        scores: Tensor = self.scores(self.norm(self.blocks(self.embedding(tokens))))
        return scores


def empty_file(module: nn.Module, path: Path) -> int:
    """Write a safetensors file for a module on the meta device, all zeros; returns the bytes of its weights.

    The weights are a hole of the file system, which takes no place on the disk.
    """
    header, end = {}, 0
    for name, tensor in module.state_dict().items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end
