"""What a graph can't hold of a module's gradients is an error that names the parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxpart import OnnxpartError
from onnxpart.torch import export, split_module


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return g


def without_gradient(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(h: Tensor) -> Tensor:
        with torch.no_grad():
            return f(h)

    return run


class Net(nn.Module):
    """Two layers, `between` which something happens."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(5, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class InTraining(Net):
    """A gradient that is stopped in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h.detach() if self.training else h)


class Block(nn.Module):
    """A perceptron behind a norm, added to what it reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda h: torch.tanh(h).detach(),
    "no_grad": without_gradient(torch.tanh),
    "straight through": lambda h: h + (h.round() - h).detach(),
    "of one's own": Steep.apply,
    "half of the way": lambda h: torch.tanh(h) + 0.5 * h.detach(),
}
HELD: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "rounded": lambda h: h + h.round(),
    "dropout": lambda h: F.dropout(h, 0.5),
    "max": lambda h: h * F.relu(h).amax(1, keepdim=True),
    "softmax": lambda h: F.softmax(h, 1),
}


@pytest.mark.parametrize("name", [*LOST, "in training", "half of the way, bfloat16"])
def test_a_lost_gradient_is_an_error(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, _, half = name.partition(", ")
    module = Net(LOST[name]) if name in LOST else InTraining(torch.tanh)
    dtype = torch.bfloat16 if half else torch.float32
    module, x = module.to(dtype), torch.randn(4, 5).to(dtype)
    with pytest.raises(OnnxpartError, match=r"'first\.(weight|bias)'.*detach\(\)"):
        export(module, x, tmp_path / "model.onnx")
    with pytest.raises(OnnxpartError, match=r"'first\.(weight|bias)'.*detach\(\)"):
        split_module(module, x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", HELD)
def test_other_modules_are_exported(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Net(HELD[name])
    mode, before = module.training, {name: p.clone() for name, p in module.named_parameters()}
    export(module, torch.randn(4, 5), tmp_path / "model.onnx")
    assert module.training == mode
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in module.named_parameters())


def test_rounding_in_a_deep_network_of_bfloat16_is_no_lost_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = (Block(64) for _ in range(24))
    module = nn.Sequential(nn.Linear(8, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 10)).to(torch.bfloat16)
    export(module, torch.randn(4, 8, dtype=torch.bfloat16), tmp_path / "model.onnx", exporter="torchscript")
