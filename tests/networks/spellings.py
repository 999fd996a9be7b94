"""One function in several spellings, as people write it in PyTorch: a network for each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, EACH, CLASSES = 16, 4, 8, 5
PLACES = (2, 6, WIDTH)
ROWS = (2, WIDTH)
MAP = (2, 3, 8, 8)
SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product and sum": lambda z, a: (z.unflatten(-1, (HEADS, EACH)) * a).sum(-1),
    "product with leading axes": lambda z, a: (z.unflatten(-1, (HEADS, EACH)) * a[None, None]).sum(-1),
    "product in front": lambda z, a: (z * a.flatten()).unflatten(-1, (HEADS, EACH)).sum(-1),
    "einsum": lambda z, a: torch.einsum("bnhe,he->bnh", z.unflatten(-1, (HEADS, EACH)), a),
    "matmul": lambda z, a: (z.unflatten(-1, (HEADS, EACH)).unsqueeze(-2) @ a[..., None])[..., 0, 0],
}
"""The sum over each head's channels, weighted: [b, n, h * e] and [h, e] to [b, n, h]."""


class GraphAttention(nn.Module):
    """Scores from both ends of an edge, added as a column and a row, of which some are masked."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.sum, width = SUMS[spelling], HEADS * EACH
        self.project, self.out = nn.Linear(WIDTH, width, bias=False), nn.Linear(width, CLASSES)
        self.source, self.target = (nn.Parameter(torch.randn(HEADS, EACH)) for _ in range(2))
        self.register_buffer("edges", torch.rand(PLACES[1], PLACES[1]) + torch.eye(PLACES[1]) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.project(x)
        ends = [self.sum(z, a).transpose(1, 2) for a in (self.source, self.target)]
        scores = F.leaky_relu(ends[0].unsqueeze(-1) + ends[1].unsqueeze(-2), 0.2).masked_fill(~self.edges, -1e9)
        y = self.weighted(scores) @ z.unflatten(-1, (HEADS, EACH)).transpose(1, 2)
        return self.out(F.elu(y.transpose(1, 2).flatten(2)))

    def weighted(self, scores: Tensor) -> Tensor:
        """The weights of each head [b, h, n, n], by which places are averaged."""
        return scores.softmax(-1)


class Additive(nn.Module):
    """A score of each place and head from a hidden layer, by which places are averaged."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.sum, width = SUMS[spelling], HEADS * EACH
        self.key, self.value, self.out = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width), nn.Linear(width, CLASSES)
        self.score = nn.Parameter(torch.randn(HEADS, EACH))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.sum(self.key(x).relu(), self.score).softmax(1)
        y = (weights.unsqueeze(-1) * self.value(x).unflatten(-1, (HEADS, EACH))).sum(1)
        return self.out(y.flatten(1))


def _bases(spelling: str) -> Callable[[Tensor, Tensor], Tensor]:
    return {
        "einsum": lambda mix, bases: torch.einsum("rb,bio->rio", mix, bases),
        "matmul": lambda mix, bases: (mix @ bases.flatten(1)).unflatten(1, bases.shape[1:]),
        "product and sum": lambda mix, bases: (mix[:, :, None, None] * bases).sum(1),
    }[spelling]


class Bases(nn.Module):
    """Weights of relations mixed from a few bases, between plain layers."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.weights = _bases(spelling)
        self.first, self.last = nn.Linear(WIDTH, 16), nn.Linear(24, CLASSES)
        self.mix, self.bases = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 16, 24) / 4)
        self.register_buffer("relations", torch.rand(3, PLACES[1], PLACES[1]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        w = self.weights(self.mix, self.bases)
        return self.last(sum(self.relations[r] @ (h @ w[r]) for r in range(3)).relu())


class LowRank(nn.Module):
    """A weight with an update of low rank added: as a weight, or as two layers beside it."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.hidden, self.last = nn.Linear(WIDTH, 24), nn.Linear(24, 24), nn.Linear(24, CLASSES)
        self.up, self.down = nn.Parameter(torch.randn(24, 4) / 2), nn.Parameter(torch.randn(4, 24) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        update = torch.einsum("or,ri->oi", self.up, self.down) if self.spelling == "einsum" else self.up @ self.down
        h = F.linear(h, self.hidden.weight + 0.5 * update, self.hidden.bias).relu()
        return self.last(h)


class StateSpace(nn.Module):
    """The core of Mamba-2 within one block: decayed products of queries, keys and values by head."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling, width = spelling, HEADS * EACH
        self.query, self.key, self.value = (nn.Linear(WIDTH, width) for _ in range(3))
        self.decay, self.out = nn.Linear(WIDTH, HEADS), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        c, b, v = (layer(x).unflatten(-1, (HEADS, EACH)) for layer in (self.query, self.key, self.value))
        total = F.logsigmoid(self.decay(x)).cumsum(1).transpose(1, 2)
        mask = torch.ones(PLACES[1], PLACES[1]).tril()
        decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).mul(mask).exp() * mask
        if self.spelling == "one einsum":
            y = torch.einsum("blhn,bshn,bhls,bshp->blhp", c, b, decay, v)
        elif self.spelling == "einsums of two":
            y = torch.einsum("bhls,bshp->blhp", torch.einsum("blhn,bshn->bhls", c, b) * decay, v)
        else:
            c, b, v = (z.transpose(1, 2) for z in (c, b, v))
            y = (c @ b.transpose(2, 3) * decay @ v).transpose(1, 2)
        return self.out(y.flatten(2))


class SplineLayer(nn.Module):
    """A curve on each edge between units (Kolmogorov-Arnold): a basis of bumps and SiLU, some edges masked."""

    def __init__(self, ins: int, outs: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.base, self.scale = (nn.Parameter(torch.randn(ins, outs) / ins) for _ in range(2))
        self.curve = nn.Parameter(torch.randn(ins, outs, 5))
        self.register_buffer("mask", (torch.rand(ins, outs) > 0.2).float())
        self.register_buffer("grid", torch.linspace(-2, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        bumps, x = (-((x[..., None] - self.grid) ** 2)).exp(), F.silu(x)
        if self.spelling == "einsum":
            curve = self.curve * (self.scale * self.mask)[..., None]
            return x @ (self.base * self.mask) + torch.einsum("bik,iok->bo", bumps, curve)
        y = torch.einsum("bik,iok->bio", bumps, self.curve)
        if self.spelling == "products":
            return (self.mask * self.base * x[..., None]).sum(1) + (self.mask[None] * (self.scale * y)).sum(-2)
        return (self.mask[None] * (self.base[None] * x[:, :, None] + self.scale[None] * y)).sum(1)


class Splines(nn.Sequential):
    """Three layers of curves on edges."""

    def __init__(self, spelling: str) -> None:
        sizes = (WIDTH, 16, 16, CLASSES)
        super().__init__(*(SplineLayer(a, b, spelling) for a, b in pairwise(sizes)))


class SharedByGroups(nn.Module):
    """One weight for all groups of channels."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.last = nn.Linear(WIDTH, HEADS * EACH), nn.Linear(HEADS * EACH, CLASSES)
        self.weight = nn.Parameter(torch.randn(EACH, EACH) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        if self.spelling == "linear":
            y = F.linear(h.unflatten(-1, (HEADS, EACH)), self.weight).flatten(-2)
        elif self.spelling == "einsum":
            y = torch.einsum("bnhe,fe->bnhf", h.unflatten(-1, (HEADS, EACH)), self.weight).flatten(-2)
        elif self.spelling == "chunks":
            y = torch.cat([F.linear(chunk, self.weight) for chunk in h.chunk(HEADS, -1)], -1)
        else:
            y = F.conv1d(h.transpose(1, 2), self.weight.repeat(HEADS, 1)[..., None], groups=HEADS).transpose(1, 2)
        return self.last(y.relu())


FOLDS: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int, int], Tensor]]] = {
    "-1": (
        lambda x, g: x.reshape(-1, x.shape[1] // g, *x.shape[2:]),
        lambda x, b, g: x.reshape(-1, x.shape[1] * g, *x.shape[2:]),
    ),
    "sizes": (
        lambda x, g: x.reshape(x.shape[0] * g, x.shape[1] // g, *x.shape[2:]),
        lambda x, b, g: x.reshape(b, x.shape[1] * g, *x.shape[2:]),
    ),
    "flatten": (
        lambda x, g: x.unflatten(1, (g, x.shape[1] // g)).flatten(0, 1),
        lambda x, b, g: x.unflatten(0, (b, g)).flatten(1, 2),
    ),
}
"""Groups of channels folded into the batch axis, [b, g * c, ...] to [b * g, c, ...], and back."""


class OffsetGroups(nn.Module):
    """Deformable attention: keys and values sampled at offsets of each group of channels; heads in the batch axis."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.fold, self.unfold = FOLDS[spelling]
        self.stem, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, CLASSES, 1)
        self.q, self.k, self.v, self.out = (nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(4))
        each = WIDTH // HEADS
        self.offsets = nn.Sequential(
            nn.Conv2d(each, each, 3, 1, 1, groups=each), nn.GELU(), nn.Conv2d(each, 2, 1, bias=False)
        )
        self.register_buffer("places", torch.rand(1, *MAP[2:], 2) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, b = self.q(x), x.shape[0]
        places = self.offsets(self.fold(q, HEADS)).tanh().permute(0, 2, 3, 1) + self.places
        seen = self.unfold(F.grid_sample(self.fold(x, HEADS), places, align_corners=True), b, HEADS)
        q, k, v = (self.fold(z, HEADS).flatten(2) for z in (q, self.k(seen), self.v(seen)))
        y = torch.einsum("bmn,bcn->bcm", torch.einsum("bcm,bcn->bmn", q, k).softmax(2), v)
        return self.head(x + self.out(self.unfold(y, b, HEADS).unflatten(2, MAP[2:])))


class Windows(nn.Module):
    """Attention within windows of 4 x 4 places, which are folded into the batch axis, with a mask for each."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.embed, self.head = nn.Conv2d(3, WIDTH, 1), nn.Linear(WIDTH, CLASSES)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", (torch.rand(4, 16, 16) > 0.5).float() * -100)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.embed(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        b, h, w, c = x.shape
        n = -1 if self.spelling == "-1" else b * (h // 4) * (w // 4)
        y = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5)
        y = y.flatten(3, 4).flatten(0, 2) if self.spelling == "flatten" else y.reshape(n, 16, c)
        qkv = self.qkv(y).reshape(y.shape[0], 16, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        s = qkv[0] @ qkv[1].transpose(-2, -1)
        if self.spelling == "flatten":
            s = (s.unflatten(0, (-1, 4)) + self.mask[None, :, None]).flatten(0, 1)
        else:
            s = (s.view(-1 if n < 0 else b, 4, HEADS, 16, 16) + self.mask[None, :, None]).view(n, HEADS, 16, 16)
        y = self.out((s.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(y.shape))
        y = y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.head((x + y).mean((1, 2)))


class Experts(nn.Module):
    """Two of four experts for each token: those that it goes to, their weights gathered, or all of them."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.embed, self.gate, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, 4), nn.Linear(16, CLASSES)
        self.up, self.down = nn.Parameter(torch.randn(4, 24, 16) / 4), nn.Parameter(torch.randn(4, 16, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        z = x.flatten(0, 1)
        weight, chosen = self.gate(z).softmax(-1).topk(2, -1)
        return self.head(x + getattr(self, self.spelling)(z, weight, chosen).reshape(x.shape))

    def where(self, z: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """The tokens of one expert after the other."""
        y, mask = torch.zeros_like(z), F.one_hot(chosen, 4).permute(2, 1, 0)
        for e in range(4):
            rank, token = torch.where(mask[e] > 0)
            h = F.linear(F.gelu(F.linear(z[token], self.up[e])), self.down[e]) * weight[token, rank, None]
            y = y.index_add(0, token, h)
        return y

    def gather(self, z: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """The weights of each token's experts."""
        h = F.gelu(torch.einsum("tkhc,tc->tkh", self.up[chosen], z))
        return (torch.einsum("tkch,tkh->tkc", self.down[chosen], h) * weight[..., None]).sum(1)

    def tile(self, z: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """Each token that any expert was chosen for, a copy for each expert."""
        all_weights = torch.zeros_like(z[:, :4]).scatter(1, chosen, weight)
        token = torch.nonzero(all_weights.sum(-1) > 0)[:, 0]
        y = z[token].repeat(4, 1).view(4, -1, z.shape[1])
        y = torch.bmm(F.gelu(torch.bmm(y, self.up.transpose(1, 2))), self.down.transpose(1, 2))
        return torch.zeros_like(z).index_add(0, token, (y * all_weights[token].t()[..., None]).sum(0))


NETWORKS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "graph attention": (GraphAttention, PLACES, tuple(SUMS)),
    "additive attention": (Additive, PLACES, tuple(SUMS)),
    "bases": (Bases, PLACES, ("einsum", "matmul", "product and sum")),
    "low rank": (LowRank, ROWS, ("einsum", "matmul")),
    "offset groups": (OffsetGroups, MAP, tuple(FOLDS)),
    "windows": (Windows, MAP, tuple(FOLDS)),
    "experts": (Experts, PLACES, ("where", "gather", "tile")),
    "shared by groups": (SharedByGroups, PLACES, ("linear", "einsum", "chunks", "convolution in groups")),
    "splines": (Splines, ROWS, ("products and sums", "products", "einsum")),
    "state space": (StateSpace, PLACES, ("one einsum", "einsums of two", "matmul")),
}
"""Function -> how a network with it is built, the shape of its input, and its spellings."""
