"""The LeNet of the paper's section 3.1 (Miranda & Von Zuben, arXiv:1511.02954)."""

import numpy as np
from onnx import ModelProto

from models.builder import GraphBuilder


def lenet(seed: int = 0) -> ModelProto:
    """Return LeNet: x ``[N, 1, 28, 28]`` to logits ``[N, 10]``, 431080 parameters.

    Two valid 5x5 convolutions of 20 and 50 filters, each with ReLU and 2x2 max-pooling, then 500 hidden
    units with ReLU and dropout 0.5. Source: section 3.1 and table 1.
    """
    g = GraphBuilder("lenet", seed)
    h = g.input("x", "N", 1, 28, 28)
    for index, channels in enumerate(((1, 20), (20, 50)), start=1):
        h = g.relu(f"relu{index}", g.conv(f"conv{index}", h, channels, kernel=5, pad=0))
        h = g.max_pool(f"pool{index}", h, kernel=2, stride=2)
    h = g.node("Flatten", "flatten", h, axis=1)
    h = g.relu("relu3", g.linear("fc1", h, (50 * 4 * 4, 500)))
    h = g.node("Dropout", "dropout", h, g.initializer("dropout.ratio", np.array(0.5, dtype=np.float32)))
    logits = g.linear("logits", h, (500, 10))
    return g.build({logits: ("N", 10)})
