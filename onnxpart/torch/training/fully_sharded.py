"""The ranks of a process group train a part together, and each keeps a shard of its weights, by FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import ceil

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from onnxpart.torch.data.batch import Batch
from onnxpart.torch.importer.graph_module import Body
from onnxpart.torch.tensors import unsharded
from onnxpart.torch.training.checkpoint import PartState
from onnxpart.torch.training.data_parallel import DataParallel


class FullySharded(DataParallel):
    """Each rank keeps a shard of weights, gradients and the optimizer's state.

    The weights of a layer are gathered when it computes, forward and backward; the others once for a step.
    """

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step (see `Engine.step`), on the first rank's statistics of norms."""
        for module in self.job.modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
        return super().step(batches, rate, step)

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part, gathered (see `Engine.part`)."""
        state = super().part(i)
        tensors = {key: unsharded(tensor) for key, tensor in state.tensors.items()}
        slots = {key: {slot: unsharded(tensor) for slot, tensor in found.items()} for key, found in state.slots.items()}
        return PartState(tensors, slots, state.taken, state.scaler)

    def _call(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """The module itself, sharded in place."""
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        fully_shard = import_module("torch.distributed.fsdp").fully_shard  # slow to import
        for each in (*layers_of(module), module):
            fully_shard(each, mesh=mesh)
        return module


def sharded_bytes(module: nn.Module, workers: int) -> float:
    """Return the bytes that each worker sends for a batch of a sharded module.

    Gradients are scattered, and weights gathered, those of layers twice. All are padded to shards of equal size.
    """
    weights = [p for each in (module, *layers_of(module)) for p in each.parameters()]
    gradients = [p for p in module.parameters() if p.requires_grad]
    return float(sum((workers - 1) * ceil(len(p) / workers) * p[0].nbytes for p in (*weights, *gradients)))


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Return the layers whose weights are gathered one by one: those with a matrix that nothing else reads."""
    if not isinstance(module, Body):
        return []
    nodes = module.program.graph.nodes
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    layers = [module.get_submodule(path) for path in called if called.count(path) == 1 and path not in read]
    return [layer for layer in layers if any(p.dim() > 1 for p in layer.parameters())]
