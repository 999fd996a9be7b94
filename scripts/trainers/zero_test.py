"""Parts whose optimizers share their states out among two ranks end with the weights of the hand-written loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
from onnxpart.torch.tensors import is_copied, unsharded

RATES = [1e-2, 3e-3]
X, Y = torch.arange(28.0).view(4, 7).sin(), torch.arange(4) % 3
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "1 sums bf16": {"data_types": {"grad_accum_dtype": "fp32"}},
    "3 small": {"zero_optimization": {"stage": 3, "sub_group_size": 20}},
    "3 offloaded": {
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    },
}
"""Other settings of DeepSpeed than the stage and the type."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1024.0
"""Of the loss in float16."""
Started = tuple[Any, Any]
Results = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class Net(nn.Module):
    """Layers, parameters that no layer holds, and a frozen layer.

    The clones let gradients add up in one order, whether the hooks of ZeRO 3 are there or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.places = nn.Linear(1, 8), nn.Parameter(torch.randn(7, 8))
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.frozen, self.out = nn.Linear(8, 9).requires_grad_(False), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.unsqueeze(-1)) + self.places
        h = h + self.attention(h.clone(), h.clone(), h.clone(), need_weights=False)[0]
        out: Tensor = self.out(F.relu(self.frozen(h.mean(1))))
        return out


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def groups(module: nn.Module) -> list[dict[str, Any]]:
    every = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [{"params": every[:3], "lr": RATES[0]}, {"params": every[3:], "lr": RATES[1]}]


def by_hand(kind: str, module: nn.Module) -> Started:
    """A module and an optimizer; in half types the module computes with copies of its weights."""
    optimizer = torch.optim.AdamW(groups(module), weight_decay=0.1)
    half = half_of(kind)
    if half is None:
        return module, optimizer
    rounded(module, half)
    if kind[0] == "0":  # DeepSpeed takes a step without gradients here, so that the states are there
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()

    def halved(x: Tensor) -> Tensor:
        copies = {name: parameter.to(half) for name, parameter in module.named_parameters()}
        found: Tensor = torch.func.functional_call(module, copies, x.to(half))
        return found

    return halved, optimizer


def half_of(kind: str) -> torch.dtype | None:
    return HALVES.get(kind[-4:])


def rounded(module: nn.Module, half: torch.dtype) -> None:
    """Round a module's weights to half types."""
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data.to(half))


def by_torch(module: nn.Module) -> Started:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return module, ZeroRedundancyOptimizer(groups(module), torch.optim.AdamW, weight_decay=0.1)


def by_deepspeed(config: Mapping[str, Any], module: nn.Module) -> Started:
    import deepspeed

    found: Started = deepspeed.initialize(model=module, optimizer=by_hand("", module)[1], config={**config})[:2]
    return found


def by_accelerate(first: Any, names: Iterator[str], module: nn.Module) -> Started:
    """Use an accelerator for each network, all with DeepSpeed, as accelerate wants it for several."""
    from accelerate import Accelerator

    name = next(names)
    first.state.select_deepspeed_plugin(name)
    accelerator = first if name == "0" else Accelerator()
    found: Started = accelerator.prepare(module, by_hand("", module)[1])
    return found


def config_of(kind: str) -> dict[str, Any]:
    """DeepSpeed's settings."""
    zero = {"stage": int(kind[0]), "stage3_param_persistence_threshold": 0, "memory_efficient_linear": False}
    half = half_of(kind)
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": half == torch.bfloat16},
        "fp16": {"enabled": half == torch.float16, "loss_scale": SCALE},
        **SETTINGS.get(kind, {}),
    }


def starts(kind: str) -> Any:
    """What starts a network's training in this way."""
    if kind == "torch":
        return by_torch
    import deepspeed

    deepspeed.comm.torch.build_shm_op = lambda: None  # it would compile for half a minute
    deepspeed.init_distributed("gloo", verbose=False)
    if "accelerate" not in kind:
        return partial(by_deepspeed, config_of(kind))
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin

    plugins = {name: DeepSpeedPlugin(hf_ds_config=config_of(kind)) for name in "012"}
    precision = kind[-4:] if half_of(kind) else "no"
    return partial(by_accelerate, Accelerator(deepspeed_plugin=plugins, mixed_precision=precision), iter("012"))


def step(kind: str, started: Started, count: int) -> None:
    module, optimizer = started
    own, scale = hasattr(module, "backward"), SCALE if half_of(kind) == torch.float16 else 1
    for _ in range(count):
        loss = F.cross_entropy(module(X.to(module.lift.weight.dtype) if own else X).float(), Y)
        if own:
            module.backward(loss)
            module.step()
        else:
            optimizer.zero_grad()
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad /= scale
            optimizer.step()


def trained(kind: str, start: Any) -> Results:
    """The merged weights and momenta, and the weights of the model after two more steps."""
    module, lossy = network(), half_of(kind) if kind[0] == "0" else None
    parts, handle = split_module(module, X, 2, everywhere=True)
    started = [start(part) for part in parts]
    for part, each in zip(parts, started, strict=True):
        step(kind, each, 3)
        if lossy:  # here nothing leads from a parameter to what DeepSpeed trains in 32 bits
            rounded(part, lossy)
    merged = handle.merge()
    module.load_state_dict(merged)
    model, target = start(module)
    handle.merge_optimizer([optimizer for _, optimizer in started], target)
    state = whole(target).state
    moments = {
        f"{name} {slot}": torch.as_tensor(value).clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        for slot, value in state[parameter].items()
    }
    step(kind, (model, target), 2)
    if lossy:
        rounded(module, lossy)
    assert [group["lr"] for group in target.param_groups] == RATES
    if any(map(is_copied, module.parameters())):
        with pytest.raises(UsageError, match=r"DeepSpeed trains copies of the module's weights already"):
            handle.merge()
    return merged, moments, {name: unsharded(parameter) for name, parameter in module.named_parameters()}


def compare(kind: str) -> None:
    """What each of two ranks does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    wanted = trained(kind, partial(by_hand, kind))
    for ours, theirs in zip(trained(kind, starts(kind)), wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name].float(), value, rtol=1e-5, atol=1e-7, msg=partial("{} {}".format, name)
            )
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("torch", 2), ("0 bf16", 2), ("1", 2), ("1 bf16", 2), ("1 sums bf16", 2), ("2", 3), ("2 bf16", 2), ("3", 2),
     ("3 small", 3), ("3 bf16", 2), ("3 offloaded", 2),
     ("1 accelerate", 2), ("3 accelerate bf16", 2), ("2 fp16", 2), ("3 fp16", 2)],
)  # fmt: skip
def test_states_that_ranks_share_are_merged(kind: str, ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [__file__, kind]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ended = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


if __name__ == "__main__":
    compare(sys.argv[1])
