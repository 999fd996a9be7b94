"""One of several workers of `bench_cluster`: it trains with the others, and counts the bytes that it sends."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from onnxpart.torch import split_module
from onnxpart.torch.data.batch import Batch
from scripts.cluster.by_hand import shared
from scripts.cluster.links import sent
from scripts.paper.data import Windows, colour_images, text
from scripts.paper.gpt import Gpt, entropy
from scripts.paper.vision import small_resnet

LOCAL = 20
"""Steps that workers take by themselves before they meet, as in DiLoCo."""
OUTER = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
"""DiLoCo's settings of the SGD that takes what they moved by as a gradient."""


@dataclass(frozen=True)
class Task:
    """A network, AdamW's rate for whatever is trained, batches by number, their loss, and batches to test."""

    module: nn.Module
    rate: float
    batch: Callable[[int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    test: list[Batch]

    def tested(self) -> float:
        """Return the loss on the batches to test, with statistics of batch norms from ten others."""
        module = copy.deepcopy(self.module)
        update_bn((self.batch(i)[0] for i in range(10)), module)
        module.eval()
        with torch.no_grad():
            return fmean(float(self.loss(module(*x), y)) for x, y in self.test)


@dataclass
class Phase:
    """What a worker did: steps, seconds of one and bytes sent in one (both but for the first), and of all."""

    name: str
    steps: int = 0
    step_seconds: float = 0.0
    step_bytes: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0


@dataclass
class Record:
    """A worker's phases; and for each time that the whole was tested, the step, bytes sent so far, and the loss.

    `every`: how many steps of the whole are between two tests; None for no test. Rank 0 knows the loss.
    """

    task: Task
    every: int | None
    phases: list[Phase] = field(default_factory=list)
    curve: list[tuple[int, int, float | None]] = field(default_factory=list)
    begun: int = field(default_factory=sent)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int], None]]:
        """Count a phase; what it yields is called after each step, with how many there have been."""
        phase, marks, start, before = Phase(name), list[tuple[float, int]](), time.perf_counter(), sent()

        def done(step: int) -> None:
            marks.append((time.perf_counter(), sent()))
            if name == "whole" and self.every and step % self.every == 0:
                loss = self.task.tested() if dist.get_rank() == 0 else None
                self.curve.append((step, sent() - self.begun, loss))

        yield done
        phase.steps, phase.seconds, phase.bytes = len(marks), time.perf_counter() - start, sent() - before
        if len(marks) > 1:
            (begun, first), (ended, last) = marks[0], marks[-1]
            phase.step_seconds = (ended - begun) / (len(marks) - 1)
            phase.step_bytes = (last - first) / (len(marks) - 1)
        self.phases.append(phase)


def transformer(seed: int) -> Task:
    """Two blocks, 128 wide, over Python's help texts by character, 16 pieces of 64 in a batch."""
    learn, test, kinds = text()
    pieces = Windows(learn, 64, 16, 16, seed)
    held = Windows(test, 64, 32, 256, random=False)
    return Task(Gpt(kinds, 64, 128, 8, 2), 0.004, lambda i: next(pieces.epoch(i)), entropy, list(held.epoch(0)))


def resnet(seed: int) -> Task:
    """Three blocks, 32 to 128 channels, over coloured digits before photographs, 32 of 24 x 24 in a batch."""
    _, pieces, held = colour_images(None, 32, 32, seed)
    return Task(small_resnet(32), 0.001, lambda i: next(pieces.epoch(i)), F.cross_entropy, list(held.epoch(0)))


TASKS = {"transformer": transformer, "ResNet": resnet}


def learn(task: Task, module: nn.Module, mesh: DeviceMesh | None, steps: range, done: Callable[[int], None]) -> None:
    """Train a module with the ranks of a mesh, each of which takes its share of every batch's samples."""
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    called = shared(module, mesh, "ddp") if ranks > 1 else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.rate)
    for i in steps:
        (x,), target = task.batch(i)
        _step(task, called, optimizer, x[rank::ranks], target[rank::ranks])
        done(i + 1)


def learn_locally(task: Task, mesh: DeviceMesh | None, steps: range, done: Callable[[int], None]) -> None:
    """Train the whole on each rank alone; every `LOCAL` steps all go on from where they are on the mean."""
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=task.rate)
    common = copy.deepcopy(task.module)
    outer = torch.optim.SGD(common.parameters(), **OUTER)  # type: ignore[arg-type]
    for i in steps:
        (x,), target = task.batch(i)
        _step(task, task.module, optimizer, x[rank::ranks], target[rank::ranks])
        if (i + 1) % LOCAL == 0 or i + 1 == steps.stop:
            pairs = list(zip(common.parameters(), task.module.parameters(), strict=True))
            for begun, own in pairs:
                begun.grad = (begun - own).detach() / ranks
                if mesh is not None:
                    dist.all_reduce(begun.grad)
            outer.step()
            with torch.no_grad():
                for begun, own in pairs:
                    own.copy_(begun)
        done(i + 1)


def _step(task: Task, module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    optimizer.zero_grad()
    task.loss(module(x), target).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train(record: Record, way: str, k: int, steps: int, merge_at: int) -> list[int]:
    """Train by one of the ways; return the parameters of the parts, or of the whole."""
    task = record.task
    everybody = init_device_mesh("cpu", (dist.get_world_size(),)) if dist.get_world_size() > 1 else None
    if way != "parts":
        with record.phase("whole") as done:
            if way == "local":
                learn_locally(task, everybody, range(steps), done)
            else:
                learn(task, task.module, everybody, range(steps), done)
        return [sum(p.numel() for p in task.module.parameters())]
    (x,), _ = task.batch(0)
    parts, handle = split_module(task.module, x, k)
    with record.phase("parts") as done:
        for part in parts:
            learn(task, part, handle.mesh, range(merge_at), done)
    with record.phase("merge"):
        task.module.load_state_dict(handle.merge())
    with record.phase("whole") as done:
        learn(task, task.module, everybody, range(merge_at, steps), done)
    return [handle.split.plan.parameters(p) for p in range(k)]


def main() -> None:
    """Train with the others, and write what this worker did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("way", choices=["whole", "parts", "local"])
    parser.add_argument("-k", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--merge-at", type=int, required=True)
    parser.add_argument("--test-every", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    task = TASKS[given.task](given.seed)
    dist.init_process_group("gloo")
    try:
        record = Record(task, given.test_every)
        parameters = train(record, given.way, given.k, given.steps, given.merge_at)
        found = {"phases": [asdict(phase) for phase in record.phases], "parameters": parameters, "curve": record.curve}
        (given.out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
