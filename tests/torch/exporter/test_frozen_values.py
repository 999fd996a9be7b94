"""Numbers that a module takes out of its inputs are found while it is traced; sizes are none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch import export, import_onnx
from onnxpart.torch.exporter.frozen_values import Watch

X = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
TAKEN: dict[str, Callable[[Tensor], object]] = {
    "a branch": lambda x: x if x.sum() > 0 else -x,
    "a branch in a view": lambda x: x if x.reshape(1, 4)[:, 1:].T[0] > 0 else -x,
    "a rare branch": lambda x: x * 0 if x.abs().max() > 1000 else x,
    "a number": lambda x: x * x.max().item(),
    "an index": lambda x: x[int(x.argmax())] if x.numel() < 2 else x[:, int(x[0, 0])],
    "a count": lambda x: torch.zeros(int((x > 0).sum())),
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.detach().numpy(),
    "a comparison": lambda x: torch.equal(x, x.T),
    "in place": lambda x: bool(torch.zeros(2, 2).add_(x).any()),
    "of a part": lambda x: float(torch.cat([x.new_zeros(2, 2), x.split(1)[0]]).mean()),
}
LEFT: dict[str, Callable[[Tensor], object]] = {
    "a size": lambda x: x.view(int(x.shape[0]), -1) if x.shape[1] > 1 else x,
    "a length": lambda x: [x[i] for i in range(len(x))],
    "a constant": lambda x: x * torch.arange(3).max().item(),
    "a constant of its size": lambda x: x * float(torch.ones_like(x).sum()),
    "where": lambda x: torch.where(x > 0, x, -x),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_out_is_found(name: str) -> None:
    with Watch((X,)) as watch:
        TAKEN[name](X)
    assert watch.place.startswith("test_frozen_values.py, line ")


@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_depend_on_values_is_left(name: str) -> None:
    with Watch([{"x": X}]) as watch:
        LEFT[name](X)
    assert not watch.place


class Rare(nn.Module):
    """A branch that neither the example nor its opposite takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.a(x)
        return h * 0 if x.abs().max() > 1000 else h


class Checked(Rare):
    """A branch that depends on sizes alone."""

    def forward(self, x: Tensor) -> Tensor:
        if int(x.shape[1]) != 4:
            raise ValueError
        h: Tensor = self.a(x)
        return h


class Scaled(Rare):
    """A number that the newer exporter can write."""

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.a(x)
        return h * x.max().item()


class Steps(nn.Module):
    """A loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.RNNCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        result: Tensor = self.last(h)
        return result


@pytest.mark.parametrize("exporter", ["auto", "torchscript", "dynamo"])
def test_a_branch_on_values_is_refused(tmp_path: Path, exporter: str) -> None:
    reason = "data-dependent" if exporter == "dynamo" else r"test_frozen_values.py, line \d+ the module takes a number"
    with pytest.raises(OnnxpartError, match=reason):
        export(Rare(), torch.randn(2, 4), tmp_path / "m.onnx", exporter=exporter)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [Checked(), Scaled()])
def test_others_are_exported(tmp_path: Path, module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(module, torch.randn(2, 4), tmp_path / "m.onnx")
    x = torch.randn(5, 4)
    torch.testing.assert_close(import_onnx(tmp_path / "m.onnx").eval()(x), module(x))


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_loop_over_time_is_for_its_length(tmp_path: Path, exporter: str) -> None:
    module = Steps()
    export(module, torch.randn(2, 5, 4), tmp_path / "m.onnx", exporter=exporter)
    imported, x = import_onnx(tmp_path / "m.onnx").eval(), torch.randn(3, 5, 4)
    torch.testing.assert_close(imported(x), module(x))
    for length in (4, 7):
        with pytest.raises(
            OnnxpartError, match=rf"'x' has size {length} along axis 1, but the model was exported for 5; feed"
        ):
            imported(torch.randn(3, length, 4))
        with pytest.raises(OnnxpartError, match="along axis 1"):
            imported(x=torch.randn(3, length, 4))
