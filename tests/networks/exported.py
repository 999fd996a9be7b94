"""Plain PyTorch networks as people write them, exported by both of torch's exporters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from functools import cache

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import attentions

IMAGE = (2, 3, 16, 16)
FEATURES = (2, 6)


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.skip = nn.Identity() if i == o else nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, m: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(c, m, 1), nn.BatchNorm2d(m), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(m, m, 3, 1, 1, groups=m), nn.BatchNorm2d(m), nn.SiLU())
        self.reduce, self.excite = nn.Conv2d(m, 4, 1), nn.Conv2d(4, m, 1)
        self.project = nn.Conv2d(m, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


class ShuffleUnit(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.body = nn.Sequential(
            nn.Conv2d(h, h, 1), nn.ReLU(), nn.Conv2d(h, h, 3, 1, 1, groups=h), nn.BatchNorm2d(h), nn.Conv2d(h, h, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, self.body(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up, self.c = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, 1, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        u = self.up(F.relu(self.b(a)))
        return self.out(F.relu(self.c(torch.cat([u, a], 1))))


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.shuffle, self.c, self.out = nn.PixelShuffle(2), nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.a(x)), scale_factor=2, mode="bilinear", align_corners=False)
        y = F.relu(self.c(self.shuffle(F.relu(self.b(y)))))
        return self.out(F.interpolate(y, size=(16, 16)))


class Norms(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.group, self.instance = nn.GroupNorm(groups, 16), nn.InstanceNorm2d(16, affine=True)
        self.slope, self.head = nn.PReLU(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.instance(self.b(F.leaky_relu(self.group(self.a(x)))))
        return self.head(self.slope(y).mean((2, 3)))


class ConvNext(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, c, 4, 4), nn.Conv2d(c, c, 7, 1, 3, groups=c)
        self.norm, self.up, self.down = nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale, self.last, self.head = nn.Parameter(torch.rand(c)), nn.LayerNorm(c), nn.Linear(c, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.scale
        return self.head(self.last((x + y.permute(0, 3, 1, 2)).mean((2, 3))))


class Attention(nn.Module):
    def __init__(self, heads: int = 4, c: int = 16) -> None:
        super().__init__()
        self.heads, self.embed = heads, nn.Linear(6, c)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, 5, c))
        self.norm1, self.qkv, self.out = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.norm2, self.up, self.down = nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.norm3, self.head = nn.LayerNorm(c), nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(b, t, c))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])


def _classifier(*body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (
        lambda: _classifier(
            nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), BasicBlock(8, 8),
            BasicBlock(8, 16, 2), width=16,
        ),
        IMAGE,
    ),
    "vgg": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
        ),
        IMAGE,
    ),
    "efficientnet": (lambda: _classifier(nn.Conv2d(3, 8, 3, 2, 1), SqueezeExcite(8, 16), width=8), IMAGE),
    "shufflenet_v2": (
        lambda: _classifier(nn.Conv2d(3, 16, 3, 2, 1), ShuffleUnit(16), ShuffleUnit(16), width=16), IMAGE,
    ),
    "grouped": (
        lambda: _classifier(
            nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1, groups=4), nn.ELU(),
            nn.ConvTranspose2d(32, 16, 2, 2, groups=2), nn.Hardswish(), width=16,
        ),
        IMAGE,
    ),
    "unet": (UNet, IMAGE),
    "upscale": (Upscale, IMAGE),
    "group_norm": (lambda: Norms(4), IMAGE),
    "one_group_norm": (lambda: Norms(1), IMAGE),
    "convnext": (ConvNext, IMAGE),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 20), nn.GELU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)), FEATURES,
    ),
    "mlp_layer_norm": (
        lambda: nn.Sequential(
            nn.Linear(6, 20), nn.LayerNorm(20), nn.SiLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1),
        ),
        FEATURES,
    ),
    "attention": (Attention, (2, 4, 6)),
}  # fmt: skip


def export(name: str, exporter: str, opset: int, dynamic: bool = True) -> onnx.ModelProto:
    """A network of `NETWORKS` as ONNX, with random batch-norm statistics; `exporter`: torchscript or dynamo."""
    return onnx.load_from_string(_content(name, exporter, opset, dynamic))


@cache
def _content(name: str, exporter: str, opset: int, dynamic: bool) -> bytes:
    """The network as a file, which takes seconds to export."""
    torch.manual_seed(0)
    build, shape = {**NETWORKS, **attentions.NETWORKS}[name]
    network = build().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.randint(0, 11, shape) if name in attentions.TOKEN_NUMBERS else torch.randn(shape)
    return convert(network, (x,), exporter, opset, dynamic).SerializeToString()


def convert(
    network: nn.Module, inputs: tuple[Tensor, ...], exporter: str, opset: int, dynamic: bool
) -> onnx.ModelProto:
    """A network as ONNX; `dynamic`: the first axis of each input is symbolic."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = ["x", "z", "u"][: len(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters deprecate one another
        if exporter == "torchscript":
            file = io.BytesIO()
            axes = {name: {0: "N"} for name in (*names, "y")} if dynamic else None
            torch.onnx.export(
                network, inputs, file, opset_version=opset, dynamo=False, input_names=names, output_names=["y"],
                dynamic_axes=axes,
            )  # fmt: skip
            return onnx.load_from_string(file.getvalue())
        shapes = ({0: torch.export.Dim("N")},) * len(inputs) if dynamic else None
        program = torch.onnx.export(
            network, inputs, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
        )
        assert program is not None
        proto = program.model_proto
        assert isinstance(proto, onnx.ModelProto)
        return proto
