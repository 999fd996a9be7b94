"""The CIFAR10 network of the paper's section 3.2: cuda-convnet's `layers-conv-local-11pct`."""

import numpy as np
from onnx import ModelProto

from models.builder import GraphBuilder

_SIDE = 6
_KERNEL = 3


def cifar10_net(seed: int = 0) -> ModelProto:
    """Return the network: x ``[N, 3, 24, 24]`` to logits ``[N, 10]``, 2112970 parameters.

    Two 5x5 convolutions of 64 filters, with overlapping max-pooling (24 to 12 to 6, rounded up) and
    normalisation across the channels, two locally connected 3x3 layers of 64 and 32 filters that share
    neither weights nor biases between positions, and a dense layer.
    Source: section 3.2; Krizhevsky's cuda-convnet, `layers-conv-local-11pct`.
    """
    g = GraphBuilder("cifar10", seed)
    x = g.input("x", "N", 3, 24, 24)
    h = g.relu("relu1", g.conv("conv1", x, (3, 64), kernel=5))
    h = g.max_pool("pool1", h, kernel=3, stride=2, ceil_mode=1)
    h = _normalisation(g, "norm1", h)
    h = g.relu("relu2", g.conv("conv2", h, (64, 64), kernel=5))
    h = _normalisation(g, "norm2", h)
    h = g.max_pool("pool2", h, kernel=3, stride=2, ceil_mode=1)
    h = g.relu("relu3", _locally_connected(g, "local3", h, (64, 64)))
    h = g.relu("relu4", _locally_connected(g, "local4", h, (64, 32)))
    h = g.node("Flatten", "flatten", h, axis=1)
    logits = g.linear("logits", h, (32 * _SIDE**2, 10))
    return g.build({logits: ("N", 10)})


def _normalisation(g: GraphBuilder, name: str, x: str) -> str:
    """Add a response normalisation across 9 neighbouring channels."""
    return g.node("LRN", name, x, size=9, alpha=0.001, beta=0.75, bias=1.0)


def _locally_connected(g: GraphBuilder, name: str, x: str, channels: tuple[int, int]) -> str:
    """Add a 3x3 layer with weights of its own at each position: ``[N, I, 6, 6]`` to ``[N, O, 6, 6]``.

    The weight is ``[6, 6, I, 3, 3, O]`` and the bias ``[O, 6, 6]``: the channels stay axes of their own.
    """
    inputs, outputs = channels
    pads = g.integers(f"{name}.pads", [0, 0, 1, 1, 0, 0, 1, 1])
    windows = np.arange(_SIDE)[:, None] + np.arange(_KERNEL)
    window = g.initializer(f"{name}.windows", windows.astype(np.int64))
    padded = g.node("Pad", f"{name}.pad", x, pads)
    rows = g.node("Gather", f"{name}.rows", padded, window, axis=2)
    patches = g.node("Gather", f"{name}.patches", rows, window, axis=4)
    shape = (_SIDE, _SIDE, inputs, _KERNEL, _KERNEL, outputs)
    weight = g.weight(f"{name}.weight", *shape, fan_in=inputs * _KERNEL**2)
    product = g.node("Einsum", f"{name}.product", patches, weight, equation="ncyixj,yxcijo->noyx")
    return g.node("Add", name, product, g.values(f"{name}.bias", outputs, _SIDE, _SIDE))
