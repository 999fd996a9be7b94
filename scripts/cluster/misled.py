"""What torchrun's ranks do that train a part apart, or all parts as if they were one: merging must refuse both."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from onnxpart.errors import UsageError
from onnxpart.torch import split_module


def main(way: str) -> None:
    """Train two parts without what joins the ranks of each, or with what joins all ranks."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    (part,), handle = split_module(model, x, 2)
    handle.merge()
    module = part if way == "apart" else DistributedDataParallel(part)
    optimizer = torch.optim.AdamW(module.parameters())
    torch.manual_seed(dist.get_rank())
    module(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    try:
        handle.merge()
    except UsageError as error:
        print(error)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    try:
        main(sys.argv[1])
    finally:
        dist.destroy_process_group()
