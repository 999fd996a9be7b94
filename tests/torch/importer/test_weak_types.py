"""The types of what is computed where a network's parameters alone are cast."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch import split_module
from onnxpart.torch.importer import builder
from onnxpart.torch.importer.operators.runtime import cast_like
from onnxpart.torch.interface import results
from tests.networks.forms import FORMS, arguments

FORMS_THAT_MAKE_CONSTANTS = [
    "attention",
    "a transformer and a mask",
    "a recurrent layer",
    "a recurrent layer in both directions",
    "packed sequences",
    "stochastic depth",
    "returns a loss, a data class",
    "returns a loss alone",
    "returns a loss, as transformers do",
]
"""Forms whose parts fail, or give another type, unless what they make of constants follows their parameters."""


def _halved(value: object) -> object:
    """Examples in half types."""
    if isinstance(value, Tensor):
        return value.bfloat16() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _halved(each) for name, each in value.items()}
    return tuple(map(_halved, value)) if isinstance(value, tuple) else value


def _results(module: nn.Module, examples: object) -> list[Tensor]:
    torch.manual_seed(1)
    args, named = arguments(examples)
    return [tensor for _, tensor in results(module(*args, **named))]


def _halve(network: nn.Module) -> nn.Module:
    """Cast the parameters alone."""
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16()
    return network


def _networks(form: str) -> tuple[nn.Module, nn.Module, object]:
    """A module, and a part of all of it, whose parameters alone are cast, and examples in their type."""
    build, examples = FORMS[form]
    torch.manual_seed(0)
    module = build()
    (part,), _ = split_module(module, examples, 1)
    return _halve(module), _halve(part), _halved(examples)


@pytest.mark.parametrize("form", FORMS_THAT_MAKE_CONSTANTS)
def test_a_part_whose_parameters_alone_are_cast_gives_what_the_module_gives(form: str) -> None:
    module, part, examples = _networks(form)
    wanted, found = (_results(network, examples) for network in (module, part))
    assert [each.dtype for each in found] == [each.dtype for each in wanted]
    assert torch.bfloat16 in {each.dtype for each in found}
    sum(each.float().sum() for each in found).backward()  # type: ignore[union-attr]
    assert {p.grad.dtype for p in part.parameters() if p.grad is not None} == {torch.bfloat16}
    for ours, theirs in zip(_results(part.eval(), examples), _results(module.eval(), examples), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("form", FORMS_THAT_MAKE_CONSTANTS)
def test_it_is_seen_that_constants_keep_their_types(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "follow_types", lambda *_: None)
    module, part, examples = _networks(form)
    wanted = [each.dtype for each in _results(module, examples)]
    found = None
    with contextlib.suppress(OnnxpartError):  # a node can't be computed
        found = [each.dtype for each in _results(part, examples)]
    assert found != wanted


class Places(nn.Module):
    """Adds a constant in the type of its input, and returns the sum, which no parameter meets, too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        placed = x + torch.linspace(0, 1, 4, dtype=x.dtype)
        return self.out(self.hidden(placed).relu()), placed


def test_a_constant_takes_the_type_of_an_input() -> None:
    module, x = Places(), torch.randn(5, 4)
    (part,), _ = split_module(module, x, 1)
    found, wanted = (_results(_halve(network), x.bfloat16()) for network in (part, module))
    assert [each.dtype for each in found] == [torch.bfloat16] * 2
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.03)


def test_a_part_in_one_type_has_no_casts_to_make() -> None:
    build, examples = FORMS["a transformer and a mask"]
    module = build().eval()
    (part,), _ = split_module(module, examples, 1)
    part.eval()
    for ours, theirs in zip(_results(part, examples), _results(module, examples), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        types = [[each.dtype for each in _results(network, examples)] for network in (part, module)]
    assert types[0] == types[1]


def test_values_are_cast_to_the_type_of_others() -> None:
    half, least = torch.ones(1, dtype=torch.bfloat16), torch.finfo(torch.float32).min
    mask = torch.tensor([0.0, least, -torch.inf, torch.inf])
    cast = cast_like(mask, half)
    assert cast.dtype == torch.bfloat16
    assert cast.tolist() == [0, torch.finfo(torch.bfloat16).min, -torch.inf, torch.inf]
    assert cast_like(cast, mask).tolist() == cast.tolist()
    counts = torch.arange(3)
    assert cast_like(mask, mask[:1]) is mask
    assert cast_like(counts, half) is counts
    assert cast_like(mask, counts) is mask
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_like(mask, half) is mask
    assert cast_like(mask[:2].half(), half).dtype == torch.bfloat16
