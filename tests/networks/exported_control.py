"""PyTorch networks with loops and branches, as people write them: scripted, or with torch's own control flow."""

import io
import warnings
from functools import cache

import onnx
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan, while_loop

from tests.networks.exported import convert

FEATURES, SIZE = 5, 6


class Layers(nn.Module):
    """An input layer, one between hidden units, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.size = SIZE
        self.i, self.h, self.o = nn.Linear(FEATURES, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)


class Stacked(Layers):
    """A recurrent network over [T, N, 5] that appends its states to a list."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.zeros(x.size(1), self.size)
        states: list[Tensor] = []
        for t in range(x.size(0)):
            h = torch.tanh(self.i(x[t]) + self.h(h))
            states.append(h)
        return self.o(torch.stack(states)), self.o(states[-1])


class Unbound(Layers):
    """The same over a list of slices."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), self.size)
        states: list[Tensor] = []
        for part in x.unbind(0):
            h = torch.tanh(self.i(part) + self.h(h))
            states.append(h)
        return self.o(torch.stack(states, 1))


class Joined(Layers):
    """The same over slices of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, x.size(1), self.size)
        states: list[Tensor] = []
        for t in range(x.size(0)):
            h = torch.tanh(self.i(x[t : t + 1]) + self.h(h))
            states.append(h)
        return self.o(torch.cat(states, 0))


class Cells(Layers):
    """An LSTM cell, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(FEATURES, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(1), self.size), torch.zeros(x.size(1), self.size)
        for t in range(x.size(0)):
            h, c = self.cell(x[t], (h, c))
        return self.o(h)


class Until(Layers):
    """A layer that is repeated until its units say so."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.i(x))
        n = 0
        while n < 4 and bool(h.sum() < 1000.0):
            h = torch.tanh(self.h(h))
            n += 1
        return self.o(h)


class Branched(Layers):
    """A branch that the input decides."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.i(x))
        if bool(x.sum() > 0):  # noqa: SIM108  the scripted form
            h = torch.relu(self.h(h))
        else:
            h = -h
        return self.o(h)


class Cond(Layers):
    """`torch.cond`."""

    def forward(self, x: Tensor) -> Tensor:
        def then(h: Tensor) -> Tensor:
            return torch.relu(self.h(h))

        h = torch.tanh(self.i(x))
        return self.o(torch.cond(x.sum() > 0, then, torch.neg, (h,)))


class Scan(Layers):
    """torch's scan over [T, N, 5]."""

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.i(part) + self.h(h))
            return h, h.clone()

        return self.o(scan(step, torch.zeros(x.size(1), SIZE), x)[1])


class While(Layers):
    """torch's while loop."""

    def forward(self, x: Tensor) -> Tensor:
        def body(n: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return n + 1, torch.tanh(self.h(h))

        h = torch.tanh(self.i(x))
        return self.o(while_loop(lambda n, h: n < 3, body, (torch.tensor(0), h))[1])


SCRIPTED: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "stacked": (Stacked, (4, 2, FEATURES)),
    "unbound": (Unbound, (4, 2, FEATURES)),
    "joined": (Joined, (4, 2, FEATURES)),
    "cells": (Cells, (4, 2, FEATURES)),
    "until": (Until, (4, FEATURES)),
    "branched": (Branched, (4, FEATURES)),
}
TRACED: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "cond": (Cond, (4, FEATURES)),
    "scan": (Scan, (4, 2, FEATURES)),
    "while": (While, (4, FEATURES)),
}


def export(name: str, opset: int = 17) -> onnx.ModelProto:
    """A scripted network by the TorchScript exporter, with symbolic axes but the last; the others by dynamo, at 20."""
    return onnx.load_from_string(_content(name, 20 if name in TRACED else opset))


@cache
def _content(name: str, opset: int) -> bytes:
    """The network as a file, which takes seconds to export."""
    torch.manual_seed(0)
    build, shape = {**SCRIPTED, **TRACED}[name]
    if name in TRACED:
        return convert(build().eval(), (torch.randn(shape),), "dynamo", opset, dynamic=False).SerializeToString()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters deprecate one another
        network = torch.jit.script(build().eval())
        torch.onnx.export(
            network, (torch.randn(shape),), file, opset_version=opset, dynamo=False, input_names=["x"],
            dynamic_axes={"x": dict(enumerate("TN" if len(shape) > 2 else "N"))},
        )  # fmt: skip
    return file.getvalue()
