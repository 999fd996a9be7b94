"""The ranks of a process group share the parts, check that they agree on the module, and exchange trained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from onnxpart.errors import UsageError
from onnxpart.torch.tensors import to_array

T = TypeVar("T")


def numbers_of(k: int) -> range:
    """Return the parts that this rank trains, of `k`: all without a process group.

    Neighbouring ranks share a part if there are more ranks than parts; otherwise a rank has several.
    :raises UsageError: if they can't be distributed evenly.
    """
    if not _several():
        return range(k)
    rank, world = dist.get_rank(), dist.get_world_size()
    if k % world and world % k:
        raise UsageError(f"{k} parts can't be shared out evenly among {world} processes; start {k}, or twice as many.")
    count = max(k // world, 1)
    first = rank * k // world
    return range(first, first + count)


def check_alike(plan: str, state: Mapping[str, Tensor]) -> None:
    """Check that all ranks divide the same module in the same way.

    :param plan: digest of the plan. :param state: the module's `state_dict`.
    :raises UsageError: on all ranks, if one has another plan or another tensor.
    """
    if not _several():
        return
    own = {key: _digest([to_array(tensor)]) for key, tensor in state.items()}
    (first_plan, first), *others = _of_all((plan, own))
    for rank, (other_plan, other) in enumerate(others, 1):
        if other_plan != first_plan or other.keys() != first.keys():
            raise UsageError(
                f"rank {rank} divides the module differently from rank 0; call split_module on every rank with the "
                "same "
                "module and arguments."
            )
        differing = [key for key in first if other[key] != first[key]]
        if differing:
            raise UsageError(
                f"rank {rank} has another {differing[0]!r} than rank 0; give all ranks the same weights, by the same "
                "torch.manual_seed before the module is made, or from a file."
            )


def check_trained(own: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Check that ranks which share a part have the same weights of it, and that no two parts have; every rank calls it.

    :param own: what each of this rank's parts has learned, by the part's number.
    :raises UsageError: on all ranks, if they haven't trained their parts together, or have trained others with them.
    """
    found = {part: _digest(arrays.values()) for part, arrays in own.items() if arrays}
    ranks, parts = dict[int, tuple[int, str]](), dict[str, int]()
    for rank, digests in enumerate(_of_all(found)):
        for part, digest in digests.items():
            first, wanted = ranks.setdefault(part, (rank, digest))
            if digest != wanted:
                raise UsageError(
                    f"ranks {first} and {rank} share part {part}, but hold other weights of it; let "
                    "DistributedDataParallel or fully_shard train it over handle.mesh."
                )
            other = parts.setdefault(digest, part)
            if other != part:
                raise UsageError(
                    f"parts {other} and {part} have learned the same weights: what trains them has joined their ranks; "
                    "give it handle.mesh's process group, or split with everywhere=True."
                )


def mesh_of(k: int, device_type: str) -> DeviceMesh | None:
    """Return the ranks that train this one's parts together; None without a process group."""
    if not _several():
        return None
    rows = min(k, dist.get_world_size())
    names = ("part", "data")
    return init_device_mesh(device_type, (rows, dist.get_world_size() // rows), mesh_dim_names=names)["data"]


def gathered(own: Sequence[T], mesh: DeviceMesh | None) -> list[T]:
    """Return what all ranks have of their parts, in the parts' order; every rank must call it.

    :param own: one for each part of this rank. If ranks share a part, the first one's counts.
    """
    if mesh is None:
        return list(own)
    return [each for found in _of_all(own if mesh.get_local_rank() == 0 else []) for each in found]


def _digest(arrays: Iterable[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all(own: T) -> list[T]:
    """The objects of all ranks, by rank."""
    found: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
