"""A loop of one's own that trains parts and whole of a tiny GPT-2, in one process or in torchrun's ranks."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from onnxpart.torch import split_module
from scripts.cluster.links import sent
from tests.networks.plain import CLASSES, GPT2

STEPS, BATCH, K = 6, 8, 2


@dataclass(frozen=True)
class Kept:
    """Where checkpoints are kept, and the step before which the last rank waits to be ended, once."""

    folder: Path
    wait_at: int

    def wait(self, step: int) -> None:
        """Tell the process id in a file, and wait, if it is time for that."""
        told = self.folder / "pid"
        if step == self.wait_at and dist.get_rank() == dist.get_world_size() - 1 and not told.exists():
            told.with_suffix(".new").write_text(str(os.getpid()))
            told.with_suffix(".new").rename(told)
            time.sleep(600)

    def resume(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> list[float]:
        """Go on from the newest checkpoint of a name; return the losses of the steps before it."""
        found = sorted(path.parent for path in self.folder.glob(f"{name}-*/.metadata"))
        if not found:
            return []
        weights, memory = get_state_dict(module, optimizer)
        state = {"weights": weights, "memory": memory, "losses": []}
        load(state, checkpoint_id=found[-1], process_group=mesh.get_group())
        set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=memory)
        losses: list[float] = state["losses"]  # type: ignore[assignment]
        first = STEPS if name == "whole" else 0
        print(f"{name} goes on at step {first + len(losses)}", file=sys.stderr)
        return losses

    def save(
        self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh, losses: list[float]
    ) -> None:
        """Write a checkpoint, each rank its share."""
        weights, memory = get_state_dict(module, optimizer)
        state = {"weights": weights, "memory": memory, "losses": losses}
        save(state, checkpoint_id=self.folder / f"{name}-{len(losses)}", process_group=mesh.get_group())


def shared(module: nn.Module, mesh: DeviceMesh | None, way: str) -> nn.Module:
    """Return a module that the ranks of a mesh train together; a sharded one is sharded in place."""
    if mesh is None:
        return module
    if way == "fsdp":
        fully_shard(module, mesh=mesh)
        return module
    return DistributedDataParallel(module, process_group=mesh.get_group())


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW that doesn't blow up gradients that are nothing but rounding."""
    return torch.optim.AdamW(module.parameters(), lr=0.01, eps=1e-3)


def learn(
    name: str, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh | None, kept: Kept | None
) -> tuple[list[float], list[int]]:
    """Take steps on batches that are the same on all ranks, of which each rank of the mesh takes its share of rows.

    :param name: of what is trained: the whole goes on with other batches.
    :returns: losses, and for each step the bytes that all ranks had sent on this machine when it ended.
    """
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    first = STEPS if name == "whole" else 0
    losses = [] if kept is None or mesh is None else kept.resume(name, module, optimizer, mesh)
    marks = []
    for step in range(first + len(losses), first + STEPS):
        if kept is not None:
            kept.wait(step)
        draw = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, CLASSES, (BATCH, 6), generator=draw)
        own, target = tokens[rank::ranks], tokens.sum(1)[rank::ranks] % CLASSES
        optimizer.zero_grad()
        loss = F.cross_entropy(module(own), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mean = loss.detach() / ranks
        if mesh is not None:
            dist.all_reduce(mean, group=mesh.get_group())
        losses.append(float(mean))
        marks.append(sent("lo"))
        if kept is not None and mesh is not None and len(losses) % 2 == 0:
            kept.save(name, module, optimizer, mesh, losses)
    return losses, marks


Found = tuple[list[list[float]], dict[str, Tensor], list[int]]
"""Curves of this rank's parts and of the whole, the whole's state, and the bytes of its steps (see `learn`)."""


def train(way: str, seed: int, k: int, kept: Kept | None) -> Found:
    """Train this rank's parts, merge them, and train the whole on all ranks."""
    torch.manual_seed(seed)
    model = GPT2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each rank would draw masks of its own
    parts, handle = split_module(model, torch.zeros(BATCH, 6, dtype=torch.long), k)
    curves, optimizers = [], []
    for i, part in enumerate(parts):
        module = shared(part, handle.mesh, way)
        optimizers.append(optimizer_of(module))
        number = i if handle.mesh is None else dist.get_rank() // handle.mesh.size()
        curves.append(learn(f"part{number}", module, optimizers[-1], handle.mesh, kept)[0])
    everybody = init_device_mesh("cpu", (dist.get_world_size(),)) if dist.is_initialized() else None
    whole = shared(model, everybody, way)
    model.load_state_dict(handle.merge())
    optimizer = optimizer_of(whole)
    handle.merge_optimizer(optimizers, optimizer)
    curve, marks = learn("whole", whole, optimizer, everybody, kept)
    state = {
        key: value.full_tensor() if way == "fsdp" and everybody and hasattr(value, "full_tensor") else value
        for key, value in model.state_dict().items()
    }
    return [*curves, curve], state, marks


def main() -> None:
    """Train, and let rank 0 write curves and weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("way", choices=["alone", "ddp", "fsdp"])
    parser.add_argument("-k", type=int, default=K)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the ranks' modules, in turn")
    parser.add_argument("--wait-at", type=int, help="keep checkpoints; at this step one rank waits to be ended")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank = 0
    if given.way != "alone":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    try:
        kept = None if given.wait_at is None else Kept(given.out, given.wait_at)
        found = train(given.way, given.seeds[rank % len(given.seeds)], given.k, kept)
        torch.save(found, given.out / f"{given.way}{rank}.pt")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
