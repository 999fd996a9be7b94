"""What tracing would freeze: numbers that a module takes out of its inputs, and branches that depend on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BY_METHOD = ("__array__", "__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__")
NUMBERS = frozenset((*_BY_METHOD, "allclose", "equal", "is_nonzero", "item", "numpy", "tolist"))
"""Functions of tensors that give Python numbers, or a truth."""
_LIKE = ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
SIZES = frozenset((*_LIKE, "__get__", "__len__", "dim", "nelement", "numel", "size"))
"""Functions of tensors for which only the sizes count; `__get__` is that of attributes, as of `shape`."""


class Watch(TorchFunctionMode):
    """Follows what a module computes from its inputs, and keeps in `place` the line that takes a number out of it.

    All followed values stay in memory until the watch is deleted.
    """

    def __init__(self, inputs: object) -> None:
        super().__init__()
        self.place = ""
        self._followed: dict[int, Tensor] = {}
        self._follow(inputs)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, and follow its results if it reads a followed value."""
        name = getattr(func, "__name__", "")
        read = any(id(x) in self._followed for x in _tensors([*args, *(kwargs or {}).values()]))
        if read and name in NUMBERS:
            self.place = self.place or _place(inspect.currentframe())
        result = func(*args, **(kwargs or {}))
        if read and (name not in SIZES or (name == "__get__" and isinstance(result, Tensor))):
            self._follow(result)
        return result

    def _follow(self, values: object) -> None:
        self._followed.update((id(tensor), tensor) for tensor in _tensors(values))


def _tensors(values: object) -> Iterator[Tensor]:
    """The tensors among values."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple | Mapping):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)


def _place(frame: FrameType | None) -> str:
    """The file and line outside torch and this file from which a frame was called."""
    library = str(Path(torch.__file__).parent)
    while frame is not None and (frame.f_code.co_filename.startswith(library) or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
