"""Times training in PyTorch: an imported module against the native one, all parts against the whole.

All on one thread of the CPU; whatever is compared takes turns, so that other work on the machine hits both alike.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart.torch
from scripts.bench_engines import CIFAR10, LENET, operators, speeds
from scripts.machine import machine
from scripts.paper.vision import resnet


class LeNet(nn.Module):
    """The network of the paper's section 3.1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, 1, 28, 28]."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Two layers of an encoder as PyTorch has them, over an embedding, with dropout."""

    def __init__(self, width: int = 128, heads: int = 4, tokens: int = 1000) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score the next token of each of the tokens [N, T]."""
        return self.head(self.layers(self.embed(tokens)))  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "LeNet": (LeNet, torch.randn(64, 1, 28, 28)),
    "ResNet-18": (lambda: resnet(18), torch.randn(4, 3, 96, 96)),
    "transformer": (Transformer, torch.randint(0, 1000, (8, 64))),
}


@dataclass(frozen=True)
class Comparison:
    """Seconds of a step of two modules side by side, and the median of the ratios of neighbouring steps."""

    name: str
    native: float
    imported: float
    ratio: float


def imported_over_native(steps: int) -> list[Comparison]:
    """Forward and backward in training mode, imported and native module taking turns."""
    result = []
    for name, (build, x) in NETWORKS.items():
        torch.manual_seed(0)
        native = build()
        with tempfile.TemporaryDirectory() as folder:
            onnxpart.torch.export(native, x, Path(folder) / "model.onnx")
            imported = onnxpart.torch.import_onnx(Path(folder) / "model.onnx")
        result.append(compare(name, native, imported, x, steps))
    return result


def compare(name: str, native: nn.Module, imported: nn.Module, x: Tensor, steps: int) -> Comparison:
    """Time both modules, which take turns in going first; a first turn isn't counted."""
    seconds: list[tuple[float, float]] = []
    for turn in range(steps + 1):
        order = (native, imported) if turn % 2 else (imported, native)
        taken = {id(module): _step(module, x) for module in order}
        seconds.append((taken[id(native)], taken[id(imported)]))
    pairs = seconds[1:]
    ratio = median(ours / theirs for theirs, ours in pairs)
    return Comparison(name, median(pair[0] for pair in pairs), median(pair[1] for pair in pairs), ratio)


def _step(module: nn.Module, x: Tensor) -> float:
    module.zero_grad()
    start = time.perf_counter()
    module(x).square().mean().backward()
    return time.perf_counter() - start


def importing(steps: int) -> Table:
    """The table of imported over native times."""
    table = Table("network", "native, ms", "imported, ms", "imported / native", title="forward and backward")
    for row in imported_over_native(steps):
        table.add_row(row.name, f"{row.native * 1e3:.1f}", f"{row.imported * 1e3:.1f}", f"{row.ratio:.3f}")
    return table


def main(
    steps: Annotated[int, typer.Option(help="Steps of each imported network that count.", min=1)] = 60,
    rounds: Annotated[int, typer.Option(help="Steps of each engine that count.", min=1)] = 15,
) -> None:
    """Print all tables, and what they were taken on."""
    torch.set_num_threads(1)
    console = Console(width=max(Console().width, 100))
    console.print(importing(steps))
    console.print(speeds(rounds))
    for network, k in ((LENET, 2), (CIFAR10, 2), (CIFAR10, 4)):
        console.print(operators(network, k, rounds))
    console.print(", ".join(f"{key} {value}" for key, value in machine("onnxpart", "onnx", "torch").items()))


if __name__ == "__main__":
    typer.run(main)
