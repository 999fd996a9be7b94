"""A module of one's own, trained with few of its blocks, and its blocks stacked again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onnxpart.errors import MergeError, PartitionError, UsageError
from onnxpart.merging.deepen import New
from onnxpart.torch import shallow_module, split_module
from tests.networks.deep import NETWORKS
from tests.networks.plain import LeNet

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@torch.no_grad()
def deviation(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """How far two modules are from each other, relative to what one computes."""
    expected = one.eval()(x)
    return float((other.eval()(x) - expected).abs().max() / expected.abs().max())


def train(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_shallow_module_computes_is_kept(name: str) -> None:
    torch.manual_seed(0)
    build, example, _ = NETWORKS[name]
    module, x = build(), example()
    small, handle = shallow_module(module, x, 1, new="zero")
    assert dict(small.named_parameters()).keys() < dict(module.named_parameters()).keys()
    train(small, torch.optim.SGD(small.parameters(), lr=0.05), x)
    assert deviation(module, small, x) > 1e-3
    module.load_state_dict(handle.deepen())
    assert deviation(small, module, x) <= 1e-5
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)
    assert deviation(small, module, x) > 1e-3


@pytest.mark.parametrize(("name", "new"), [("sgd", "copies"), ("adamw", "zero")])
def test_blocks_and_what_optimizers_remember_are_stacked(name: str, new: New) -> None:
    torch.manual_seed(0)
    build, example, _ = NETWORKS["gpt"]
    module, x = build(), example()
    small, handle = shallow_module(module, x, 2, new=new)
    optimizer, target = (OPTIMIZERS[name](each.parameters()) for each in (small, module))
    train(small, optimizer, x)
    module.load_state_dict(handle.deepen())
    handle.deepen_optimizer(optimizer, target)
    own, held = dict(module.named_parameters()), dict(small.named_parameters())
    for block in range(4):
        for kind in ("up.weight", "down.weight"):
            new_one, old_one = own[f"blocks.{block}.{kind}"], held[f"blocks.{block % 2}.{kind}"]
            zero = new == "zero" and block > 1
            assert torch.equal(new_one, old_one * (not (zero and kind == "down.weight")))
            for slot, value in optimizer.state[old_one].items():
                factor = not zero or slot in ("step", "exp_avg_sq")
                assert torch.equal(target.state[new_one][slot], value * factor), slot
    train(module, target, x)


def test_a_shallow_module_is_divided_too() -> None:
    """K shallow narrow parts -> wide -> deep."""
    torch.manual_seed(0)
    build, example, _ = NETWORKS["resnet"]
    module, x = build(), example()
    small, handle = shallow_module(module, x, 2, new="zero")
    parts, narrow = split_module(small, x, 2)
    for part in parts:
        train(part, torch.optim.SGD(part.parameters(), lr=0.05), x)
    small.load_state_dict(narrow.merge())
    module.load_state_dict(handle.deepen())
    assert deviation(small, module, x) <= 1e-5


class Tied(nn.Module):
    """One block, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(4):
            x = x + self.block(x).relu()
        y: Tensor = self.head(x)
        return y


def test_a_block_that_is_applied_again_and_again() -> None:
    module, x = Tied(), torch.randn(4, 5)
    small, handle = shallow_module(module, x, 2)
    train(small, torch.optim.SGD(small.parameters(), lr=0.05), x)
    module.load_state_dict(handle.deepen())
    assert torch.equal(module.block.weight, small.get_parameter("block.weight"))
    with pytest.raises(MergeError, match="is shared with a block that is trained"):
        shallow_module(module, x, 2, new="zero")


def test_what_can_not_be_shallow() -> None:
    with pytest.raises(PartitionError, match="LeNet has no repeated blocks"):
        shallow_module(LeNet(), torch.randn(2, 1, 20, 20), 1)
    with pytest.raises(UsageError, match="Tied has a stack of 4 blocks; keep at least 1 and fewer than 4 of them"):
        shallow_module(Tied(), torch.randn(4, 5), 4)
