"""Products: convolutions and matrices."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.operators.window import Window

_CONV: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]
_CONV_TRANSPOSE: list[Callable[..., Tensor]] = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]


@operator("Conv")
def conv(node: Node) -> Tensor:
    """Convolve, in groups."""
    window = Window(node)
    x, padding = window.pad(node.tensor(0), 0.0)
    args = (window.strides, padding, window.dilations, node.attribute("group", 1))
    return node.call(_CONV[window.rank - 1], x, node.tensor(1), node.optional(2), *args)


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Tensor:
    """Transpose a convolution; pads crop its result."""
    window = Window(node)
    function = _CONV_TRANSPOSE[window.rank - 1]
    target: list[int] = node.attribute("output_shape", [])
    extra, group = node.attribute("output_padding", [0] * window.rank), node.attribute("group", 1)
    begins, ends = window.pads[: window.rank], window.pads[window.rank :]
    same = window.auto_pad.startswith("SAME")
    symmetric = begins == ends and not target and not same

    x, weight, bias = node.tensor(0), node.tensor(1), node.optional(2)
    padding = begins if symmetric else [0] * window.rank
    result = node.call(function, x, weight, bias, window.strides, padding, extra, group, window.dilations)
    if symmetric:
        return result
    if not target and same:
        target = [node.size(0, axis + 2) * stride for axis, stride in enumerate(window.strides)]
    if target:
        return node.call(runtime.crop_to, result, target[-window.rank :], window.auto_pad == "SAME_UPPER")
    return F.pad(result, runtime.torch_pads([-pad for pad in window.pads]))


@operator("MatMul")
def matmul(node: Node) -> Tensor:
    """Multiply matrices, batched and broadcast."""
    return torch.matmul(node.tensor(0), node.tensor(1))


@operator("Gemm", since=7)
def gemm(node: Node) -> Tensor:
    """Multiply two matrices and add; a linear layer where it is one."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    a, b, c = node.tensor(0), node.tensor(1), node.optional(2)
    a = a.t() if node.attribute("transA", 0) else a
    transposed = bool(node.attribute("transB", 0))
    if transposed and alpha == beta == 1.0 and (c is None or node.rank(2) == 1):
        return F.linear(a, b, c)
    b = b.t() if transposed else b
    if c is None:
        return torch.mm(a, b) if alpha == 1.0 else torch.mm(a, b) * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@operator("Det", since=11)
def determinant(node: Node) -> Tensor:
    """Compute the determinants of matrices."""
    return node.call(torch.linalg.det, node.tensor(0))


@operator("Einsum", since=12)
def einsum(node: Node) -> Tensor:
    """Contract by an equation."""
    return node.call(torch.einsum, node.attribute("equation", ""), *node.tensors())
