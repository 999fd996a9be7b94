"""The values that operators read and return while a module is built."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from onnxpart.errors import OnnxpartError


@dataclass(frozen=True)
class Integers:
    """An int64 value of rank 1, or of rank 0 if `scalar`; an item is an int, or a proxy for one."""

    items: tuple[int, ...]
    scalar: bool = False

    @property
    def known(self) -> bool:
        """Whether every item is an int already."""
        return are_known(self.items)


def are_known(items: Iterable[object]) -> bool:
    """Whether every item is an int already, none a proxy."""
    return all(isinstance(item, int) for item in items)


Value: TypeAlias = "torch.Tensor | Integers | Constant"


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is known while importing: an initializer, or the result of a node without inputs.

    `padding`: the row that lookups don't train.
    """

    name: str
    array: np.ndarray
    padding: int | None = None


class Unknown(OnnxpartError):
    """A value that is needed while importing, but known only at run time; the node is then interpreted at run time."""


@dataclass(frozen=True)
class Info:
    """What shape inference says of a value; None for what it doesn't know."""

    shape: tuple[int | None, ...] | None = None
    dtype: int | None = None
