"""Run a module on the meta device with fake tensors, which have shapes and types, but no values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextlib.contextmanager
def faked(module: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Replace a module's tensors by fake ones on the CPU within the context.

    :returns: fake inputs to run it on.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    own = [
        (child, name, tensor)
        for child in module.modules()
        for named in (child.named_parameters, child.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    try:
        for child, name, tensor in own:
            setattr(child, name, fake(tensor))
        yield {name: fake(tensor) for name, tensor in inputs.items()}
    finally:
        for child, name, tensor in own:
            setattr(child, name, tensor)
