"""Recurrent PyTorch networks as people write them, with what they are exported on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.networks.exported import convert

SEQUENCE = torch.ones(2, 5, 6)
TOKENS = torch.zeros(2, 5, dtype=torch.int64)
HIDDEN = 8


class Classifier(nn.Module):
    """The last step of a stack, batch first or not."""

    def __init__(self, cell: type[nn.RNNBase], batch_first: bool = True, **settings: int | str | bool) -> None:
        super().__init__()
        self.last = (slice(None), -1) if batch_first else (-1,)
        self.body = cell(6, HIDDEN, batch_first=batch_first, **settings)
        self.head = nn.Linear(HIDDEN * (2 if settings.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][self.last])


class TextClassifier(nn.Module):
    """The last states of both directions over an embedding."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(2 * HIDDEN, 3)
        self.body = cell(6, HIDDEN, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.body(self.embed(tokens))[1]
        h = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([h[0], h[1]], 1))


class Translator(nn.Module):
    """A stacked encoder, and a decoder that starts from its last states."""

    def __init__(self, cell: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(HIDDEN, 11)
        self.encoder = cell(6, HIDDEN, num_layers=layers, batch_first=True)
        self.decoder = cell(6, HIDDEN, num_layers=layers, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        state = self.encoder(self.embed(source))[1]
        return self.head(self.decoder(self.embed(target), state)[0])


class Continued(nn.Module):
    """First states from outside, or learned."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(6, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 3)
        self.first = nn.Parameter(torch.randn(1, 1, HIDDEN)) if learned else None

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        if self.first is not None:
            first = self.first.expand(-1, x.shape[0], -1).contiguous()
            states = first, torch.tanh(first)
        return self.head(self.body(x, states)[0])


class Cells(nn.Module):
    """A loop over time, from zeros."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell, self.head = cell(6, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Packed(nn.Module):
    """Sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(6, HIDDEN, batch_first=True, bidirectional=True), nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = self.body(pack_padded_sequence(x, lengths, batch_first=True))[0]
        return self.head(pad_packed_sequence(packed, batch_first=True)[0])


class Recognizer(nn.Module):
    """Columns of a convolution's image as a sequence, read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 8, 3, (2, 1), 1), nn.GRU(8 * 4, HIDDEN, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        columns = torch.relu(self.conv(x)).flatten(1, 2).permute(2, 0, 1)
        return self.head(self.body(columns)[0])


Build = Callable[[], nn.Module]
SEQUENCES: dict[str, tuple[Build, tuple[Tensor, ...]]] = {
    "lstm": (lambda: Classifier(nn.LSTM, num_layers=2), (SEQUENCE,)),
    "lstm_bidirectional": (lambda: Classifier(nn.LSTM, num_layers=3, bidirectional=True), (SEQUENCE,)),
    "gru": (lambda: Classifier(nn.GRU, num_layers=2, bidirectional=True), (SEQUENCE,)),
    "gru_time_first": (lambda: Classifier(nn.GRU, batch_first=False, num_layers=2), (SEQUENCE,)),
    "rnn": (lambda: Classifier(nn.RNN, num_layers=2, bidirectional=True), (SEQUENCE,)),
    "rnn_relu": (lambda: Classifier(nn.RNN, nonlinearity="relu"), (SEQUENCE,)),
    "text_lstm": (lambda: TextClassifier(nn.LSTM), (TOKENS,)),
    "text_gru": (lambda: TextClassifier(nn.GRU), (TOKENS,)),
    "translator": (lambda: Translator(nn.LSTM, 1), (TOKENS, TOKENS[:, :4])),
    "translator_stacked": (lambda: Translator(nn.LSTM, 2), (TOKENS, TOKENS[:, :4])),
    "translator_gru": (lambda: Translator(nn.GRU, 3), (TOKENS, TOKENS[:, :4])),
    "states_from_outside": (Continued, (SEQUENCE, torch.ones(1, 2, HIDDEN), torch.ones(1, 2, HIDDEN))),
    "learned_states": (lambda: Continued(learned=True), (SEQUENCE,)),
    "lstm_cells": (lambda: Cells(nn.LSTMCell), (SEQUENCE,)),
    "gru_cells": (lambda: Cells(nn.GRUCell), (SEQUENCE,)),
    "rnn_cells": (lambda: Cells(nn.RNNCell), (SEQUENCE,)),
    "packed": (Packed, (SEQUENCE, torch.tensor([5, 3]))),
    "recognizer": (Recognizer, (torch.ones(2, 3, 8, 12),)),
}

FIXED = ("gru_time_first",)
"""Networks whose inputs have time in front."""


def export(name: str, exporter: str, opset: int) -> onnx.ModelProto:
    """A network of `SEQUENCES` as ONNX; the batch is symbolic where there is one input that starts with it."""
    return onnx.load_from_string(_content(name, exporter, opset))


@cache
def _content(name: str, exporter: str, opset: int) -> bytes:
    """The network as a file, which takes seconds to export."""
    torch.manual_seed(0)
    build, inputs = SEQUENCES[name]
    dynamic = len(inputs) == 1 and name not in FIXED
    return convert(build().eval(), inputs, exporter, opset, dynamic).SerializeToString()
