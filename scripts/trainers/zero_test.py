"""Parts whose optimizers share their states out among two ranks end with the weights of the hand-written loop."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.errors import UsageError
from onnxpart.torch import split_module
from onnxpart.torch.shared_states import whole

RATES = [1e-2, 3e-3]
X, Y = torch.arange(28.0).view(4, 7).sin(), torch.arange(4) % 3
Started = tuple[Any, Any]
Results = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))


def groups(module: nn.Module) -> list[dict[str, Any]]:
    every = list(module.parameters())
    return [{"params": every[:3], "lr": RATES[0]}, {"params": every[3:], "lr": RATES[1]}]


def by_hand(module: nn.Module) -> Started:
    return module, torch.optim.AdamW(groups(module), weight_decay=0.1)


def by_torch(module: nn.Module) -> Started:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return module, ZeroRedundancyOptimizer(groups(module), torch.optim.AdamW, weight_decay=0.1)


def by_deepspeed(stage: int, half: bool, module: nn.Module) -> Started:
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}, "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    found: Started = deepspeed.initialize(model=module, optimizer=by_hand(module)[1], config=config)[:2]
    return found


def step(started: Started, count: int) -> None:
    module, optimizer = started
    own = hasattr(module, "backward")
    for _ in range(count):
        loss = F.cross_entropy(module(X.to(next(module.parameters()).dtype)).float(), Y)
        if own:
            module.backward(loss)
            module.step()
        else:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def trained(start: Any) -> Results:
    """The merged weights and momenta, and the weights of the model after two more steps."""
    module = network()
    parts, handle = split_module(module, X, 2, everywhere=True)
    started = [start(part) for part in parts]
    for each in started:
        step(each, 3)
    merged = handle.merge()
    module.load_state_dict(merged)
    model, target = start(module)
    handle.merge_optimizer([optimizer for _, optimizer in started], target)
    state = whole(target).state
    moments = {
        f"{name} {slot}": torch.as_tensor(value).clone()
        for name, parameter in module.named_parameters()
        for slot, value in state[parameter].items()
    }
    step((model, target), 2)
    assert [group["lr"] for group in target.param_groups] == RATES
    if model is not module:
        with pytest.raises(UsageError, match=r"DeepSpeed trains copies of the module's weights already"):
            handle.merge()
    return merged, moments, module.state_dict()


def compare(kind: str) -> None:
    """What each of two ranks does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wanted, half = trained(by_hand), kind.endswith("bf16")
    if kind != "torch":
        import deepspeed

        deepspeed.comm.torch.build_shm_op = lambda: None  # it would compile for half a minute
        deepspeed.init_distributed("gloo", verbose=False)
    found = trained(by_torch if kind == "torch" else partial(by_deepspeed, int(kind[0]), half))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            options = {"rtol": 0, "atol": 4e-3} if half else {"rtol": 1e-5, "atol": 1e-7}
            torch.testing.assert_close(ours[name].float(), value, **options, msg=name)  # type: ignore[arg-type]
    if half:
        assert not torch.equal(found[0]["2.weight"], found[0]["2.weight"].bfloat16().float())
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["torch", "1", "1 bf16", "2", "2 bf16"])
def test_states_that_ranks_share_are_merged(kind: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, kind]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ended = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":
    compare(sys.argv[1])
