"""Layers of torch's own kinds in the places of their tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from onnxpart.torch import import_onnx, split_module

torch.set_num_threads(1)  # several threads are slow where other work shares the cores


class Images(nn.Module):
    """A layer of each kind for images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 8, 3, 2, 1, groups=2), nn.BatchNorm2d(8, 1e-3, 0.3)
        self.up, self.gn = nn.ConvTranspose2d(8, 12, 3, 2, 1, 1), nn.GroupNorm(4, 12)
        self.line, self.drop, self.head = nn.Conv1d(12, 8, 3), nn.Dropout(0.25), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.gn(self.up(x))).mean(3)
        return self.head(self.drop(F.relu(self.line(x)).mean(2)))


class Norms(nn.Module):
    """Norms and activations whose parameters are for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inst = nn.Conv2d(2, 8, 3), nn.InstanceNorm2d(8, 1e-3, affine=True)
        self.slopes, self.line, self.one = nn.PReLU(8), nn.InstanceNorm1d(8, affine=True), nn.PReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.inst(self.conv(x)))
        return self.head(self.one(self.line(x.mean(3)).mean(2)))


class Roots(nn.Module):
    """A norm that only the newer exporter knows, and one of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.root, self.b = nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 8)
        self.rows, self.group, self.head = nn.RMSNorm((6, 8), 1e-3), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rows(F.relu(self.b(self.root(F.relu(self.a(x))))))
        return self.head(self.group(x.mean(1)))


class Words(nn.Module):
    """An embedding that is the last weight, too, and a layer that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.twice = nn.Embedding(7, 8), nn.LayerNorm(8, 1e-3), nn.Linear(8, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


OLDER = ("roots", "torchscript")
"""What this exporter can't write."""
KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, type[nn.Module]]]] = {
    "images": (
        Images,
        torch.randn(4, 2, 8, 8),
        {
            "conv": nn.Conv2d,
            "bn": nn.BatchNorm2d,
            "up": nn.ConvTranspose2d,
            "gn": nn.GroupNorm,
            "line": nn.Conv1d,
            "head": nn.Linear,
        },
    ),
    "norms": (
        Norms,
        torch.randn(4, 2, 8, 8),
        {
            "conv": nn.Conv2d,
            "inst": nn.InstanceNorm2d,
            "slopes": nn.PReLU,
            "line": nn.InstanceNorm1d,
            "one": nn.PReLU,
            "head": nn.Linear,
        },
    ),
    "roots": (
        Roots,
        torch.randn(4, 6, 4),
        {
            "a": nn.Linear,
            "root": nn.RMSNorm,
            "b": nn.Linear,
            "rows": nn.RMSNorm,
            "group": nn.GroupNorm,
            "head": nn.Linear,
        },
    ),
    "words": (
        Words,
        torch.randint(0, 7, (4, 6)),
        {"embed": nn.Embedding, "norm": nn.LayerNorm, "twice": nn.Linear},
    ),
}


@pytest.mark.parametrize(
    ("name", "exporter"),
    [(name, exporter) for name in KINDS for exporter in ("torchscript", "dynamo") if (name, exporter) != OLDER],
)
def test_layers_are_of_the_kinds_of_the_module(name: str, exporter: str) -> None:
    """They are called, with the settings of the module's own, and compute with what they hold."""
    build, x, kinds = KINDS[name]
    torch.manual_seed(0)
    module = build()
    (part,), _ = split_module(module, x, 1, exporter=exporter)
    called = list[str]()
    for path, kind in kinds.items():
        layer = part.get_submodule(path)
        assert type(layer) is kind
        layer.register_forward_hook(lambda *_, path=path: called.append(path))
    part.eval(), module.eval()
    torch.testing.assert_close(part(x), module(x))
    assert called == [p for p in kinds for _ in range(2 if p == "twice" else 1)]
    assert [k for k, _ in part.named_parameters()] == [k for k, _ in module.named_parameters()]
    with torch.no_grad():
        for own, other in zip(module.parameters(), part.parameters(), strict=True):
            other.copy_(own.mul_(1.5))
    torch.testing.assert_close(part(x), module(x))


def test_batch_norms_learn_their_statistics_as_the_module_does() -> None:
    torch.manual_seed(0)
    module, x = Images(), torch.randn(4, 2, 8, 8)
    (part,), _ = split_module(module, x, 1)
    module(x), part(x)
    held = dict(part.named_buffers())
    for key in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(held[key], module.get_buffer(key))
    assert [m.p for m in part.modules() if isinstance(m, nn.Dropout)] == [0.25]


class Shared(nn.Module):
    """Weights that are read otherwise than a layer reads its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(F.linear(x, self.b.weight.square(), self.b.bias))
        return self.head(F.relu(F.linear(x, self.c.weight, self.b.bias)))


def test_other_uses_of_a_weight_stay_in_the_graph() -> None:
    module, x = Shared(), torch.randn(4, 4)
    (part,), _ = split_module(module, x, 1)
    torch.testing.assert_close(part(x), module(x))
    kinds = {path: type(child).__name__ for path, child in part.named_children()}
    assert kinds == {"a": "Linear", "b": "Container", "c": "Container", "head": "Linear"}


def test_a_group_norm_of_its_own_operator() -> None:
    nodes = [helper.make_node("GroupNormalization", ["x", "n.weight", "n.bias"], ["y"], num_groups=2, epsilon=1e-3)]
    weights = [
        numpy_helper.from_array(np.full(4, i, np.float32), name) for i, name in enumerate(["n.bias", "n.weight"])
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 6]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], weights)
    module = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    x = torch.randn(2, 4, 6)
    assert repr(module.n).startswith("GroupNorm(2, 4, eps=0.001")
    torch.testing.assert_close(module(x), F.group_norm(x, 2, eps=1e-3))
