"""Attention and gates in the forms in which PyTorch models write them, each in a small network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = (2, 6, 5)
MAP = (2, 3, 8, 8)


class Block(nn.Module):
    """A pre-norm residual block over tokens with `mixer` in it, between an embedding and a head."""

    def __init__(self, mixer: Callable[[int], nn.Module], c: int = 16) -> None:
        super().__init__()
        self.embed, self.norm, self.mixer = nn.Linear(5, c), nn.LayerNorm(c), mixer(c)
        self.up, self.down, self.head = nn.Linear(c, 2 * c), nn.Linear(2 * c, c), nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.mixer(self.norm(x))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def heads_of(x: Tensor, heads: int) -> Tensor:
    b, t, c = x.shape
    return x.view(b, t, heads, c // heads).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    b, _, t, _ = x.shape
    return x.transpose(1, 2).reshape(b, t, -1)


class Separate(nn.Module):
    """Separate q, k, v; options: grouped-query heads, q/k normalisation, talking heads, rotation, causal mask."""

    def __init__(
        self, c: int, heads: int = 4, kv: int = 0, qk_norm: str = "", talking: bool = False, rotary: bool = False,
        causal: bool = False, bias: bool = False, sdpa: bool = False, per_head: bool = False, scale: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.kv, d = heads, kv or heads, c // heads
        self.q, self.k, self.v = nn.Linear(c, c), nn.Linear(c, self.kv * d), nn.Linear(c, self.kv * d)
        self.out = nn.Linear(c, c)
        self.qk_norm, self.talking, self.rotary, self.causal, self.sdpa = qk_norm, talking, rotary, causal, sdpa
        if qk_norm == "head":
            self.nq, self.nk = nn.LayerNorm(d), nn.LayerNorm(d)
        if qk_norm == "all":
            self.nq, self.nk = nn.LayerNorm(c), nn.LayerNorm(self.kv * d)
        if qk_norm == "rms":
            self.gq, self.gk = nn.Parameter(torch.rand(d) + 0.5), nn.Parameter(torch.rand(d) + 0.5)
        if talking:
            self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.bias = nn.Parameter(torch.randn(heads, 6, 6)) if bias else None
        self.table = nn.Parameter(torch.randn(11, heads)) if bias else None
        i = torch.arange(6)
        self.register_buffer("index", i[:, None] - i[None, :] + 5)
        self.register_buffer("cos", torch.cos(i[:, None] * torch.arange(1, d + 1)[None] / d))
        self.register_buffer("sin", torch.sin(i[:, None] * torch.arange(1, d + 1)[None] / d))
        self.inner = nn.Linear(d, d) if per_head else None
        self.scale = nn.Parameter(torch.rand(heads, 1, 1)) if scale else None

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.qk_norm == "all":
            q, k = self.nq(q), self.nk(k)
        q, k, v = heads_of(q, self.heads), heads_of(k, self.kv), heads_of(v, self.kv)
        if self.qk_norm == "head":
            q, k = self.nq(q), self.nk(k)
        if self.qk_norm == "rms":
            q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gq
            k = k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gk
        if self.qk_norm == "l2":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        if self.inner is not None:
            v = self.inner(v)
        if self.kv != self.heads:
            n = self.heads // self.kv
            b, h, t, d = k.shape
            k = k[:, :, None].expand(b, h, n, t, d).reshape(b, h * n, t, d)
            v = v[:, :, None].expand(b, h, n, t, d).reshape(b, h * n, t, d)
        if self.sdpa:
            return self.out(joined(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)))
        s = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if self.scale is not None:
            s = s * self.scale
        if self.bias is not None and self.table is not None:
            s = s + self.bias + self.table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1)
        if self.causal:
            s = s.masked_fill(torch.triu(torch.ones(6, 6, dtype=torch.bool), 1), float("-inf"))
        if self.talking:
            s = self.before(s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        s = s.softmax(-1)
        if self.talking:
            s = self.after(s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out(joined(s @ v))


class Fused(nn.Module):
    """One projection for q, k and v, cut apart in the way named by `form`."""

    def __init__(self, c: int, form: str, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.form = heads, form
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        h, d = self.heads, c // self.heads
        y = self.qkv(x)
        if self.form == "chunk":
            q, k, v = (heads_of(z, h) for z in y.chunk(3, -1))
        elif self.form == "slice":
            q, k, v = (heads_of(y[..., i * c : (i + 1) * c], h) for i in range(3))
        elif self.form == "index":
            z = y.reshape(b, t, 3, h, d).permute(2, 0, 3, 1, 4)
            q, k, v = z[0], z[1], z[2]
        elif self.form == "per_head":
            q, k, v = y.view(b, t, h, 3 * d).permute(0, 2, 1, 3).chunk(3, -1)
        elif self.form == "inner":
            q, k, v = (z.squeeze(3).transpose(1, 2) for z in y.view(b, t, h, 3, d).split(1, 3))
        elif self.form == "flat":
            z = y.view(b, t, h, 3 * d)
            q, k, v = z[..., :d].transpose(1, 2), z[..., d : 2 * d].transpose(1, 2), z[..., 2 * d :].transpose(1, 2)
        else:
            q, k, v = y.reshape(b, t, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)
        if self.form == "einsum":
            s = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            return self.out(torch.einsum("bhij,bhjd->bihd", s, v).reshape(b, t, c))
        if self.form == "cross_covariance":
            q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
            s = (q.transpose(-2, -1) @ k * self.temperature).softmax(-1)
            return self.out((v @ s.transpose(-2, -1)).transpose(1, 2).reshape(b, t, c))
        if self.form == "linear":
            q, k = q.softmax(-1), k.softmax(-2)
            return self.out(joined(q @ (k.transpose(-2, -1) @ v)))
        if self.form == "relu_linear":
            q, k = F.relu(q), F.relu(k)
            v1 = F.pad(v, (0, 1), value=1.0)
            z = q @ (k.transpose(-2, -1) @ v1)
            return self.out(joined(z[..., :-1] / (z[..., -1:] + 1e-6)))
        s = (q * d**-0.5) @ k.transpose(-2, -1)
        return self.out(joined(s.softmax(-1) @ v))


class Gate(nn.Module):
    """Units that scale one another: gated and mixed feed-forward layers."""

    def __init__(self, c: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b, self.out = nn.Linear(c, 32), nn.Linear(c, 32), nn.Linear(32, c)
        self.both = nn.Linear(c, 64)
        self.one, self.places, self.film = nn.Linear(c, 1), nn.Linear(6, 6), nn.Linear(c, 64)
        self.router, self.experts = nn.Linear(c, 4), nn.ModuleList([nn.Linear(c, c) for _ in range(4)])
        self.norm, self.weights = nn.LayerNorm(32), nn.Parameter(torch.randn(4, c, 32))
        self.back = nn.Parameter(torch.randn(4, 32, c))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "swiglu":
            return self.out(F.silu(self.a(x)) * self.b(x))
        if self.form == "glu":
            return self.out(F.glu(self.both(x)))
        if self.form == "geglu":
            u, v = self.both(x).chunk(2, -1)
            return self.out(F.gelu(u) * v)
        if self.form == "one":
            return self.out(self.a(x) * torch.sigmoid(self.one(x)))
        if self.form == "spatial":  # gMLP
            u, v = self.both(x).chunk(2, -1)
            return self.out(u * self.places(self.norm(v).transpose(1, 2)).transpose(1, 2))
        if self.form == "film":
            scale, shift = self.film(x.mean(1, keepdim=True)).chunk(2, -1)
            return self.out(F.relu(self.a(x) * (1 + scale) + shift))
        if self.form == "experts":
            p = self.router(x).softmax(-1)
            return sum(p[..., i : i + 1] * e(x) for i, e in enumerate(self.experts))
        if self.form == "batched_experts":
            p = self.router(x).softmax(-1)
            y = torch.einsum("btc,ecd->betd", x, self.weights)
            y = torch.einsum("betd,edc->betc", F.relu(y), self.back)
            return torch.einsum("betc,bte->btc", y, p)
        raise ValueError(self.form)


class Images(nn.Module):
    """Couplings between the channels of feature maps."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.wide, self.cheap = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.mask, self.squeeze, self.excite = nn.Conv2d(2, 1, 3, 1, 1), nn.Linear(16, 8), nn.Linear(8, 16)
        self.two, self.head = nn.Linear(8, 32), nn.Linear(16, 5)
        self.gamma = nn.Parameter(torch.rand(1, 16, 1, 1))
        self.norm = nn.GroupNorm(1, 16)
        self.line = nn.Conv1d(1, 1, 3, 1, 1)

    def body(self, x: Tensor) -> Tensor:
        if self.form == "cbam":
            x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3)))))[:, :, None, None])
            pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * torch.sigmoid(self.mask(pooled))
        if self.form == "selective":
            u, v = self.b(x), self.cheap(x)
            z = self.two(F.relu(self.squeeze((u + v).mean((2, 3))))).view(-1, 2, 16).softmax(1)
            return u * z[:, 0, :, None, None] + v * z[:, 1, :, None, None]
        if self.form == "stacked":
            u, v = self.b(x), self.cheap(x)
            y = torch.stack([u, v], 1)
            z = self.two(F.relu(self.squeeze(y.sum(1).mean((2, 3))))).view(-1, 2, 16, 1, 1).softmax(1)
            return (y * z).sum(1)
        if self.form == "ghost":
            return self.wide(torch.cat([x, self.cheap(x)], 1))
        if self.form == "twice":
            return self.wide(torch.cat([x, x], 1))
        if self.form == "eca":
            z = self.line(x.mean((2, 3))[:, None])[:, 0]
            return x * torch.sigmoid(z)[:, :, None, None]
        if self.form == "response":
            return x / (1 + F.avg_pool2d(x.pow(2), 3, 1, 1))
        if self.form == "nonlocal":
            b, c, h, w = x.shape
            y = self.b(x).flatten(2)
            s = (y.transpose(1, 2) @ x.flatten(2)).softmax(-1)
            return x + (y @ s.transpose(1, 2)).view(b, c, h, w) * self.gamma
        if self.form == "standardised":
            w = self.b.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
            return F.conv2d(x, w, self.b.bias, padding=1)
        if self.form == "grn":
            g = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x * (g / (g.mean(1, keepdim=True) + 1e-6)) * self.gamma + x
        if self.form == "unshuffle":
            return F.pixel_shuffle(F.pixel_unshuffle(self.b(x), 2), 2)
        raise ValueError(self.form)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(x + self.body(x))).mean((2, 3)))


class Windows(nn.Module):
    """Swin's: windows of a rolled map, with a mask and a relative position bias."""

    def __init__(self, c: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, c, 1), nn.LayerNorm(c)
        self.heads, self.qkv, self.out = heads, nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.table, self.head = nn.Parameter(torch.randn(49, heads)), nn.Linear(c, 5)
        i = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        r = (i[:, :, None] - i[:, None]).permute(1, 2, 0) + 3
        self.register_buffer("index", (r[..., 0] * 7 + r[..., 1]).view(-1))
        self.register_buffer("mask", (torch.rand(4, 16, 16) > 0.5).float() * -100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-2, -2), (1, 2))
        y = y.view(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 16, c)
        q, k, v = self.qkv(y).reshape(b * 4, 16, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        s = q @ k.transpose(-2, -1) + self.table[self.index].view(16, 16, -1).permute(2, 0, 1)[None]
        s = (s.view(b, 4, self.heads, 16, 16) + self.mask[None, :, None]).view(-1, self.heads, 16, 16)
        y = self.out((s.softmax(-1) @ v).transpose(1, 2).reshape(b * 4, 16, c))
        y = y.view(b, 2, 2, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.head((x + torch.roll(y, (2, 2), (1, 2))).mean((1, 2)))


class Language(nn.Module):
    """A token embedding that is also the output matrix."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(11, c), nn.Linear(c, c), nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return F.linear(self.norm(h + F.gelu(self.block(h))), self.embed.weight)


class Towers(nn.Module):
    """Two towers (with shared weights: siamese) whose output is a dot product; FM and DLRM interactions."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16)), nn.Linear(5, 16)
        self.dense, self.head = nn.Linear(16, 4), nn.Linear(36, 3)
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "dot":
            return (self.a(x[:, 0]) * self.mix(F.relu(self.b(x[:, 1])))).sum(-1, keepdim=True)
        if self.form == "siamese":
            u, v = self.a(x[:, 0]), self.a(x[:, 1])
            return (F.normalize(u, dim=-1) * F.normalize(v, dim=-1)).sum(-1)
        if self.form == "matrix":
            return self.a(x[:, 0]) @ self.b(x[:, 1]).transpose(0, 1)
        e = self.a(x)
        if self.form == "fm":
            return 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1)).sum(1, keepdim=True)
        z = e @ e.transpose(1, 2)  # DLRM
        return self.head(z.flatten(1))


class Graph(nn.Module):
    """A graph convolution with a dense adjacency, given as an input beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        adjacency = (x @ x.transpose(1, 2)).softmax(-1)
        return self.head(F.relu(adjacency @ self.b(F.relu(adjacency @ self.a(x)))).mean(1))


def _separate(**options: object) -> Callable[[], nn.Module]:
    return lambda: Block(lambda c: Separate(c, **options))  # type: ignore[arg-type]


def _fused(form: str) -> Callable[[], nn.Module]:
    return lambda: Block(lambda c: Fused(c, form))


def _gate(form: str) -> Callable[[], nn.Module]:
    return lambda: Block(lambda c: Gate(c, form))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "separate": (_separate(), TOKENS),
    "causal": (_separate(causal=True), TOKENS),
    "sdpa": (_separate(sdpa=True, causal=True), TOKENS),
    "grouped_query": (_separate(kv=2, rotary=True), TOKENS),
    "multi_query": (_separate(kv=1), TOKENS),
    "one_head": (_separate(heads=1), TOKENS),
    "rotary": (_separate(rotary=True), TOKENS),
    "position_bias": (_separate(bias=True), TOKENS),
    "head_scale": (_separate(scale=True), TOKENS),
    "talking_heads": (_separate(talking=True), TOKENS),
    "norm_per_head": (_separate(qk_norm="head"), TOKENS),
    "norm_all_heads": (_separate(qk_norm="all"), TOKENS),
    "rms_per_head": (_separate(qk_norm="rms"), TOKENS),
    "l2_per_head": (_separate(qk_norm="l2"), TOKENS),
    "shared_per_head": (_separate(per_head=True), TOKENS),
    **{
        f"fused_{form}": (_fused(form), TOKENS)
        for form in (
            "chunk", "slice", "index", "per_head", "inner", "flat", "unbind", "einsum", "cross_covariance", "linear",
            "relu_linear",
        )
    },
    **{
        f"gate_{form}": (_gate(form), TOKENS)
        for form in ("swiglu", "glu", "geglu", "one", "spatial", "film", "experts", "batched_experts")
    },
    **{
        f"maps_{form}": ((lambda form=form: Images(form)), MAP)
        for form in (
            "cbam", "selective", "stacked", "ghost", "twice", "eca", "response", "nonlocal", "standardised", "grn",
            "unshuffle",
        )
    },
    "windows": (Windows, MAP),
    "tied_embedding": (Language, (2, 6)),
    **{
        f"towers_{form}": ((lambda form=form: Towers(form)), TOKENS)
        for form in ("dot", "siamese", "matrix", "fm", "dlrm")
    },
    "graph": (Graph, TOKENS),
}  # fmt: skip

TOKEN_NUMBERS = ("tied_embedding",)
"""Networks that take whole numbers below 11."""
