"""Operators with weights, pooling, and normalisation."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.operators import runtime
from onnxpart.torch.operators.modules import BatchNorm, Dropout
from onnxpart.torch.operators.registry import Node, operator

_CONV: list[Callable[..., Tensor]] = [F.conv1d, F.conv2d, F.conv3d]
_CONV_TRANSPOSE: list[Callable[..., Tensor]] = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
_MAX_POOL: list[Callable[..., Tensor]] = [F.max_pool1d, F.max_pool2d, F.max_pool3d]
_AVERAGE_POOL: list[Callable[..., Tensor]] = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


class Window:
    """The attributes of an operator that slides a window over the spatial axes, with defaults filled in."""

    def __init__(self, node: Node) -> None:
        shape = node.attribute("kernel_shape", []) or (node.shape(1) or [])[2:]
        kernel = [size for size in shape if size is not None]
        if not kernel or len(kernel) < len(shape):
            raise node.error("the kernel's shape is unknown; add the attribute kernel_shape")
        self.node, self.kernel, self.rank = node, kernel, len(kernel)
        if self.rank > 3:
            raise node.error(f"{self.rank} spatial axes, torch has at most 3; merge some by Reshape")
        self.strides = node.attribute("strides", [1] * self.rank)
        self.dilations = node.attribute("dilations", [1] * self.rank)
        self.pads = node.attribute("pads", [0] * 2 * self.rank)
        self.auto_pad = node.attribute("auto_pad", "NOTSET")
        if self.auto_pad == "VALID":
            self.pads = [0] * 2 * self.rank
        self._spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def pad(self, x: Tensor, value: float, at_most: int | None = None) -> tuple[Tensor, list[int]]:
        """Pad x [N, C, ...] as far as torch's function can't; return it, and the padding left to torch.

        That is where the pads of both ends differ, or exceed a share `1 / at_most` of the window.
        """
        pads = self.pads
        if self.auto_pad.startswith("SAME"):
            upper, shape = self.auto_pad == "SAME_UPPER", self.node.shape(0)
            sizes = shape[2:] if shape else [None] * self.rank
            sizes = [1 if stride == 1 else size for size, stride in zip(sizes, self.strides, strict=True)]
            known = [size for size in sizes if size is not None]
            if len(known) < self.rank:
                x = self.node.call(runtime.pad_same, x, self._spans, self.strides, upper, value)
                return x, [0] * self.rank
            pads = runtime.same_pads(known, self._spans, self.strides, upper)
        begins, ends = pads[: self.rank], pads[self.rank :]
        fits = not at_most or all(b <= k // at_most for b, k in zip(begins, self.kernel, strict=True))
        if begins == ends and fits:
            return x, begins
        return F.pad(x, runtime.torch_pads(pads), value=value), [0] * self.rank


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


@operator("MaxPool")
def max_pool(node: Node) -> Tensor:
    """Take the maximum of each window."""
    window = Window(node)
    x, padding = window.pad(node.tensor(0), -torch.inf, at_most=2)
    args = (window.kernel, window.strides, padding, window.dilations, bool(node.attribute("ceil_mode", 0)))
    return node.call(_MAX_POOL[window.rank - 1], x, *args)


@operator("AveragePool")
def average_pool(node: Node) -> Tensor:
    """Take the mean of each window, with or without the padding."""
    window = Window(node)
    if any(dilation != 1 for dilation in window.dilations):
        raise node.error("dilated average pooling isn't imported; express it by a grouped Conv")
    function, count_padding = _AVERAGE_POOL[window.rank - 1], bool(node.attribute("count_include_pad", 0))
    x = node.tensor(0)
    padded, padding = window.pad(x, 0.0, at_most=2)
    args = (window.kernel, window.strides, padding, bool(node.attribute("ceil_mode", 0)), count_padding)
    result = node.call(function, padded, *args)
    if padded is x or count_padding:
        return result
    share, _ = window.pad(node.call(runtime.ones_like_image, x), 0.0, at_most=2)
    return result / node.call(function, share, *args)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Tensor:
    """Reduce all spatial axes to size 1."""
    axes = list(range(2, node.known_rank(0)))
    function: Callable[..., Tensor] = torch.mean if node.op_type == "GlobalAveragePool" else torch.amax
    return node.call(function, node.tensor(0), axes, True)


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


@operator("BatchNormalization", since=7)
def batch_norm(node: Node) -> Tensor:
    """Normalise by running statistics, by the batch's in training (`training_mode` or not)."""
    layer = BatchNorm(1.0 - node.attribute("momentum", 0.9), node.attribute("epsilon", 1e-5))
    statistics = [node.builder.statistic(node, index) for index in (3, 4)]
    return node.module(layer, *(node.tensor(index) for index in range(3)), *statistics)


@operator("Dropout")
def dropout(node: Node) -> Tensor:
    """Drop elements in training; the ratio is an attribute before opset 12."""
    return node.module(Dropout(node.scalar(1, node.attribute("ratio", 0.5)) or 0.0), node.tensor(0))


@operator("LRN")
def local_response_norm(node: Node) -> Tensor:
    """Normalise by the squares of neighbouring channels."""
    size, alpha, beta = (
        node.attribute(name, default) for name, default in (("size", 1), ("alpha", 1e-4), ("beta", 0.75))
    )
    return node.call(runtime.local_response_norm, node.tensor(0), size, alpha, beta, node.attribute("bias", 1.0))


@operator("InstanceNormalization", since=6)
def instance_norm(node: Node) -> Tensor:
    """Normalise each channel of each sample."""
    x, scale, bias = node.tensors()
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.attribute("epsilon", 1e-5))


@operator("LayerNormalization", since=17)
def layer_norm(node: Node) -> Tensor:
    """Normalise each sample over the axes from `axis` on."""
    x, scale, bias = node.tensor(0), node.tensor(1), node.optional(2)
    rank, epsilon = node.known_rank(0), node.attribute("epsilon", 1e-5)
    axis = node.attribute("axis", -1) % rank
    sizes, known = [node.size(0, i) for i in range(axis, rank)], (node.shape(0) or [])[axis:]
    if node.shape(1) == known and (bias is None or node.shape(2) == known):
        return F.layer_norm(x, sizes, scale, bias, epsilon)
    result = F.layer_norm(x, sizes, None, None, epsilon) * scale
    return result if bias is None else result + bias


@operator("GroupNormalization", since=21)
def group_norm(node: Node) -> Tensor:
    """Normalise groups of channels of each sample."""
    x, scale, bias = node.tensors()
    return F.group_norm(x, node.attribute("num_groups", 1), scale, bias, node.attribute("epsilon", 1e-5))
