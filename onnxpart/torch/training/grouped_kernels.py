"""Convolutions and poolings of several parts as grouped kernels: the channels of all parts are one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F


def use_grouped_kernels(body: fx.GraphModule) -> None:
    """Let a graph compute convolutions and poolings of all parts at once where `torch.vmap` adds the parts' axis.

    `torch.vmap` alone moves that axis in front of the samples, which takes a copy of every image, and loses the
    layout with channels last.
    """
    for node in body.graph.nodes:
        if node.op == "call_function" and node.target in _FORMS:
            node.target = _FORMS[node.target]
    body.recompile()


class _Grouped(torch.autograd.Function):
    """What is only ever called under `torch.vmap`, and is differentiated through what it calls itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""


class _Convolution(_Grouped):
    @staticmethod
    def forward(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        return function(x, weight, bias, *rest)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        strides: list[int],
        padding: list[int],
        dilations: list[int],
        groups: int,
    ) -> tuple[Tensor, int]:
        """Run the parts as one grouped kernel; torch asks so (see `torch.autograd.Function.vmap`)."""
        count = info.batch_size
        weight = _joined(weight, in_dims[2], count, 0)
        bias = None if bias is None else _joined(bias, in_dims[3], count, 0)
        if in_dims[1] is not None or groups > 1:
            x, groups = _joined(x, in_dims[1], count, 1), groups * count
        if x.dim() == 4 and x.device.type == "cpu":  # as a whole would be computed there
            weight = weight.to(memory_format=torch.channels_last)
        return _apart(function(x, weight, bias, strides, padding, dilations, groups), count), 1


class _Pooling(_Grouped):
    @staticmethod
    def forward(function: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        return function(x, *rest)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], x: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        x = _joined(x, in_dims[1], info.batch_size, 1)
        return _apart(function(x, *rest), info.batch_size), 1


def _joined(x: Tensor, dim: int | None, count: int, axis: int) -> Tensor:
    """Put the parts' axis before another one, and make one of both."""
    parts = x.unsqueeze(axis).expand(*x.shape[:axis], count, *x.shape[axis:]) if dim is None else x.movedim(dim, axis)
    return parts.flatten(axis, axis + 1)


def _apart(x: Tensor, count: int) -> Tensor:
    return x.view(x.shape[0], count, -1, *x.shape[2:])


def _form(kind: type[_Grouped], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        result: Tensor = kind.apply(function, *args)  # type: ignore[no-untyped-call]
        return result

    call.__name__ = f"grouped_{function.__name__}"  # the name in the graph's code
    return call


_FORMS: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    function: _form(kind, function)
    for kind, functions in (
        (_Convolution, (F.conv1d, F.conv2d, F.conv3d)),
        (_Pooling, (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)),
    )
    for function in functions
}
