"""Convolutions, poolings and group norms of several parts as one kernel: the channels of all parts are one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from onnxpart.torch.importer.graph_module import Body


def use_grouped_kernels(body: Body) -> None:
    """Let a module compute the same for all parts at once when `torch.vmap` adds the parts' axis.

    `torch.vmap` alone moves that axis in front of the samples. That copies every image, and loses the layout with
    channels last, in which it has no group norms.
    """
    graph = body.program.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _FORMS:
            node.target = _FORMS[node.target]
        elif node.op == "call_module":
            layer = body.get_submodule(str(node.target))
            function = _LAYERS.get(type(layer))
            if function is not None:
                _call_grouped(graph, node, layer, _FORMS[function])
    body.program.recompile()


def _call_grouped(graph: fx.Graph, node: fx.Node, layer: Any, function: Callable[..., Tensor]) -> None:
    """Replace a call of a layer by a function of its weight and bias."""
    with graph.inserting_before(node):
        weight = graph.get_attr(f"{node.target}.weight")
        bias = None if layer.bias is None else graph.get_attr(f"{node.target}.bias")
        args: tuple[fx.node.Argument, ...]
        if isinstance(layer, nn.GroupNorm):
            args = (node.args[0], layer.num_groups, weight, bias, layer.eps)
        else:
            args = (node.args[0], weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        call = graph.call_function(function, args)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)


class _Grouped(torch.autograd.Function):
    """A function that is only called under `torch.vmap`; its gradient is that of the functions that it calls."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Compute one part alone."""
        return function(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing."""


class _Convolution(_Grouped):
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
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], x: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        x = _joined(x, in_dims[1], info.batch_size, 1)
        return _apart(function(x, *rest), info.batch_size), 1


class _GroupNorm(_Grouped):
    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Tensor],
        x: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
    ) -> tuple[Tensor, int]:
        """Norm the groups of all parts at once (see `_Convolution.vmap`)."""
        count = info.batch_size
        x = _joined(x, in_dims[1], count, 1)
        weight, bias = (_joined(each, in_dims[i], count, 0) for i, each in ((3, weight), (4, bias)))
        return _apart(function(x, groups * count, weight, bias, epsilon), count), 1


def _joined(x: Tensor, dim: int | None, count: int, axis: int) -> Tensor:
    """Move the parts' axis in front of another one, and join both."""
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


_LAYERS: Mapping[type, Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.GroupNorm: F.group_norm,
}
_FORMS: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    function: _form(kind, function)
    for kind, functions in (
        (_Convolution, (F.conv1d, F.conv2d, F.conv3d)),
        (_GroupNorm, (F.group_norm,)),
        (_Pooling, (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)),
    )
    for function in functions
}
