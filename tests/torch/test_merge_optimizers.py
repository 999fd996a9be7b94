"""Optimizers of any class are merged by the shapes of what they remember."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnxpart.errors import UsageError
from onnxpart.torch import Handle, split_module
from tests.networks.plain import NETWORKS, LeNet, learn

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
Optimizer = torch.optim.Optimizer


class Squares(Optimizer):
    """One of one's own: sums squares under a name that nobody knows, and counts steps as a whole number."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["energy"] = state.get("energy", torch.ones_like(parameter)) + parameter.grad**2
                state["seen"] = state.get("seen", 0) + 1
                parameter -= group["lr"] * parameter.grad / state["energy"].sqrt()


class Wrapper(Optimizer):
    """Holds another in something that is none itself, as accelerate's does with DeepSpeed's."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.param_groups = optimizer.param_groups
        self.optimizer = SimpleNamespace(optimizer=optimizer, param_groups=self.param_groups)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.optimizer.zero_grad(set_to_none)


KINDS: dict[str, tuple[Callable[[Any], Optimizer], set[str]]] = {
    "Adadelta": (torch.optim.Adadelta, {"square_avg", "acc_delta"}),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1), {"sum"}),
    "Adamax": (torch.optim.Adamax, set()),
    "ASGD": (lambda p: torch.optim.ASGD(p, weight_decay=0.01), set()),
    "NAdam": (torch.optim.NAdam, {"exp_avg_sq"}),
    "RAdam": (lambda p: torch.optim.RAdam(p, foreach=True), {"exp_avg_sq"}),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True), {"square_avg"}),
    "Rprop": (torch.optim.Rprop, set()),
    "one's own": (Squares, {"energy"}),
    "wrapped": (lambda p: Wrapper(torch.optim.AdamW(p)), {"exp_avg_sq"}),
}
"""Name -> what makes the optimizer, and its slots that hold squares."""


def remembered(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    inner = optimizer.optimizer.optimizer if isinstance(optimizer, Wrapper) else optimizer
    return dict(inner.state.get(parameter, {}))


Divided = tuple[nn.Module, Sequence[nn.Module], Handle]


@pytest.fixture(scope="module")
def untrained() -> Divided:
    module = LeNet()
    return module, *split_module(module, NETWORKS["lenet"][1](), 2)


@pytest.fixture
def divided(untrained: Divided) -> Divided:
    """Networks of the test's own: others train theirs until the weights are no numbers."""
    return copy.deepcopy(untrained)


@pytest.mark.parametrize("kind", KINDS)
def test_each_slot_goes_like_the_weights_or_their_square(kind: str, divided: Divided) -> None:
    torch.manual_seed(0)
    build, squares = KINDS[kind]
    (module, parts, handle), draw = divided, NETWORKS["lenet"][1]
    optimizers = [build(list(part.parameters())) for part in parts]
    for part, optimizer, steps in zip(parts, optimizers, (3, 2), strict=True):
        learn(part, optimizer, draw, steps)
    target = build(list(module.parameters()))
    handle.merge_optimizer(optimizers, target)
    module.load_state_dict(handle.merge())
    found = remembered(target, module.get_parameter("fc2.weight"))
    theirs = [remembered(o, part.get_parameter("fc2.weight")) for o, part in zip(optimizers, parts, strict=True)]
    assert found.keys() == theirs[1].keys()
    for slot, value in found.items():
        if isinstance(value, Tensor) and value.ndim:
            expected = torch.cat([state[slot] for state in theirs], 1) / (4 if slot in squares else 2)
            torch.testing.assert_close(value, expected, msg=slot)
        else:
            assert value == theirs[1][slot], slot  # of the part with the fewest steps
            assert type(value) is type(theirs[1][slot])
    learn(module, target, draw, steps=1)


def test_optimizers_of_other_parameters_are_refused(divided: Divided) -> None:
    """They would be merged to nothing."""
    module, parts, handle = divided
    mine, other, target = (torch.optim.SGD(each.parameters()) for each in (*parts, module))
    masters = torch.optim.SGD([parameter.detach().clone() for parameter in parts[1].parameters()])
    for optimizers, merged, what in (
        ([other, mine], target, "optimizer 0"),
        ([mine, masters], target, "optimizer 1"),
        ([mine, other], torch.optim.SGD(LeNet().parameters()), "the target"),
    ):
        with pytest.raises(UsageError, match=f"{what} has none of its network's parameters: it is another network's"):
            handle.merge_optimizer(optimizers, merged)


def test_what_has_no_element_for_each_weight_starts_anew(divided: Divided) -> None:
    (module, parts, handle), draw = divided, NETWORKS["lenet"][1]
    optimizers = [torch.optim.Adafactor(part.parameters()) for part in parts]
    for part, optimizer in zip(parts, optimizers, strict=True):
        learn(part, optimizer, draw)
    target = torch.optim.Adafactor(module.parameters())
    with pytest.warns(
        UserWarning, match="Adafactor: col_var, row_var has no element for each weight, and starts again"
    ):
        handle.merge_optimizer(optimizers, target)
    assert not target.state.get(module.get_parameter("fc1.weight"))
    ours = [o.state[part.get_parameter("fc2.bias")] for o, part in zip(optimizers, parts, strict=True)]
    mean = (ours[0]["variance"] + ours[1]["variance"]) / 2
    torch.testing.assert_close(target.state[module.get_parameter("fc2.bias")]["variance"], mean)
    learn(module, target, draw, steps=1)


def test_merging_changes_no_optimizer_of_a_part_and_calls_no_hook(divided: Divided) -> None:
    (module, parts, handle), draw = divided, NETWORKS["lenet"][1]
    ours, theirs = [torch.optim.AdamW(part.parameters()) for part in parts], torch.optim.AdamW(module.parameters())
    for part, optimizer in zip(parts, ours, strict=True):
        learn(part, optimizer, draw, steps=1)
    before, calls = copy.deepcopy(ours[0].state_dict()), list[int]()
    theirs.register_step_post_hook(lambda *_: calls.append(1))
    weight = module.get_parameter("fc1.weight").clone()
    handle.merge_optimizer(ours, theirs)
    assert not calls
    assert torch.equal(module.get_parameter("fc1.weight"), weight)
    torch.testing.assert_close(ours[0].state_dict()["state"], before["state"])


def test_states_that_deepspeed_keeps_in_files_are_refused() -> None:
    class Stage3:
        __module__ = "deepspeed.runtime.zero.stage3"
        fp16_partitioned_groups: tuple[()] = ()
        swap_optimizer = True
        optimizer = torch.optim.SGD(LeNet().parameters())

    _, handle = split_module(LeNet(), torch.randn(2, 1, 20, 20), everywhere=True)
    with pytest.raises(UsageError, match=r"in files, where it can't be merged; offload it to the CPU instead"):
        handle.merge_optimizer([Stage3(), Stage3()], Stage3())  # type: ignore[list-item,arg-type]
