"""Small modules of many forms: how they are called, what they return, and what they do in training."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from onnxpart.errors import OnnxpartError
from onnxpart.torch import split_module
from onnxpart.torch.interface import results

OUT = 3
Call = Callable[["Net"], Callable[..., Any]]


class Layers(nn.Module):
    """Two hidden layers between four inputs and three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, OUT)

    def hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))


class Net(Layers):
    def forward(self, x: Tensor) -> Any:
        return self.c(self.hidden(x))


class Pair(NamedTuple):
    logits: Tensor
    doubled: Tensor


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@dataclasses.dataclass
class ModelOutput(OrderedDict[str, Any]):
    """Both a mapping and a data class, as those of transformers are."""

    loss: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None})


class Cache:
    """Keys and values that a decoder goes on from."""


class TwoInputs(Layers):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.c(self.hidden(x + y))


class KeywordOnly(Layers):
    def forward(self, x: Tensor, *, shift: Tensor, gain: float = 2.0) -> Any:
        return self.c(self.hidden(x + shift)) * gain


class Variadic(Layers):
    def forward(self, *xs: Tensor) -> Any:
        return self.c(self.hidden(xs[0] * xs[1]))


class Further(Layers):
    def forward(self, x: Tensor, **more: Tensor) -> Any:
        return self.c(self.hidden(x + more["shift"]))


class Optional(Layers):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.c(self.hidden(x if mask is None else x * mask))


class Flag(Layers):
    def forward(self, x: Tensor, squared: bool = False) -> Any:
        return self.c(self.hidden(x)) ** (2 if squared else 1)


class Scaled(Layers):
    def forward(self, x: Tensor, scale: Tensor) -> Any:
        return self.c(self.hidden(x * scale))


class Tokens(Layers):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4, **options)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Any:
        return self.c(self.hidden((self.words(tokens) * attention_mask[..., None]).mean(1)))


class OfDict(Layers):
    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.c(self.hidden(batch["x"]))


class OfNumber(Layers):
    def forward(self, x: Tensor, power: int) -> Any:
        return self.c(self.hidden(x**power))


class Labelled(Layers):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.c(self.hidden(x))
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class LossAlone(Layers):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.c(self.hidden(x)), labels)


class AsTransformers(Layers):
    def forward(self, x: Tensor | None = None, labels: Tensor | None = None, **_: object) -> ModelOutput:
        assert x is not None
        logits = self.c(self.hidden(x))
        return ModelOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class InTraining(Layers):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.c(self.hidden(x))
        return (y, y + 1) if self.training else y


def returning(shape: Callable[[Layers, Tensor], Any]) -> Callable[[], Layers]:
    """A network that returns what a function makes of itself and its input."""

    class Returning(Layers):
        def forward(self, x: Tensor) -> Any:
            return shape(self, x)

    return Returning


def changed(change: Callable[[Net], object]) -> Callable[[], nn.Module]:
    """A network that was changed after it was made."""

    def build() -> nn.Module:
        module = Net()
        change(module)
        return module

    return build


def within(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network with a layer behind its first."""
    return changed(lambda module: setattr(module, "a", nn.Sequential(nn.Linear(4, 8), norm())))


class Tied(Layers):
    """Two layers of one weight, and a head of the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.d, self.e = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        self.d.weight, self.e.weight = self.b.weight, self.words.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.e(self.d(F.gelu(self.b(self.words(tokens)))))


class Listed(Layers):
    """Parameters of its own, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.ParameterList([torch.rand(8), torch.rand(())])

    def forward(self, x: Tensor) -> Any:
        return self.c(self.hidden(x) * self.gains[0]) * self.gains[1]


class Twice(Layers):
    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.b(self.a(x)).relu()).relu_())


class WithLSTM(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)


class Recurrent(WithLSTM):
    def forward(self, x: Tensor) -> Any:
        return self.c(self.lstm(x)[0][:, -1])


class TwoWays(Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.c = nn.LSTM(4, 8, batch_first=True, bidirectional=True), nn.Linear(16, OUT)


class Packed(WithLSTM):
    """Sequences of several lengths."""

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed, _ = self.lstm(pack_padded_sequence(x, lengths, batch_first=True))
        return self.c(pad_packed_sequence(packed, batch_first=True)[0].mean(1))


class PackedStates(WithLSTM):
    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.c(self.lstm(pack_padded_sequence(x, lengths, batch_first=True))[1][0][-1])


class Transforms(nn.Module):
    """Masked at places that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 8), nn.Linear(8, OUT)
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Any:
        return self.c(self.transformer(self.a(x), self.a(y), tgt_mask=mask))


class Attends(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        return self.c(h + self.attention(h, h, h, need_weights=False)[0]).mean(1)


class Convolves(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=4),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, OUT),
        )  # fmt: skip


class Counting(Layers):
    """Counts its calls in a buffer that it doesn't read."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.c(self.hidden(x))


class Centred(Counting):
    """Takes a running mean, which it updates in training, off its input."""

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.calls.lerp_(x.mean().detach(), 0.1)
        return self.c(self.hidden(x - self.calls))


class Step(torch.autograd.Function):
    """Steps, through which gradients pass as they are."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Branch(Layers):
    def forward(self, x: Tensor) -> Any:
        y = self.c(self.hidden(x))
        return y if x.sum() > 0 else 2 * y


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x[:, :1]) < 0.5).to(x) * 2 if self.training else x


class Adapter(Net):
    """A frozen layer with a narrow one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
        self.b.requires_grad_(False)

    def hidden(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return F.relu(self.b(h) + self.up(self.down(h)))


def _autocast(net: Layers, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return net.c(net.hidden(x)).float()


def _stepped(net: Layers, x: Tensor) -> Any:
    return net.c(Step.apply(net.hidden(x)))  # type: ignore[no-untyped-call]


def _pruned(net: Net) -> None:
    prune.l1_unstructured(net.b, "weight", 0.5)  # type: ignore[no-untyped-call]


def _compiled() -> nn.Module:
    compiled: Any = torch.compile(Net())
    assert isinstance(compiled, nn.Module)
    return compiled


def _hooked(net: Net) -> None:
    net.b.register_forward_hook(lambda _, __, y: 2 * y)


_GENERATOR = torch.Generator().manual_seed(0)
X, Y, LABELS = *torch.randn(2, 6, 4, generator=_GENERATOR), torch.tensor([0, 1, 2, 0, 1, 2])
STEPS, IMAGES = torch.randn(6, 5, 4, generator=_GENERATOR), torch.randn(6, 3, 8, 8, generator=_GENERATOR)
WORDS, LENGTHS, MASK = torch.arange(30).view(6, 5) % 7, torch.tensor([5, 5, 4, 3, 2, 1]), torch.ones(5, 5).tril().log()
MASKED = {"tokens": WORDS, "attention_mask": (WORDS > 0).float()}
FORMS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "called with a tensor": (Net, X),
    "called with two tensors": (TwoInputs, (X, Y)),
    "called by names, one keyword-only, one by default": (KeywordOnly, {"x": X, "shift": Y}),
    "called with `*xs`": (Variadic, (X, Y)),
    "called with `**more`": (Further, {"x": X, "shift": Y}),
    "an optional tensor, left out": (Optional, X),
    "an optional tensor, given": (Optional, {"x": X, "mask": Y}),
    "a flag by default": (Flag, X),
    "a tensor without axes": (Scaled, (X, torch.tensor(2.0))),
    "tokens and a mask": (Tokens, MASKED),
    "a token for padding": (lambda: Tokens(padding_idx=0), {**MASKED, "attention_mask": torch.ones(6, 5)}),
    "an embedding with sparse gradients": (lambda: Tokens(sparse=True), MASKED),
    "an embedding of bounded norms": (lambda: Tokens(max_norm=0.5), MASKED),
    "called with a dictionary": (OfDict, ({"x": X},)),
    "called with a number": (OfNumber, (X, 2)),
    "returns a tuple": (returning(lambda n, x: (n.c(n.hidden(x)), 2 * n.c(n.hidden(x)))), X),
    "returns a list": (returning(lambda n, x: [n.c(n.hidden(x)), 2 * n.c(n.hidden(x))]), X),
    "returns a dictionary": (returning(lambda n, x: {"logits": n.c(n.hidden(x))}), X),
    "returns a named tuple": (returning(lambda n, x: Pair(n.c(n.hidden(x)), 2 * n.c(n.hidden(x)))), X),
    "returns a data class": (Labelled, X),
    "returns what is nested": (returning(lambda n, x: {"a": [n.c(n.hidden(x)), {"b": n.c(n.hidden(x)) + 1}]}), X),
    "returns None beside a tensor": (returning(lambda n, x: {"logits": (n.c(n.hidden(x)), None), "loss": None}), X),
    "returns a number beside a tensor": (returning(lambda n, x: (n.c(n.hidden(x)), 3)), X),
    "returns a loss, a data class": (Labelled, {"x": X, "labels": LABELS}),
    "returns a loss, as transformers do": (AsTransformers, {"x": X, "labels": LABELS}),
    "returns a loss alone": (LossAlone, {"x": X, "labels": LABELS}),
    "returns more in training": (InTraining, X),
    "returns its hidden units, too": (returning(lambda n, x: (n.c(n.hidden(x)), n.hidden(x))), X),
    "returns a cache beside a tensor": (returning(lambda n, x: {"logits": n.c(n.hidden(x)), "cache": Cache()}), X),
    "returns a distribution": (
        returning(lambda n, x: torch.distributions.Categorical(logits=n.c(n.hidden(x)), validate_args=False)),
        X,
    ),
    "dropout": (within(nn.Dropout), X),
    "batch norm": (within(lambda: nn.BatchNorm1d(8)), X),
    "layer norm": (within(lambda: nn.LayerNorm(8)), X),
    "noise in training": (within(Noise), X),
    "stochastic depth": (within(DropPath), X),
    "tied weights": (Tied, WORDS),
    "parameters in a list": (Listed, X),
    "a layer that is called twice, one in place": (Twice, X),
    "a recurrent layer": (Recurrent, STEPS),
    "a recurrent layer in both directions": (TwoWays, STEPS),
    "packed sequences": (Packed, (STEPS, LENGTHS)),
    "the last states of packed sequences": (PackedStates, (STEPS, LENGTHS)),
    "attention": (Attends, STEPS),
    "a transformer and a mask": (Transforms, (STEPS, STEPS.flip(0), MASK)),
    "convolutions": (Convolves, IMAGES),
    "a frozen layer": (changed(lambda n: n.b.requires_grad_(False)), X),
    "an adapter beside a frozen layer": (Adapter, X),
    "gradient checkpointing": (returning(lambda n, x: n.c(checkpoint(n.hidden, x, use_reentrant=False))), X),
    "a gradient that is stopped": (returning(lambda n, x: n.c(n.hidden(x) + n.hidden(x).detach())), X),
    "a straight-through function": (returning(_stepped), X),
    "autocast in `forward`": (returning(_autocast), X),
    "a forward hook": (changed(_hooked), X),
    "weight norm": (changed(lambda n: parametrizations.weight_norm(n.b)), X),
    "spectral norm": (changed(lambda n: parametrizations.spectral_norm(n.b)), X),
    "pruned weights": (changed(_pruned), X),
    "a buffer that is counted up": (Counting, X),
    "a running mean of one's own": (Centred, X),
    "a branch on data": (Branch, X),
    "double precision": (changed(lambda n: n.double()), X.double()),
    "bfloat16": (changed(lambda n: n.bfloat16()), X.bfloat16()),
    "compiled": (_compiled, X),
    "on the meta device": (changed(lambda n: n.to("meta")), X),
    "a lazy layer": (changed(lambda n: setattr(n, "b", nn.LazyLinear(8))), X),
}
"""What is special about a module -> what makes it, and example inputs."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How far gradients in a part of everything are from the module's, and the merged from the mean of two parts.

    `exact` says whether the module itself is the mean of the parts, or their duplicated whole is. Where the module is
    refused, `refused` says why.
    """

    gradient: float = 0.0
    mean: float = 0.0
    exact: bool = False
    refused: str = ""


def arguments(example: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """What a form's module is called with: by position, and by name."""
    if isinstance(example, Mapping):
        return (), example
    return example if isinstance(example, tuple) else (example,), {}


def judge(form: str) -> Verdict:
    """Divide the module of a form, train the parts, merge them, and compare."""
    torch.manual_seed(0)
    build, example = FORMS[form]
    module = build()
    args, named = arguments(example)
    try:
        (same,), _ = split_module(module, example, 1)
        gradient = _gradient_difference(module, same, args, named)
        parts, handle = split_module(module, example, 2)
    except OnnxpartError as error:
        return Verdict(refused=str(error))
    assert _structure(same(*args, **named)) == _structure(module(*args, **named))
    for part in parts:
        optimizer = torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(_total(part(*args, **named)))
            optimizer.step()
    module.load_state_dict(handle.merge())
    whole = module if handle.exact else handle.whole()
    return Verdict(gradient, _difference(whole, parts, args, named), handle.exact)


def _structure(value: Any) -> object:
    """What a result consists of; a cache is left out."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    if isinstance(value, Mapping):
        return type(value), {key: _structure(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return type(value), [_structure(item) for item in value]
    if dataclasses.is_dataclass(value):
        return type(value), _structure(vars(value))
    return None if isinstance(value, Cache) else value


def _total(value: object, count: int | None = None) -> Tensor:
    """A loss: of the first so many tensors that a module returns, or of all."""
    return torch.stack([x.double().square().mean() for _, x in results(value)][:count]).sum()


@torch.no_grad()
def _difference(whole: nn.Module, parts: Sequence[nn.Module], args: Any, named: Any) -> float:
    """How far what is no loss is from the mean of the parts', relative to it, of all that evaluation returns."""
    found = [[x.double() for _, x in results(net.eval()(*args, **named)) if x.ndim] for net in (whole, *parts)]
    means = [torch.stack(values).mean(0) for values in zip(*found[1:], strict=True)]
    return max((float((x - m).abs().max() / m.abs().max()) for x, m in zip(found[0], means, strict=False)), default=0.0)


def _gradient_difference(module: nn.Module, same: nn.Module, args: Any, named: Any) -> float:
    """How far gradients through the graph are from those in the module, relative to them, in evaluation."""
    count = len(list(results(module.eval()(*args, **named))))
    for net in (module, same.eval()):
        torch.autograd.backward(_total(net(*args, **named), count))
    own, theirs = (
        {n.removeprefix("_orig_mod."): p.grad.to_dense() for n, p in net.named_parameters() if p.grad is not None}
        for net in (module, same)
    )
    module.zero_grad()
    module.train()
    scale = max(float(g.abs().max()) for g in own.values())
    return max(float((g - theirs[n]).abs().max()) for n, g in own.items() if n in theirs) / scale
