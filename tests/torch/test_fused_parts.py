"""Parts computed at once, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.errors import UsageError
from onnxpart.torch import split_module
from tests.networks.forms import FORMS, LABELS, WORDS, Net, X
from tests.networks.plain import CLASSES, GPT2

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
K = 2


def step(module: nn.Module, loss: Callable[[Any], Tensor], x: Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        loss(module(x)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def group_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


BUILT: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": FORMS["convolutions"],
    "gpt2": (GPT2, WORDS % CLASSES),
    "group_norms": (group_norms, torch.randn(len(LABELS), 3, 8, 8).to(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize(("build", "x"), BUILT.values(), ids=BUILT)
def test_a_loop_trains_them_as_it_does_one_by_one(build: Callable[[], nn.Module], x: Tensor) -> None:
    """Batch norms update their statistics, and attention its heads, each part for itself."""
    torch.manual_seed(0)
    module, target = build(), LABELS
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    parts, handle = split_module(module, x, K)
    fused = handle.fused()
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in parts[0].named_parameters()]
    step(fused, lambda y: torch.stack([F.cross_entropy(each, target) for each in y]).sum(), x)
    merged = handle.merge(fused.states())
    for part in parts:
        step(part, lambda y: F.cross_entropy(y, target), x)
    for name, tensor in handle.merge().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    fused.eval(), [part.eval() for part in parts]
    torch.testing.assert_close(fused(x), torch.stack([part(x) for part in parts]), rtol=1e-3, atol=1e-3)


def test_each_draws_its_own_and_answers_as_the_module() -> None:
    torch.manual_seed(0)
    build, example = FORMS["returns a loss, a data class"]
    module = build()
    module.c = nn.Sequential(nn.Dropout(0.5), module.c)  # type: ignore[assignment,arg-type]
    _, handle = split_module(module, example, K)
    fused = handle.fused()
    assert fused(**example).logits.shape == (K, 6, 3)
    assert fused(**example).loss.shape == (K,)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    assert not torch.equal(*fused(X, example["labels"]).logits)
    assert torch.equal(*fused.eval()(X, example["labels"]).logits)


def test_parts_that_differ_are_refused() -> None:
    _, handle = split_module(Net(), X, K, shares=[3, 1])
    with pytest.raises(UsageError, match="parts 0 and 1 differ in more than their weights"):
        handle.fused()
