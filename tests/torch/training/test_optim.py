"""Schedules, and the way of an optimizer's state into arrays and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from onnxpart import OptimizerState
from onnxpart.errors import OnnxpartError
from onnxpart.torch.training import optim
from onnxpart.torch.training.settings import OptimizerKind, ScheduleKind, Settings


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 6),
        ("cosine", [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]),
        ("step", [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("wsd", [1, 1, 1, 1, 1, 5 / 6]),
    ],
)
def test_rates(schedule: ScheduleKind, expected: list[float]) -> None:
    found = islice(optim.rates(Settings(1, lr=1.0, schedule=schedule), 6), 6)
    assert list(found) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_a_rate_warms_up(schedule: ScheduleKind) -> None:
    plain = list(islice(optim.rates(Settings(1, lr=1.0, schedule=schedule), 20), 20))
    warm = list(islice(optim.rates(Settings(1, lr=1.0, schedule=schedule, warmup=0.2), 20), 20))
    assert warm == pytest.approx([rate * min((step + 1) / 4, 1) for step, rate in enumerate(plain)])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("axes", [0, 1])
def test_weights_decay_and_vectors_do_not(kind: OptimizerKind, axes: int) -> None:
    stacked = (3,) * axes
    shapes = {"weight": (4, 2), "bias": (4,), "scale": ()}
    tensors = {name: torch.ones((*stacked, *shape), requires_grad=True) for name, shape in shapes.items()}
    optimizer = optim.optimizer(Settings(1, kind, lr=0.1, weight_decay=0.5), tensors.values(), axes)
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    assert tensors["weight"].max() < 1
    assert all(torch.equal(tensors[name], torch.ones_like(tensors[name])) for name in ("bias", "scale"))


@pytest.mark.parametrize(
    ("kind", "plain"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_a_fused_step_is_torchs_own(kind: OptimizerKind, plain: Callable[..., torch.optim.Optimizer]) -> None:
    def parameters() -> list[torch.Tensor]:
        drawn = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=drawn).requires_grad_() for shape in ((5, 3), (2, 2))]

    fused, expected = parameters(), parameters()
    optimizer = optim.optimizer(Settings(1, kind, lr=0.1, weight_decay=0.01), fused)
    momentum = {"momentum": 0.9} if kind == "sgd" else {}
    reference = plain(expected, lr=0.1, weight_decay=0.01, foreach=False, **momentum)
    for step in range(4):
        for one, other in zip(fused, expected, strict=True):
            one.grad, other.grad = one.detach().sin() + step, other.detach().sin() + step
        optimizer.step()
        reference.step()
    assert optimizer.defaults["fused"]
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_cycle_rises_and_falls() -> None:
    found = list(optim.rates(Settings(1, lr=1.0, schedule="onecycle"), 20))
    top = found.index(max(found))
    assert found[0] == pytest.approx(1 / 25)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert found[-1] < 1e-3


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_state_goes_into_arrays_and_back(kind: OptimizerKind) -> None:
    """After the way out and back the next step is the same."""
    settings, results = Settings(1, kind, lr=0.1), []
    first = nn.Linear(3, 2)
    trained = optim.optimizer(settings, first.parameters())
    for _ in range(2):
        first(torch.ones(1, 3)).square().sum().backward()
        trained.step()
    state = optim.to_state(kind, 2, optim.slots(trained, dict(first.named_parameters())), {})
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    other, named = optim.optimizer(settings, second.parameters()), dict(second.named_parameters())
    optim.set_slots(other, named, optim.from_state(state, kind, named), state.step)
    for module, optimizer in ((first, trained), (second, other)):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        results.append(module.weight.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (OptimizerState("adam", 1, {"w": {"exp_avg": np.zeros(2)}}), "is that of adam, not sgd"),
        (
            OptimizerState("sgd", 1, {"w": {"momentum_buffer": np.zeros(3)}}),
            r"'w' has shape \(3,\), the parameter \(2,\)",
        ),
        (OptimizerState("sgd", 1, {"v": {"momentum_buffer": np.zeros(2)}}), "state of 'v' fits no parameter"),
    ],
)
def test_a_state_that_does_not_fit(state: OptimizerState, sentence: str) -> None:
    with pytest.raises(OnnxpartError, match=sentence):
        optim.from_state(state, "sgd", {"w": torch.zeros(2)})


def test_something_must_be_trained() -> None:
    with pytest.raises(OnnxpartError, match="no weights to train"):
        optim.optimizer(Settings(1), [torch.zeros(2)])
