"""Random numbers that each part draws for itself, whether parts are computed one by one or as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

_generators: ContextVar[Sequence[torch.Generator]] = ContextVar("_generators", default=())
"""Of the parts that are computed as one batch, where such parts are computed."""


def seed_of(*numbers: int) -> int:
    """Return one seed made from several numbers that aren't negative."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_device(number: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device; those of other GPUs stay as they are."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@contextmanager
def drawing(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let the parts of a batch draw from a generator each, in order."""
    token = _generators.set(generators)
    try:
        yield
    finally:
        _generators.reset(token)


class _Uniform(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, part: Tensor) -> Tensor:  # noqa: ARG004
        return torch.rand(x.shape, device=x.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, part: Tensor) -> tuple[Tensor, int]:  # noqa: ARG004
        shape = x.shape if in_dims[0] is None else x.movedim(in_dims[0], 0).shape[1:]
        generators: Sequence[torch.Generator | None] = _generators.get() or [None] * info.batch_size
        return torch.stack([torch.rand(shape, device=x.device, generator=g) for g in generators]), 0


def uniform(x: Tensor, part: Tensor) -> Tensor:
    """Draw numbers from [0, 1), float32 of the shape of `x`.

    :param part: any tensor that differs between parts: it tells `torch.vmap` to draw for each part. The parts'
        generators are those of `drawing`; outside of it torch's own is drawn from.
    """
    if torch.compiler.is_compiling() or not _generators.get():  # parts in one batch that draw aren't compiled
        return torch.rand(x.shape, device=x.device)
    result: Tensor = _Uniform.apply(x, part)  # type: ignore[no-untyped-call]
    return result
