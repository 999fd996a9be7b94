"""How a module is called and what it returns, so that its parts have the same interface."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from onnxpart.errors import UsageError


@dataclass(frozen=True)
class _Place:
    """The place of the tensor with this number in a result."""

    number: int


_CUT = object()
"""In the place of a result that was cut off."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
"""What is the same in all results; other objects, such as a cache of keys and values, hold what was computed."""


def results(value: object, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in what a module returns, each with its name there.

    :param value: a tensor, or any nesting of mappings, named tuples, data classes, tuples and lists.
    :param name: that of a tensor; the items of a tuple are numbered, others have their own names.
    """
    if isinstance(value, Tensor):
        yield name, value
    for key, item in _items(value):
        own = f"{name}_{key}" if isinstance(key, int) else str(key) if name == "output" else f"{name}.{key}"
        yield from results(item, own)


def _items(value: object) -> Iterator[tuple[object, object]]:
    """The items of a result, by number or name."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = dict.fromkeys([*(field.name for field in dataclasses.fields(value)), *getattr(value, "__dict__", ())])
        yield from ((name, getattr(value, name)) for name in names)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with a function of what isn't one in its places; `_CUT` leaves it, or is None there."""
    items: list[tuple[Any, Any]] = [(key, _mapped(item, function)) for key, item in _items(value)]
    kind: Any = type(value)
    with_fields = dataclasses.is_dataclass(value) and not isinstance(value, (type, _Place))
    if isinstance(value, Mapping):
        held = {key: item for key, item in items if item is not _CUT}
        if with_fields:
            return kind(**held)
        if not isinstance(value, MutableMapping):
            return kind(held)
        mapping = copy.copy(value)
        mapping.clear()
        mapping.update(held)
        return mapping
    fields: dict[str, Any] = {key: None if item is _CUT else item for key, item in items}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return kind._make(fields.values())
    if isinstance(value, tuple) and hasattr(kind, "n_fields"):  # as torch.topk returns
        return kind(fields.values())
    if isinstance(value, tuple | list):
        return kind(item for _, item in items if item is not _CUT)
    if with_fields:
        filled = copy.copy(value)  # an `__init__` may take anything
        for name, item in fields.items():
            object.__setattr__(filled, name, item)
        return filled
    return function(value)


def signature_of(module: nn.Module, named: Collection[str]) -> inspect.Signature:
    """Return the signature of `forward` with keywords of their own for the names that its `**kwargs` takes.

    It is without annotations, which needn't be anything that can be pickled.
    :param named: the arguments that go by name.
    """
    own = inspect.signature(module.forward).parameters
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in own.values()
        if parameter.kind != inspect.Parameter.VAR_KEYWORD
    ]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in named if name not in own]
    return inspect.Signature(plain + more)


class Interface:
    """A module's signature, and the structure of what it returns.

    :param signature: how it is called. :param given: names of those of its parameters that the example inputs have.
    :param inputs: those that the graph takes, in its order. :param returned: what the module returned for the example.
    :param kept: the numbers of the tensors in that which the graph returns, in its order.
    """

    def __init__(
        self,
        signature: inspect.Signature,
        given: Collection[str],
        inputs: Sequence[str],
        returned: object,
        kept: Sequence[int],
    ) -> None:
        self.signature, self.given, self.inputs = signature, frozenset(given), list(inputs)
        numbers, self.kept = count(), list(kept)
        self.structure = _mapped(
            returned,
            lambda v: _Place(next(numbers)) if isinstance(v, Tensor) else v if isinstance(v, _PLAIN) else None,
        )

    def tensors(self, args: tuple[object, ...], named: Mapping[str, object]) -> list[Tensor]:
        """Return the graph's inputs, in order, from the arguments of a call.

        :raises UsageError: if they don't fit the signature, lack an input, or hold one that the graph doesn't have.
        """
        try:
            found = self.signature.bind(*args, **named).arguments
        except TypeError as error:
            raise UsageError(f"{error}; call the part like the module, with {', '.join(self.inputs)}.") from None
        given: dict[str, object] = {}
        for name, value in found.items():
            kind = self.signature.parameters[name].kind
            if kind == inspect.Parameter.VAR_POSITIONAL:
                given |= {f"input_{len(given) + i}": item for i, item in enumerate(value)}
            else:
                given[name] = value
        lacking = [name for name in self.inputs if not isinstance(given.get(name), Tensor)]
        if lacking:
            raise UsageError(
                f"the part needs the tensor {', '.join(lacking)}, which the example inputs had; pass it, too."
            )
        for name in given.keys() - self.given:
            parameter = self.signature.parameters.get(name)
            default = None if parameter is None else parameter.default
            if given[name] is not None and (isinstance(given[name], Tensor) or given[name] != default):
                raise UsageError(
                    f"the part was made for {', '.join(self.inputs)}, and {name!r} isn't its default; leave it out, or "
                    "split the module with it among the example inputs."
                )
        return [given[name] for name in self.inputs]  # type: ignore[misc]

    def returned(self, outputs: Sequence[Tensor]) -> Any:
        """Return the graph's outputs in the structure of the module's results.

        Results that were cut off are None or missing; so are objects that hold tensors invisibly, such as a cache.
        """
        held = dict(zip(self.kept, outputs, strict=True))
        value = _mapped(self.structure, lambda v: held.get(v.number, _CUT) if isinstance(v, _Place) else v)
        plain = type(value) in (tuple, list) and len(self.kept) == 1 and not isinstance(self.structure, _Place)
        cut = plain and len(value) == 1 and len(self.structure) > 1
        return value[0] if cut else value


class Forward:
    """A part's `forward`: it has the signature of the module's own."""

    def __init__(self, interface: Interface, call: Callable[..., Any]) -> None:
        self.interface, self.call = interface, call
        self.__signature__ = interface.signature

    def __call__(self, *args: object, **named: object) -> Any:
        """Compute what the module would return for these arguments.

        :raises UsageError: if they don't fit. :raises OnnxpartError: if the graph can't compute with them.
        """
        outputs = self.call(*self.interface.tensors(args, named))
        return self.interface.returned([outputs] if isinstance(outputs, Tensor) else outputs)
