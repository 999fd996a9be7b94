"""LSTM, GRU and RNN, in every form that ONNX has: by torch's own if it has that form, otherwise step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.analysis.rules.recurrent import GATES
from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_ORDERS = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}
"""The positions of torch's gates among ONNX's: r z n in z r h, i f g o in i o f c."""
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """The attributes of a recurrent operator; `activations`: those of one direction after those of the other."""

    op_type: str
    directions: tuple[bool, ...]
    """Whether each direction is backwards."""
    activations: tuple[Activation, ...]
    plain: bool
    """Whether torch has the operator in this form, if no input prevents it."""
    linear_before_reset: bool
    input_forget: bool
    clip: float | None
    batch_first: bool


def _affine(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x * alpha + beta


def _scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.tanh(x * beta) * alpha


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float | None, ...]]] = {
    "affine": (_affine, (None, None)),
    "elu": (F.elu, (1.0,)),
    "hardsigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "relu": (torch.relu, ()),
    "scaledtanh": (_scaled_tanh, (None, None)),
    "sigmoid": (torch.sigmoid, ()),
    "softplus": (F.softplus, ()),
    "softsign": (F.softsign, ()),
    "tanh": (torch.tanh, ()),
    "thresholdedrelu": (_threshold, (1.0,)),
}
"""Function and defaults of alpha and beta; None if a model must give them."""


@operator("LSTM", "GRU", "RNN", since=7)
def recurrent(node: Node) -> tuple[Tensor, ...]:
    """Run over time; return the sequence of hidden states, the last one, and an LSTM's last cell state."""
    states = [node.optional(index) for index in (5, 6)]
    args = (node.tensor(0), node.tensor(1), node.tensor(2), node.optional(3), node.optional(4), *states)
    result = node.module(Recurrent(_form(node)), *args, node.optional(7))
    return tuple(result[i] for i in range(3 if node.op_type == "LSTM" else 2))


def _form(node: Node) -> Form:
    """Return a node's attributes, checked."""
    direction = node.attribute("direction", "forward")
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}.get(direction)
    if directions is None:
        raise node.error(f"the direction {direction!r} isn't one of ONNX's; check the model with onnx.checker")
    names = node.attribute("activations", _DEFAULTS[node.op_type] * len(directions))
    clip: float | None = node.attribute("clip", None)
    form = Form(
        op_type=node.op_type,
        directions=directions,
        activations=tuple(_activations(node, names)),
        plain=clip is None and _is_plain(node, [name.lower() for name in names], len(directions)),
        linear_before_reset=bool(node.attribute("linear_before_reset", 0)),
        input_forget=bool(node.attribute("input_forget", 0)),
        clip=clip,
        batch_first=bool(node.attribute("layout", 0)),
    )
    if len(names) != len(_DEFAULTS[node.op_type]) * len(directions):
        raise node.error(f"{len(names)} activations are the wrong number; check the model with onnx.checker")
    return form


def _is_plain(node: Node, names: list[str], directions: int) -> bool:
    defaults = [name.lower() for name in _DEFAULTS[node.op_type]] * directions
    if node.op_type == "RNN":
        return len(set(names)) == 1 and names[0] in ("tanh", "relu")
    if node.op_type == "GRU" and not node.attribute("linear_before_reset", 0):
        return False
    return names == defaults and not node.attribute("input_forget", 0)


def _activations(node: Node, names: list[str]) -> Iterator[Activation]:
    """Give each function its alpha and beta; functions without them take none from the lists."""
    empty: list[float] = []
    given = [iter(node.attribute(f"activation_{letter}", empty)) for letter in ("alpha", "beta")]
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise node.error(f"the activation {name!r} isn't imported; use one that ONNX names")
        function, defaults = _ACTIVATIONS[name.lower()]
        settings = [next(values, default) for values, default in zip(given, defaults, strict=False)]
        if None in settings:
            raise node.error(f"the activation {name} needs activation_alpha and activation_beta; set them")
        yield partial(function, **dict(zip(("alpha", "beta"), settings, strict=False))) if settings else function


class Recurrent(nn.Module):
    """A recurrent operator; its tensors are the graph's."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        lengths: Tensor | None,
        h: Tensor | None,
        c: Tensor | None,
        peepholes: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Run over x [T, N, features]; return y [T, D, N, size], h [D, N, size], and c likewise for an LSTM.

        With `batch_first`, x and the states have the batch in front, and so has what is returned.
        """
        form = self.form
        if form.batch_first:
            x = x.transpose(0, 1)
            h, c = (state if state is None else state.transpose(0, 1) for state in (h, c))
        zeros = x.new_zeros((len(form.directions), x.shape[1], r.shape[2]))
        h, c = (zeros if state is None else state for state in (h, c))
        if form.plain and lengths is None and peepholes is None and not _is_transformed(x, w, r):
            y, *states = _by_torch(form, x, w, r, b, h, c)
        else:
            y, *states = _by_steps(form, x, w, r, b, lengths, h, c, peepholes)
        if form.batch_first:
            return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))
        return (y, *states)


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether vmap or torch.compile is running; they know no recurrent operator."""
    if torch.compiler.is_compiling():
        return True
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)  # noqa: SLF001


def _by_torch(
    form: Form, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """Compute all steps by torch's own operator; x [T, N, features], states [directions, N, size]."""
    directions, size = len(form.directions), r.shape[2]
    both, backwards = directions == 2, form.directions == (True,)
    gates = [_turned(form, w), _turned(form, r), *(() if b is None else map(partial(_turned, form), b.chunk(2, 1)))]
    flat = [gate[d] for d in range(directions) for gate in gates]
    x = x.flip(0) if backwards else x
    state = (h.contiguous(), c.contiguous()) if form.op_type == "LSTM" else h.contiguous()
    function = _torch_function(form)
    y, *states = function(x, state, flat, b is not None, 1, 0.0, False, both, False)
    y = y.flip(0) if backwards else y
    return (y.reshape(*y.shape[:2], directions, size).transpose(1, 2), *states)


def _torch_function(form: Form) -> Callable[..., tuple[Tensor, ...]]:
    if form.op_type == "RNN":
        return torch.rnn_relu if form.activations[0] is torch.relu else torch.rnn_tanh
    return torch.lstm if form.op_type == "LSTM" else torch.gru


def _turned(form: Form, gates: Tensor) -> Tensor:
    """Bring gates [D, gates * size, ...] into torch's order."""
    if form.op_type == "RNN":
        return gates
    pieces = gates.chunk(GATES[form.op_type], 1)
    return torch.cat([pieces[i] for i in _ORDERS[form.op_type]], 1)


def _by_steps(
    form: Form,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor,
    peepholes: Tensor | None,
) -> tuple[Tensor, ...]:
    """Run step by step, each direction after the other."""
    sequences, last = [], []
    count = len(form.activations) // len(form.directions)
    for d, backwards in enumerate(form.directions):
        bias = None if b is None else b[d]
        cell = _Cell(
            form, form.activations[d * count :][:count], r[d], bias, None if peepholes is None else peepholes[d]
        )
        order = _order(x, lengths) if backwards else None
        steps = cell.enter(_picked(x, order), w[d])
        states, found = (h[d], c[d]), []
        for t, step in enumerate(steps.unbind(0)):
            new = cell.step(step, *states)
            if lengths is None:
                states, y = new, new[0]
            else:
                on = (lengths > t).unsqueeze(1)
                states = (torch.where(on, new[0], states[0]), torch.where(on, new[1], states[1]))
                y = torch.where(on, new[0], torch.zeros_like(new[0]))
            found.append(y)
        stacked = torch.stack(found) if found else x.new_zeros((0, *h.shape[1:]))
        sequences.append(_picked(stacked, order))
        last.append(states)
    kinds = 2 if form.op_type == "LSTM" else 1
    return (torch.stack(sequences, 1), *(torch.stack([states[i] for states in last]) for i in range(kinds)))


def _order(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return for every step [T, N] the step that it becomes backwards; steps behind the end stay."""
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    if lengths is None:
        return steps.flip(0).expand(-1, x.shape[1])
    return torch.where(steps < lengths, lengths.to(torch.int64) - 1 - steps, steps)


def _picked(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else torch.gather(x, 0, order.unsqueeze(2).expand_as(x))


def _halves(b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if b is None else (b[: len(b) // 2], b[len(b) // 2 :])


class _Cell:
    """One direction of an operator: what it does at a step."""

    def __init__(
        self, form: Form, activations: tuple[Activation, ...], r: Tensor, b: Tensor | None, peepholes: Tensor | None
    ) -> None:
        self.form, self.activations, self.r, self.size = form, activations, r, r.shape[1]
        self.input_bias, self.bias = _halves(b)
        self.peepholes = [None] * 3 if peepholes is None else list(peepholes.chunk(3))
        self.step = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}[form.op_type]

    def enter(self, x: Tensor, w: Tensor) -> Tensor:
        """The contribution of all steps of x [T, N, features] to the gates."""
        return F.linear(x, w, self.input_bias)

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.form.clip is None else torch.clamp(x, -self.form.clip, self.form.clip)

    def _rnn(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.activations[0](self._bounded(x + F.linear(h, self.r, self.bias))), c

    def _gru(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step of a GRU; return the new state, and c as it is."""
        f, g = self.activations
        zr = 2 * self.size
        if self.form.linear_before_reset:
            inner = F.linear(h, self.r, self.bias)
            z, r = f(self._bounded(x[:, :zr] + inner[:, :zr])).chunk(2, 1)
            new = r * inner[:, zr:]
        else:
            gates, last = (None, None) if self.bias is None else (self.bias[:zr], self.bias[zr:])
            z, r = f(self._bounded(x[:, :zr] + F.linear(h, self.r[:zr], gates))).chunk(2, 1)
            new = F.linear(r * h, self.r[zr:], last)
        return (1 - z) * g(self._bounded(x[:, zr:] + new)) + z * h, c

    def _lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        f, g, last = self.activations
        i, o, forget, new = (x + F.linear(h, self.r, self.bias)).chunk(4, 1)
        in_peep, out_peep, forget_peep = self.peepholes
        i = f(self._bounded(i if in_peep is None else i + in_peep * c))
        forget = f(self._bounded(forget if forget_peep is None else forget + forget_peep * c))
        forget = 1 - i if self.form.input_forget else forget
        c = forget * c + i * g(self._bounded(new))
        o = f(self._bounded(o if out_peep is None else o + out_peep * c))
        return o * last(c), c
