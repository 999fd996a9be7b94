"""Two ranks, this process and another one, each of which keeps a shard of a part."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from models.builder import GraphBuilder
from onnxpart.errors import Interrupted
from onnxpart.torch import import_onnx
from onnxpart.torch.training import loop
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.events import Epoch, Event, Steps, ignore
from onnxpart.torch.training.fully_sharded import FullySharded, layers_of, sharded_bytes
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.processes import Trained, train_part
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import Settings
from tests.networks.training import accuracy, parts, small, stripes

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=4, lr=0.01, optimizer="adamw", device="cpu", clip=1.0)
COLLECTIVES = "all_gather_single", "reduce_scatter_single"
"""What FSDP2 exchanges weights and gradients by."""


@dataclass(frozen=True)
class Third:
    """Only the other rank ends after the third epoch; the weights of the second are kept."""

    rank: int

    def why(self, curve: Sequence[Epoch]) -> str:
        return "enough" if self.rank == 1 and len(curve) == 3 else ""

    def kept(self, curve: Sequence[Epoch]) -> int:
        return min(1, len(curve) - 1)


def job_of(module: nn.Module, rank: int, checkpoints: Checkpoints | None = None) -> Job:
    job = Job([module], (1,), stripes(), F.cross_entropy, SETTINGS, range(4), stripes(20, 60), accuracy)
    return replace(job, checkpoints=checkpoints, ending=Third(rank))


@contextmanager
def rank_of_two(rank: int, folder: Path) -> Iterator[None]:
    store = dist.FileStore(str(folder / "ranks"), 2)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        yield
    finally:
        gc.collect()  # sharded modules, in circles, that outlive their process group may end this process
        dist.destroy_process_group()


def learn(rank: int, folder: Path) -> tuple[int, Trained]:
    """Train a part with the other rank, which asks to stop after the second epoch, and then go on.

    :returns: the bytes of a step of a part with a norm, and the trained part.
    """
    kept = Checkpoints(folder, written=rank == 0)
    stop = threading.Event()

    def press(event: Event) -> None:
        if rank == 1 and isinstance(event, Steps) and event.epoch == 1:
            stop.set()

    with rank_of_two(rank, folder):
        normed = parts(small(norm=True))[1]
        engine, mean = FullySharded(job_of(normed, rank), CPU), normed.get_buffer("norm.mean")
        mean.fill_(100.0 * rank)
        with counted() as passed:
            engine.step([next(stripes().epoch(0))], 0.1, 0)
        assert mean.abs().max() < 10, "it isn't the first rank's"
        with pytest.raises(Interrupted, match=r"stopped at step 13; resume"):
            train_part(job_of(parts(small())[1], rank, kept), 1, press, stop, FullySharded)
        dist.barrier()
        again = job_of(parts(small())[1], rank, replace(kept, resume=True))
        return sum(passed), train_part(again, 1, ignore, threading.Event(), FullySharded)


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes that this rank sends meanwhile: of two ranks each sends half of what it puts together, or takes."""
    passed: list[int] = []

    def noted(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*tensors: Tensor, **named: Any) -> object:
            given = (*tensors, *(value for value in named.values() if isinstance(value, Tensor)))
            passed.append(max(tensor.nbytes for tensor in given) // 2)
            return collective(*tensors, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, noted(getattr(dist, name)))
        yield passed


def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    """Stopped, resumed from a checkpoint that was gathered, and ended by one of them, with the best weights."""
    other = torch.multiprocessing.get_context("spawn").Process(target=learn, args=(1, tmp_path))
    other.start()
    passed, found = learn(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    assert passed == sharded_bytes(parts(small(norm=True))[1], 2)
    _, module = parts(small())
    (expected,) = loop.run(job_of(module, 1), Series, CPU, ignore)
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(found.tensors[key], tensor)
    for epoch, wanted in zip(found.result.curve, expected.curve, strict=True):
        assert vars(epoch) == pytest.approx({**vars(wanted), "seconds": epoch.seconds})
    for key, slots in expected.state.slots.items():
        for slot, array in slots.items():
            np.testing.assert_allclose(found.result.state.slots[key][slot], array, rtol=1e-4, atol=1e-6)


def test_layers_whose_matrix_nothing_else_reads_are_gathered_one_by_one() -> None:
    g = GraphBuilder("tied", 0)
    x = g.input("x", "N", 3)
    h = g.relu("relu", g.linear("one", x, (3, 4)))
    y = g.linear("two", g.node("MatMul", "back", h, "one.weight"), (3, 5))
    module = import_onnx(g.build({y: ("N", 5)}))
    assert layers_of(module) == [module.get_submodule("two")]
    assert layers_of(nn.Linear(2, 2)) == []
