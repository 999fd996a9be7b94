"""A loop of one's own that trains parts and whole of a tiny GPT-2, in one process or in torchrun's ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from onnxpart.torch import split_module
from tests.networks.plain import CLASSES, GPT2

STEPS, BATCH, K = 6, 8, 2


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


def learn(module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh | None, first: int) -> list[float]:
    """Take steps on batches that are the same on all ranks, of which each rank of the mesh takes its share of rows."""
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    losses = []
    for step in range(first, first + STEPS):
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
    return losses


def train(way: str, seed: int, k: int) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Train this rank's parts, merge them, and train the whole on all ranks; return curves and the whole's state."""
    torch.manual_seed(seed)
    model = GPT2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each rank would draw masks of its own
    parts, handle = split_module(model, torch.zeros(BATCH, 6, dtype=torch.long), k)
    curves, optimizers = [], []
    for part in parts:
        module = shared(part, handle.mesh, way)
        optimizers.append(optimizer_of(module))
        curves.append(learn(module, optimizers[-1], handle.mesh, 0))
    everybody = init_device_mesh("cpu", (dist.get_world_size(),)) if dist.is_initialized() else None
    whole = shared(model, everybody, way)
    model.load_state_dict(handle.merge())
    optimizer = optimizer_of(whole)
    handle.merge_optimizer(optimizers, optimizer)
    curves.append(learn(whole, optimizer, everybody, STEPS))
    state = model.state_dict()
    return curves, {
        key: value.full_tensor() if way == "fsdp" and everybody and hasattr(value, "full_tensor") else value
        for key, value in state.items()
    }


def main() -> None:
    """Train, and let rank 0 write curves and weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("way", choices=["alone", "ddp", "fsdp"])
    parser.add_argument("-k", type=int, default=K)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the ranks' modules, in turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rank = 0
    if given.way != "alone":
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    try:
        curves, state = train(given.way, given.seeds[rank % len(given.seeds)], given.k)
        torch.save((curves, state), given.out / f"{given.way}{rank}.pt")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
