"""The three ways to train give the same curves: an ONNX file, a loop of one's own in PyTorch, workers of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.torch import export, split_module
from onnxpart.torch.data.loaders import TensorLoader
from tests.networks.command import run

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
EPOCHS, MERGE_AT, SEED, LR, MOMENTUM, BATCH = 6, 3, 7, 0.05, 0.9, 4
TOLERANCE = 1e-5
Curves = list[list[float]]
"""Mean loss in training [epoch] of part 0, part 1, and the whole."""


class LeNet(nn.Module):
    """LeNet's layers, as small as they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
        result: Tensor = self.fc2(self.fc1(x).relu())
        return result


def lenet() -> LeNet:
    """The network with its first weights."""
    torch.manual_seed(0)
    return LeNet()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Images [N, 1, 10, 10] of which a third is brighter, in data.npz of the current folder; 40 to learn."""
    rng, y = np.random.default_rng(0), np.arange(52) % 3
    x = rng.normal(0, 0.3, (52, 1, 10, 10)).astype(np.float32)
    for c in range(3):
        x[y == c, 0, 3 * c : 3 * c + 3] += 2
    samples = {"x": x[:40], "target": y[:40], "test_x": x[40:], "test_target": y[40:]}
    np.savez(tmp_path / "data.npz", **samples)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    return samples


def of_an_onnx_file(module: LeNet, data: dict[str, Any], *options: object) -> Curves:
    export(module, torch.from_numpy(data["x"][:2]), "model.onnx")
    run("fit", "model.onnx", "--data", "npz:data.npz", "--epochs", EPOCHS, "--merge-at", MERGE_AT, "--lr", LR,
        "--optimizer", "sgd", "--momentum", MOMENTUM, "--recipe", "paper",
        "--batch-size", BATCH, "--seed", SEED, *options)  # fmt: skip
    found = json.loads(Path("model_fit/report.json").read_text())
    return [[epoch["train_loss"] for epoch in curve] for curve in (*found["parts"], found["whole"])]


def of_a_loop_of_ones_own(module: LeNet, data: dict[str, Any]) -> Curves:
    loader = TensorLoader((torch.from_numpy(data["x"]),), torch.from_numpy(data["target"]), BATCH, SEED)
    parts, handle = split_module(module, torch.from_numpy(data["x"][:2]), 2)
    optimizers = [sgd(part) for part in parts]
    curves = [train(part, o, loader, range(MERGE_AT)) for part, o in zip(parts, optimizers, strict=True)]
    module.load_state_dict(handle.merge())
    optimizer = sgd(module)
    handle.merge_optimizer(optimizers, optimizer)
    return [*curves, train(module, optimizer, loader, range(MERGE_AT, EPOCHS))]


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, loader: TensorLoader, epochs: Iterable[int]
) -> list[float]:
    curve = []
    for epoch in epochs:
        losses = []
        for (x,), y in loader.epoch(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item() * len(y))
        curve.append(sum(losses) / len(loader.target))
    return curve


def assert_equal(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE)


@pytest.fixture
def own(data: dict[str, Any]) -> Curves:
    """The curves of a loop of one's own."""
    curves = of_a_loop_of_ones_own(lenet(), data)
    assert [len(curve) for curve in curves] == [MERGE_AT, MERGE_AT, EPOCHS - MERGE_AT]
    assert curves[2][-1] < curves[0][0] / 2
    with pytest.raises(AssertionError):
        assert_equal([curves[0]], [curves[1]])
    return curves


@pytest.mark.parametrize("engine", ["series", "fused", "ray"])
def test_an_onnx_file_and_a_loop_of_ones_own_agree(data: dict[str, Any], own: Curves, engine: str) -> None:
    """With the engine ray, parts are trained by two local workers."""
    assert_equal(of_an_onnx_file(lenet(), data, "--engine", engine), own)
