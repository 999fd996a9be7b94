"""Parts are called as the module is, and return what it returns."""

from __future__ import annotations

import collections
import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxpart.errors import UsageError
from onnxpart.torch import split_module
from onnxpart.torch.interface import Interface, results
from tests.networks.forms import ModelOutput, Output, Pair
from tests.networks.plain import CLASSES

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
X, Y = torch.randn(6, 4), torch.randint(0, CLASSES, (6,))


class Base(nn.Module):
    """A hidden layer between input and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def logits(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Keyword(Base):
    def forward(self, x: Tensor, *, gain: float = 1.0) -> dict[str, Tensor]:
        return {"logits": self.logits(x) * gain}


class Loss(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None, note: str | None = None) -> Output:  # noqa: ARG002
        logits = self.logits(x)
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class LikeTransformers(Base):
    def forward(self, input: Tensor | None = None, labels: Tensor | None = None, **kwargs: object) -> ModelOutput:  # noqa: A002, ARG002
        assert input is not None
        logits = self.logits(input)
        return ModelOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class Named(Base):
    def forward(self, x: Tensor) -> Pair:
        return Pair(self.logits(x), 2 * self.logits(x))


class Nested(Base):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a": [self.logits(x), {"b": self.logits(x) + 1}], "size": 3}


class InTraining(Base):
    """What only training sees: a second result."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        return (self.logits(x), self.logits(x) + 1) if self.training else self.logits(x)


class Variadic(Base):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.logits(xs[0] + xs[1])


class Wrapper(Base):
    """Hands on whatever it is given, as those of other libraries do."""

    def forward(self, *inputs: Tensor, **more: Tensor) -> Output:
        return Loss.forward(self, *inputs, **more)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], Base], Any, list[str]]] = {
    "a dict, a keyword with a default": (Keyword, {"x": X}, ["logits"]),
    "a data class and a loss": (Loss, {"x": X, "labels": Y}, ["logits", "loss"]),
    "as in transformers": (LikeTransformers, {"input": X, "labels": Y}, ["loss", "logits"]),
    "a named tuple": (Named, (X,), ["logits", "doubled"]),
    "nested": (Nested, X, ["a_0", "a_1.b"]),
    "a result in training alone": (InTraining, X, ["output_0", "output_1"]),
    "any number of inputs": (Variadic, (X, X), ["output"]),
    "any inputs by name": (Wrapper, {"x": X, "labels": Y}, ["logits", "loss"]),
}


@pytest.mark.parametrize(
    ("case", "exporter"),
    [
        *((case, "torchscript") for case in CASES),
        ("a dict, a keyword with a default", "dynamo"),
        ("as in transformers", "dynamo"),
        ("any number of inputs", "dynamo"),
        ("any inputs by name", "dynamo"),
    ],
)
def test_parts_are_called_and_answer_as_the_module(case: str, exporter: str) -> None:
    """Trained on what they return, and merged, the module returns the mean of what they do."""
    build, example, names = CASES[case]
    torch.manual_seed(0)
    module = build()
    parts, handle = split_module(module, example, 2, exporter=exporter)
    args, named = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    for part in parts:
        optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            torch.stack([x.square().sum() for _, x in results(part(*args, **named))]).sum().backward()
            optimizer.step()
    module.load_state_dict(handle.merge())
    own = module(*args, **named)
    for part in (*parts, handle.whole(), copy.deepcopy(parts[0]), pickle.loads(pickle.dumps(parts[0]))):
        found = part(*args, **named)
        assert type(found) is type(own)
        assert [name for name, _ in results(found)] == [name for name, _ in results(own)] == names
        taken = [p for p in inspect.signature(module.forward).parameters if p not in ("kwargs", "more")]
        assert list(inspect.signature(part.forward).parameters) == [*taken, *(key for key in named if key not in taken)]
    found = [dict(results(part(*args, **named))) for part in parts]
    for name, x in results(own):
        if name != "loss":
            torch.testing.assert_close(x, (found[0][name] + found[1][name]) / 2, rtol=1e-4, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Derived:
    """Fields and an attribute that it makes itself."""

    logits: Tensor
    doubled: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.logits)
        object.__setattr__(self, "halved", self.logits / 2)


@dataclasses.dataclass
class Own:
    """Made in a form of its own."""

    logits: Tensor

    def __init__(self, x: Tensor, count: int) -> None:
        self.logits = x * count


def lists(**tensors: Tensor) -> Any:
    return collections.defaultdict(list, tensors)


@pytest.mark.parametrize("value", [Derived(X), Own(X, 2), lists(a=X, b=Y), torch.topk(X, 2), [Derived(X), Own(X, 1)]])
def test_classes_that_make_themselves_are_filled_as_they_are(value: Any) -> None:
    own = list(results(value))
    interface = Interface(inspect.Signature(), (), (), value, range(len(own)))
    found = pickle.loads(pickle.dumps(interface)).returned([tensor + 1 for _, tensor in own])
    assert type(found) is type(value)
    for (name, tensor), (key, given) in zip(results(found), own, strict=True):
        assert name == key
        assert torch.equal(tensor, given + 1)
    first = Interface(inspect.Signature(), (), (), value, [0]).returned([X])
    assert next(results(first))[1] is X


def test_losses_are_those_of_the_module() -> None:
    module = Loss()
    (part,), _ = split_module(module, {"x": X, "labels": Y}, 1)
    torch.testing.assert_close(part(X, Y).loss, module(X, Y).loss)
    part(X, labels=Y).loss.backward(), module(X, Y).loss.backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(part.get_parameter(name).grad, parameter.grad)


def test_one_of_the_results_goes_by_its_name() -> None:
    for module, example, left in (
        (Loss(), {"x": X, "labels": Y}, ["logits"]),
        (LikeTransformers(), {"input": X, "labels": Y}, ["logits"]),
        (Keyword(), {"x": X}, ["logits"]),
    ):
        parts, _ = split_module(module, example, outputs=["logits"])
        found = parts[0](**example)
        assert [name for name, _ in results(found)] == left
        assert getattr(found, "loss", None) is None


def test_calls_that_do_not_fit() -> None:
    other, _ = split_module(LikeTransformers(), {"input": X}, 2)
    with pytest.raises(UsageError, match="unexpected keyword argument 'count'; call the part like the module, with"):
        other[0](X, count=3)  # trainers ask the signature whether they may give more
    parts, _ = split_module(Loss(), {"x": X}, 2)
    assert parts[0](X, None, note=None).loss is None
    with pytest.raises(UsageError, match="made for x, and 'labels' isn't its default; leave it out, or split"):
        parts[0](X, labels=Y)
    with pytest.raises(UsageError, match="missing a required argument: 'x'; call the part like the module, with x"):
        parts[0]()
    with pytest.raises(UsageError, match="the part needs the tensor x, which the example inputs had"):
        parts[0]([1.0, 2.0])
