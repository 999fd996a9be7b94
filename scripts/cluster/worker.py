"""One of several workers of `bench_cluster`: it trains with the others, and counts the bytes that it sends."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F

from onnxpart.torch import split_module
from onnxpart.torch.data.batch import Batch
from scripts.cluster.by_hand import shared
from scripts.cluster.links import sent
from scripts.paper.data import Windows, text
from scripts.paper.gpt import Gpt, entropy
from scripts.paper.vision import resnet

RATE = 0.004
"""AdamW's, for whatever is trained."""
LOCAL = 20
"""Steps that workers take by themselves before they meet, as in DiLoCo."""
OUTER = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
"""DiLoCo's settings of the SGD that takes what they moved by as a gradient."""


@dataclass(frozen=True)
class Task:
    """A network, batches by number, their loss, and batches to test, none where the data mean nothing."""

    module: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    test: list[Batch]


@dataclass
class Phase:
    """What a worker did: steps, seconds of one and bytes sent in one (both but for the first), and of all."""

    name: str
    steps: int = 0
    step_seconds: float = 0.0
    step_bytes: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0


def transformer() -> Task:
    """Two blocks, 128 wide, over Python's help texts by character, 16 pieces of 64 in a batch."""
    learn, test, kinds = text()
    pieces = Windows(learn, 64, 16, 16)
    held = Windows(test, 64, 32, 256, random=False)
    return Task(Gpt(kinds, 64, 128, 8, 2), lambda i: next(pieces.epoch(i)), entropy, list(held.epoch(0)))


def resnet18() -> Task:
    """ResNet-18 over 8 random images of 64 x 64 in a batch."""

    def batch(i: int) -> Batch:
        draw = torch.Generator().manual_seed(i)
        return (torch.randn(8, 3, 64, 64, generator=draw),), torch.randint(0, 1000, (8,), generator=draw)

    return Task(resnet(18), batch, F.cross_entropy, [])


TASKS = {"transformer": transformer, "ResNet-18": resnet18}


@contextmanager
def counted(phases: list[Phase], name: str) -> Iterator[Callable[[], None]]:
    """Count a phase; what it yields is called after each step."""
    phase, marks, start, before = Phase(name), list[tuple[float, int]](), time.perf_counter(), sent()
    yield lambda: marks.append((time.perf_counter(), sent()))
    phase.steps, phase.seconds, phase.bytes = len(marks), time.perf_counter() - start, sent() - before
    if len(marks) > 1:
        (begun, first), (ended, last) = marks[0], marks[-1]
        phase.step_seconds, phase.step_bytes = (ended - begun) / (len(marks) - 1), (last - first) / (len(marks) - 1)
    phases.append(phase)


def learn(task: Task, module: nn.Module, mesh: DeviceMesh | None, steps: range, done: Callable[[], None]) -> None:
    """Train a module with the ranks of a mesh, each of which takes its share of every batch's samples."""
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    called = shared(module, mesh, "ddp") if ranks > 1 else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    for i in steps:
        (x,), target = task.batch(i)
        _step(task, called, optimizer, x[rank::ranks], target[rank::ranks])
        done()


def learn_locally(task: Task, mesh: DeviceMesh | None, steps: range, done: Callable[[], None]) -> None:
    """Train the whole on each rank alone; every `LOCAL` steps all go on from where they are on the mean."""
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=RATE)
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
        done()


def _step(task: Task, module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    optimizer.zero_grad()
    task.loss(module(x), target).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train(task: Task, way: str, k: int, steps: int) -> tuple[list[Phase], list[int]]:
    """Train by one of the ways; return what this rank did, and the parameters of the parts, or of the whole."""
    everybody = init_device_mesh("cpu", (dist.get_world_size(),)) if dist.get_world_size() > 1 else None
    phases: list[Phase] = []
    if way != "parts":
        with counted(phases, "whole") as done:
            if way == "local":
                learn_locally(task, everybody, range(steps), done)
            else:
                learn(task, task.module, everybody, range(steps), done)
        return phases, [sum(p.numel() for p in task.module.parameters())]
    merge_at = steps * 4 // 5
    (x,), _ = task.batch(0)
    parts, handle = split_module(task.module, x, k)
    with counted(phases, "parts") as done:
        for part in parts:
            learn(task, part, handle.mesh, range(merge_at), done)
    with counted(phases, "merge"):
        task.module.load_state_dict(handle.merge())
    with counted(phases, "whole") as done:
        learn(task, task.module, everybody, range(merge_at, steps), done)
    return phases, [handle.split.plan.parameters(p) for p in range(k)]


def main() -> None:
    """Train with the others, and write what this worker did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("way", choices=["whole", "parts", "local"])
    parser.add_argument("-k", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = TASKS[given.task]()
    dist.init_process_group("gloo")
    try:
        phases, parameters = train(task, given.way, given.k, given.steps)
        with torch.no_grad():
            losses = [float(task.loss(task.module.eval()(*x), y)) for x, y in task.test]
        found = {"phases": [asdict(phase) for phase in phases], "parameters": parameters, "losses": losses}
        (given.out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
