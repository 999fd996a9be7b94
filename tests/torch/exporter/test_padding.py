"""The row of an embedding that stands for padding isn't trained in parts either."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from onnxpart.torch import import_onnx, split_module
from onnxpart.torch.exporter.export import exported
from onnxpart.torch.exporter.padding import padding_of
from onnxpart.torch.exporter.program import load_program
from onnxpart.torch.training.objective import Objective
from tests.networks.forms import WORDS, Layers

torch.set_num_threads(1)  # several threads are slow where other work shares the cores


class Padded(Layers):
    """An embedding whose row of padding is the last."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8, padding_idx=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.c(self.b(self.words(tokens)).tanh()).mean((1, 2))


def trained(part: nn.Module, name: str = "words.weight") -> list[bool]:
    """Which rows of an embedding [.., row, unit] have a gradient."""
    part.zero_grad()
    part(WORDS).square().sum().backward()
    gradient = part.get_parameter(name).grad
    assert gradient is not None
    return (gradient.abs().sum(-1) > 0).reshape(-1, 7).any(0).tolist()


def test_parts_larger_ones_and_all_at_once_leave_it_as_it_is() -> None:
    torch.manual_seed(0)
    rows = [True] * 6 + [False]
    parts, handle = split_module(Padded(), WORDS, 4)
    (larger, *_), above = handle.merge_to(2)
    for network in (*parts, handle.fused(), larger, above.whole()):
        assert trained(network) == rows
    layer = parts[0].get_submodule("words")
    assert isinstance(layer, nn.Embedding)
    assert layer.padding_idx == 6


class Narrow(Padded):
    """Of the embedding's single unit the whole has a copy for each part."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.d = nn.Embedding(7, 1, padding_idx=6), nn.Linear(1, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.c(self.b(self.d(self.words(tokens).tanh()).tanh())).mean((1, 2))


def test_copies_of_an_embedding_leave_it_as_it_is() -> None:
    torch.manual_seed(0)
    _, handle = split_module(Narrow(), WORDS, 2)
    whole = handle.whole()
    for p in range(2):
        assert trained(whole, f"words.weight__part{p}") == [True] * 6 + [False]


def test_it_is_in_the_file_and_stays_there(tmp_path: Path) -> None:
    """Also of a program, and of the model that is cut down to the value that a loss reads."""
    module = Padded()
    assert padding_of(nn.ModuleDict({"net": module})) == {"net.words.weight": 6}
    torch.export.save(torch.export.export(module, (WORDS,)), tmp_path / "padded.pt2")
    for model in (exported(module, WORDS, "dynamo").model(), load_program(tmp_path / "padded.pt2")):
        (output,) = (value.name for value in model.graph.output)
        for each in (model, Objective("mse", output, output).cut(model)):
            assert trained(import_onnx(each))[-1] is False
