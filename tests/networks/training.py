"""What the tests of training share: a small network, data that it can learn, and ways for a run to end early."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from onnx import ModelProto
from torch import nn

import onnxpart
from models.builder import GraphBuilder
from onnxpart.torch import import_onnx
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training.train import Result


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def stripes(samples: int = 60, start: int = 0, shape: Sequence[int] = (1, 8, 8)) -> TensorLoader:
    """Images of class c have a bright row c, modulo their height."""
    generator = torch.Generator().manual_seed(start)
    y = torch.arange(start, start + samples) % 10
    x = torch.rand(samples, *shape, generator=generator) * 0.1
    x[torch.arange(samples), ..., y % shape[-2], :] = 1.0
    return TensorLoader((x,), y, batch_size=10, seed=5)


def small(dropout: float = 0.0, norm: bool = False) -> ModelProto:
    """A network with what matters to engines: a convolution, a batch norm, dropout on input and hidden units."""
    g = GraphBuilder("small", 0)
    x = g.input("x", "N", 1, 8, 8)
    if dropout:
        x = g.node("Dropout", "drop0", x, g.values("ratio0", center=dropout, spread=0.0))
    h = g.conv("conv", x, (1, 6), kernel=3)
    if norm:
        statistics = [g.values(f"norm.{name}", 6, center=center) for name, center in (("mean", 0.0), ("var", 1.0))]
        scale, bias = g.values("norm.weight", 6, center=1.0), g.values("norm.bias", 6)
        h = g.node("BatchNormalization", "norm", h, scale, bias, *statistics)
    h = g.node("Flatten", "flatten", g.max_pool("pool", g.relu("relu", h), kernel=2, stride=2), axis=1)
    h = g.relu("relu1", g.linear("hidden", h, (6 * 16, 18)))
    if dropout:
        h = g.node("Dropout", "drop1", h, g.values("ratio1", center=dropout, spread=0.0))
    logits = g.linear("logits", h, (18, 10))
    return g.build({logits: ("N", 10)})


def parts(model: ModelProto, k: int = 2) -> list[nn.Module]:
    return [import_onnx(part) for part in onnxpart.split(model, k).parts]


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Failing:
    """A loader that does something before a batch of an epoch."""

    inner: TensorLoader
    at: tuple[int, int]
    what: Callable[[], object]

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for i, batch in enumerate(self.inner.epoch(number, start), start):
            if (number, i) == self.at:
                self.what()
            yield batch


def check_equal(one: list[Result], other: list[Result], parts: list[nn.Module], others: list[nn.Module]) -> None:
    """Bit for bit."""
    for mine, theirs in zip(one, other, strict=True):
        for epoch, expected in zip(mine.curve, theirs.curve, strict=True):
            assert replace(epoch, seconds=0) == replace(expected, seconds=0)
        assert mine.state.step == theirs.state.step
        for name, slots in mine.state.slots.items():
            for slot, array in slots.items():
                np.testing.assert_array_equal(array, theirs.state.slots[name][slot])
    for part, same in zip(parts, others, strict=True):
        for tensor, expected in zip(part.state_dict().values(), same.state_dict().values(), strict=True):
            assert torch.equal(tensor, expected)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
