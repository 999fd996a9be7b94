"""Who trains what in a process group; `scripts/test-cluster` tries it with several ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from onnxpart.errors import UsageError
from onnxpart.torch import split_module
from onnxpart.torch.ranks import check_alike, check_trained, gathered, numbers_of
from tests.networks.forms import FORMS, arguments
from tests.networks.plain import NETWORKS, learn
from tests.networks.training import one_rank

Weights = dict[str, np.ndarray]
A, B, C = ({"w": np.full((2, 2), value, np.float32)} for value in (1, 2, 3))


@pytest.mark.parametrize(
    ("world", "k", "parts"),
    [(4, 2, [[0], [0], [1], [1]]), (2, 4, [[0, 1], [2, 3]]), (3, 3, [[0], [1], [2]]), (2, 1, [[0], [0]])],
)
def test_parts_are_shared_out_in_order(
    world: int, k: int, parts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    for rank, own in enumerate(parts):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        assert list(numbers_of(k)) == own
    with pytest.raises(UsageError, match=rf"{3 * world + 1} parts can't be shared out evenly among {world} processes"):
        numbers_of(3 * world + 1)


def test_without_a_process_group_all_parts_are_here() -> None:
    assert list(numbers_of(3)) == [0, 1, 2]
    assert gathered(["a", "b"], None) == ["a", "b"]


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, of which each call is the next one: the first hears itself twice, the second both."""
    told: list[object] = []

    def tell(found: list[object], own: object) -> None:
        told.append(own)
        found[:] = told if len(told) == len(found) else [told[0], told[0]]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", tell)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(
    ("plan", "state", "why"),
    [
        ("q", {"w": torch.ones(2)}, "rank 1 divides the module differently from rank 0"),
        ("p", {"v": torch.ones(2)}, "rank 1 divides the module differently from rank 0"),
        ("p", {"w": torch.zeros(2)}, "rank 1 has another 'w' than rank 0; give all ranks the same weights"),
    ],
)
def test_a_rank_with_another_module_is_named(plan: str, state: dict[str, Tensor], why: str) -> None:
    check_alike("p", {"w": torch.ones(2)})
    with pytest.raises(UsageError, match=why):
        check_alike(plan, state)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({0: A}, {1: B}, None),
        ({0: A, 1: B}, {2: C, 3: {}}, None),
        ({0: A}, {0: A}, None),
        ({0: {}}, {1: {}}, None),
        ({0: A}, {0: B}, "ranks 0 and 1 share part 0, but hold other weights of it; let DistributedDataParallel or"),
        ({0: A}, {1: A}, "parts 0 and 1 have learned the same weights: what trains them has joined their ranks; give"),
        ({0: A, 1: B}, {2: C, 3: B}, "parts 1 and 3 have learned the same weights"),
    ],
)
def test_ranks_hold_the_same_weights_of_a_part_and_of_no_two(
    first: dict[int, Weights], second: dict[int, Weights], why: str | None
) -> None:
    check_trained(first)
    with pytest.raises(UsageError, match=why) if why else contextlib.nullcontext():
        check_trained(second)


def test_trainers_that_let_all_ranks_train_each_network_get_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    build, draw = NETWORKS["lenet"]
    parts, handle = split_module(build(), draw(), 3, everywhere=True)
    assert (len(parts), handle.mesh) == (3, None)


@pytest.fixture
def group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # it returns a view, which nobody changes
def test_sharded_parts_merge_into_a_sharded_module() -> None:
    mesh, results = init_device_mesh("cpu", (1,)), []
    for sharded in (False, True):
        torch.manual_seed(0)
        build, draw = NETWORKS["gpt2"]
        module = build()
        parts, handle = split_module(module, draw())
        optimizers = []
        for part in parts:
            if sharded:
                fully_shard(part, mesh=mesh)
            optimizers.append(torch.optim.AdamW(part.parameters()))
            learn(part, optimizers[-1], draw)
        if sharded:
            fully_shard(module, mesh=mesh)
        module.load_state_dict(handle.merge())
        optimizer = torch.optim.AdamW(module.parameters())
        handle.merge_optimizer(optimizers, optimizer)
        learn(module, optimizer, draw)
        results.append({key: getattr(v, "full_tensor", lambda v=v: v)() for key, v in module.state_dict().items()})
    plain, found = results
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # it returns a view, which nobody changes
@pytest.mark.parametrize("form", ["attention", "a transformer and a mask", "a recurrent layer", "stochastic depth"])
def test_sharded_parts_compute_in_half_types(form: str) -> None:
    build, examples = FORMS[form]
    parts, handle = split_module(build(), examples, everywhere=True)
    for part in parts:
        fully_shard(part, mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
        found = part(*arguments(examples)[0])
        assert found.dtype == torch.bfloat16
        found.float().square().sum().backward()
        assert all(parameter.grad is not None for parameter in part.parameters())
    assert all(tensor.dtype == torch.float32 for tensor in handle.merge().values())


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")  # torch's own, when it is imported
def test_an_optimizer_that_is_shared_out_is_merged_like_any_other() -> None:
    results = []
    for shared in (False, True):
        torch.manual_seed(0)
        build, draw = NETWORKS["lenet"]
        module = build()
        parts, handle = split_module(module, draw())
        optimizers = [_adamw(each, shared) for each in (*parts, module)]
        for part, optimizer in zip(parts, optimizers, strict=False):
            learn(part, optimizer, draw)
        module.load_state_dict(handle.merge())
        handle.merge_optimizer(optimizers[:-1], optimizers[-1])
        learn(module, optimizers[-1], draw)
        results.append(module.state_dict())
    plain, found = results
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value)


def _adamw(module: nn.Module, shared: bool) -> torch.optim.Optimizer:
    if shared:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW, lr=1e-3)
    return torch.optim.AdamW(module.parameters(), lr=1e-3)
