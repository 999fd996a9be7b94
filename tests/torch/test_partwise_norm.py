"""Norms that normalise each part's units apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onnxpart.torch.partwise_norm import PartwiseNorm, mixed_axis

UNITS = (torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5, 6]))


def test_each_part_is_normalised_as_if_alone() -> None:
    norm = nn.LayerNorm(7)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    found = PartwiseNorm(norm, UNITS, -1)(x)
    for here in UNITS:
        alone = nn.LayerNorm(len(here))
        alone.load_state_dict({name: value[here] for name, value in norm.state_dict().items()})
        torch.testing.assert_close(found[:, here], alone(x[:, here]))


def test_parameters_are_the_norms_own() -> None:
    norm = nn.LayerNorm(7)
    partwise = PartwiseNorm(norm, UNITS, -1)
    assert dict(partwise.named_parameters()) == dict(norm.named_parameters())
    assert partwise.state_dict().keys() == norm.state_dict().keys()


@pytest.mark.parametrize(
    ("module", "axis"),
    [
        (nn.LayerNorm(6), -1),
        (nn.RMSNorm(6), -1),
        (nn.GroupNorm(1, 6), 1),
        (nn.Linear(6, 6), None),
        (nn.BatchNorm1d(6), None),
        (nn.PReLU(6), None),
        (nn.ReLU(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_axis_that_a_norm_mixes(module: nn.Module, axis: int | None) -> None:
    assert mixed_axis(module) == axis
