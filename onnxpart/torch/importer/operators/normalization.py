"""Normalisation and dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.modules import BatchNorm, Dropout
from onnxpart.torch.importer.operators.registry import operator


@operator("BatchNormalization", since=7)
def batch_norm(node: Node) -> Tensor | tuple[Tensor, ...]:
    """Normalise by running statistics, by the batch's in training (`training_mode` or not)."""
    if not node.attribute("spatial", 1):
        raise node.error("statistics for each position aren't imported; export it with opset 9 or later")
    several = len(node.outputs) > 1 and any(node.outputs[1:])
    layer = BatchNorm(1.0 - node.attribute("momentum", 0.9), node.attribute("epsilon", 1e-5), several, node.rank(0))
    statistics = [node.builder.statistic(node, index) for index in (3, 4)]
    result = node.module(layer, *(node.tensor(index) for index in range(3)), *statistics)
    return tuple(result[i] for i in range(3)) if several else result


@operator("Dropout")
def dropout(node: Node) -> Tensor | tuple[Tensor, ...]:
    """Drop elements in training; the ratio is an attribute before opset 12, the mask of x's type before 10."""
    ratio, masked = node.scalar(1, node.attribute("ratio", 0.5)) or 0.0, len(node.outputs) > 1
    result = node.module(Dropout(ratio, masked), node.tensor(0))
    if not masked:
        return result
    return result[0], result[1] if node.opset >= 10 else result[1].type_as(result[0])


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


def _moments(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + epsilon)


@operator("LayerNormalization", since=17)
def layer_norm(node: Node) -> Tensor | tuple[Tensor, ...]:
    """Normalise each sample over the axes from `axis` on; on request also return mean and inverse deviation."""
    x, scale, bias = node.tensor(0), node.tensor(1), node.optional(2)
    rank, epsilon = node.known_rank(0), node.attribute("epsilon", 1e-5)
    axis = node.attribute("axis", -1) % rank
    sizes, known = [node.size(0, i) for i in range(axis, rank)], (node.shape(0) or [])[axis:]
    if node.shape(1) == known and (bias is None or node.shape(2) == known):
        result = F.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        result = F.layer_norm(x, sizes, None, None, epsilon) * scale
        result = result if bias is None else result + bias
    if len(node.outputs) == 1:
        return result
    moments = node.call(_moments, x, list(range(axis, rank)), epsilon)
    return result, moments[0], moments[1]


@operator("GroupNormalization", since=21)
def group_norm(node: Node) -> Tensor:
    """Normalise groups of channels of each sample."""
    x, scale, bias = node.tensors()
    return F.group_norm(x, node.attribute("num_groups", 1), scale, bias, node.attribute("epsilon", 1e-5))


def _rms_norm(x: Tensor, scale: Tensor, axes: list[int], epsilon: float) -> Tensor:
    inner = x.float() if x.dtype.itemsize < 4 else x
    return (inner * torch.rsqrt(inner.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@operator("RMSNormalization", since=23)
def rms_norm(node: Node) -> Tensor:
    """Divide each sample by the root of its mean square over the axes from `axis` on."""
    x, scale, epsilon, rank = node.tensor(0), node.tensor(1), node.attribute("epsilon", 1e-5), node.known_rank(0)
    axes = list(range(node.attribute("axis", -1) % rank, rank))
    sizes = [node.size(0, axis) for axis in axes]
    if node.shape(1) == sizes:
        return F.rms_norm(x, sizes, scale, epsilon)
    return node.call(_rms_norm, x, scale, axes, epsilon)


def _lp_norm(x: Tensor, axis: int, p: int) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, axis, True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("LpNormalization")
def lp_norm(node: Node) -> Tensor:
    """Divide by the p-norm along an axis, zeros by 1."""
    return node.call(_lp_norm, node.tensor(0), node.attribute("axis", -1), node.attribute("p", 2))
