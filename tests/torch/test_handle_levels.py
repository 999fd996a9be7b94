"""Parts of a module merge to fewer and larger ones, which train on, before they merge into the module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxpart import arrays
from onnxpart.errors import UsageError
from onnxpart.torch import Handle, split_module
from onnxpart.torch.exporter import trainable_graph
from tests.networks.plain import CLASSES, NETWORKS, LeNet, deviation, learn

torch.set_num_threads(1)  # several threads are slow where other work shares the cores


class Gained(nn.Module):
    """A layer of a single unit, and a gain, of which every part has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(1, 8)
        self.gain, self.head = nn.Parameter(torch.ones(())), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.two(torch.tanh(self.one(torch.tanh(self.a(x))) * self.gain))))
        return y


Kind = type[torch.optim.Adam] | type[torch.optim.SGD]
COPIES = ["gain__part0", "gain__part1", "one.bias__part0", "one.bias__part1"]


def draw() -> Tensor:
    return torch.randn(8, 4)


def trained(parts: Sequence[nn.Module], kind: Kind = torch.optim.Adam) -> list[Any]:
    """The optimizers that trained networks like `Gained`, the first the longest."""
    options: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizers = [kind([p for p in part.parameters() if p.requires_grad], lr=0.05, **options) for part in parts]
    for p, (part, optimizer) in enumerate(zip(parts, optimizers, strict=True)):
        learn(part, optimizer, draw, steps=len(parts) - p)
    return optimizers


def assert_drafted(handle: Handle, parts: Sequence[nn.Module]) -> None:
    """The handle has its parts as ONNX models, too, with the weights that they start from."""
    for model, part in zip(handle.split.parts, parts, strict=True):
        held = arrays(model)
        for name, tensor in part.state_dict().items():
            assert np.array_equal(held[name], tensor.numpy()), name


def test_each_level_is_the_mean_of_the_one_before() -> None:
    torch.manual_seed(0)
    build, tokens = NETWORKS["gpt2"]
    module = build()
    parts, handle = split_module(module, tokens(), 4)
    for k in (2, None):
        for part in parts:
            learn(part, torch.optim.SGD(part.parameters(), lr=0.1), tokens)
        if k is None:
            break
        larger, above = handle.merge_to(k)
        for p, part in enumerate(larger):
            assert deviation(part, parts[2 * p : 2 * p + 2], tokens()) < 1e-5
            assert dict(part.named_parameters()).keys() == dict(parts[0].named_parameters()).keys()
        parts, handle = larger, above
    assert deviation(handle.whole(), parts, tokens()) < 1e-5
    module.load_state_dict(handle.merge())
    handle.duplicate(module)  # for each of the first four
    assert deviation(module, parts, tokens()) < 1e-5


def test_what_every_part_has_its_own_of_is_in_a_larger_part_as_often() -> None:
    torch.manual_seed(0)
    parts, handle = split_module(Gained(), draw(), 4)
    trained(parts)
    larger, above = handle.merge_to(2)
    assert_drafted(above, larger)
    assert [name for name in larger[0].state_dict() if "__part" in name] == COPIES
    for p, part in enumerate(larger):
        assert deviation(part, parts[2 * p : 2 * p + 2], draw()) < 1e-5
    for name, tensor in handle.merge().items():
        torch.testing.assert_close(above.merge()[name], tensor)
    trained(larger)
    assert deviation(above.whole(), larger, draw()) < 1e-5
    gains = [part.state_dict()[name] for part in larger for name in COPIES[:2]]
    torch.testing.assert_close(above.merge()["gain"], torch.stack(gains).mean())


def test_gradients_of_a_larger_part_are_those_of_the_parts_in_it() -> None:
    """A reduction's weights are divided by their number, and the gradients of all others are."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 20, 20)
    parts, handle = split_module(LeNet(), x, 4)
    larger, above = handle.merge_to(2)
    for part in (*parts, *larger):
        part.eval()(x).sum().backward()
    for p, part in enumerate(larger):
        own, theirs = (dict(each.named_parameters()) for each in (part, parts[2 * p]))
        torch.testing.assert_close(
            own["fc2.weight"].grad[:, : theirs["fc2.weight"].shape[1]], theirs["fc2.weight"].grad
        )
        torch.testing.assert_close(own["fc2.bias"].grad, theirs["fc2.bias"].grad)
        for name in ("conv1.weight", "conv2.weight", "fc1.weight", "fc1.bias"):
            size = tuple(map(slice, theirs[name].shape))
            torch.testing.assert_close(own[name].grad[size], theirs[name].grad / 2)
    assert above.exact


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_what_optimizers_remember_goes_the_same_way_level_by_level(kind: Kind) -> None:
    torch.manual_seed(0)
    module = Gained()
    parts, handle = split_module(module, draw(), 4)
    optimizers = trained(parts, kind)
    larger, above = handle.merge_to(2)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    targets = [kind(part.parameters(), **options) for part in larger]
    handle.merge_optimizers_to(above, optimizers, targets)
    for p, (part, target) in enumerate(zip(larger, targets, strict=True)):
        steps = {float(state.get("step", 3 - 2 * p)) for state in target.state.values()}
        assert len(target.state) == len(list(part.parameters()))
        assert steps == {3 - 2 * p}  # of the one that took the fewest
    slot, power = ("momentum_buffer", 1) if kind is torch.optim.SGD else ("exp_avg_sq", 2)
    heads = [o.state[part.get_parameter("head.weight")][slot] for o, part in zip(optimizers, parts, strict=True)]
    found = targets[0].state[larger[0].get_parameter("head.weight")][slot]
    torch.testing.assert_close(found, torch.cat(heads[:2], 1) / 2**power)
    at_once, by_level = kind(module.parameters(), **options), kind(module.parameters(), **options)
    handle.merge_optimizer(optimizers, at_once)
    above.merge_optimizer(targets, by_level)
    assert by_level.state.keys() == set(module.parameters())
    for parameter, state in at_once.state.items():
        for name, value in state.items():
            torch.testing.assert_close(by_level.state[parameter][name], value)
    for part, target in zip(larger, targets, strict=True):
        learn(part, target, draw, steps=1)


def test_what_is_frozen_stays_and_other_weights_between_parts_do_on_request() -> None:
    torch.manual_seed(0)
    module = LeNet()
    module.conv2.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    parts, handle = split_module(module, torch.randn(2, 1, 20, 20), 4)
    for part in parts:
        part.get_parameter("fc2.bias").requires_grad_(False)
    for keep in ((), ["fc1.weight"]):
        larger, above = handle.merge_to(2, keep=keep)
        for p, part in enumerate(larger):
            frozen = {name for name, parameter in part.named_parameters() if not parameter.requires_grad}
            assert frozen == {"conv2.weight", "conv2.bias", "fc2.bias"}
            (index, _), *_ = above.split.plan.by_name["fc1.weight"].pieces(p)
            same = torch.equal(part.get_parameter("fc1.weight"), before["fc1.weight"][index])
            assert same == bool(keep)
            learn(
                part, torch.optim.SGD([q for q in part.parameters() if q.requires_grad], lr=0.1), NETWORKS["lenet"][1]
            )
        merged = above.merge()
        for name in ("conv2.weight", "conv2.bias", "fc2.bias"):
            assert torch.equal(merged[name], before[name]), name
    with pytest.raises(UsageError, match=r"'fc2\.weight' has no weights between parts"):
        handle.merge_to(2, keep=["fc2.weight"])


def test_larger_parts_of_a_large_module_are_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its weights are read where they are; what a handle holds must not read those of parts that are gone."""
    monkeypatch.setattr(trainable_graph, "LARGE", 0)
    module = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    parts, handle = split_module(module, torch.randn(4, 8), 4)
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), lambda: torch.randn(4, 8))
    torch.save(handle.merge_to(2), tmp_path / "level.pt")
    larger, above = torch.load(tmp_path / "level.pt", weights_only=False)
    assert deviation(above.whole(), parts, torch.randn(4, 8)) < 1e-5
    assert above.parts[1] is larger[1]
    assert_drafted(above, larger)


def test_levels_that_are_not_possible() -> None:
    parts, handle = split_module(Gained(), draw(), 4)
    with pytest.raises(UsageError, match=r"4 parts can't be merged into 3; choose 2\."):
        handle.merge_to(3)
    other: Handle = replace(handle, mesh=object())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="parts of several processes merge into the module only; give every rank all"):
        other.merge_to(2)
    larger, above = handle.merge_to(2)
    with pytest.raises(UsageError, match="4 optimizers of 4 parts, and 1 of 2 larger ones; give one per part"):
        handle.merge_optimizers_to(above, trained(parts), trained(larger[:1]))
