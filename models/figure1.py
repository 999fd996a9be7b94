"""The network of the paper's figure 1: two hidden layers that part into groups of equal size."""

from onnx import ModelProto

from models.builder import GraphBuilder


def figure1(seed: int = 0, inputs: int = 3, group: int = 2, outputs: int = 2) -> ModelProto:
    """Return the network X, L1, L2, Y: x ``[N, inputs]`` to y ``[N, outputs]``.

    Each hidden layer has ``2 * group`` units with ReLU. Source: figure 1.
    """
    g = GraphBuilder("figure1", seed)
    h = g.input("x", "N", inputs)
    h = g.relu("relu1", g.linear("L1", h, (inputs, 2 * group)))
    h = g.relu("relu2", g.linear("L2", h, (2 * group, 2 * group)))
    y = g.linear("y", h, (2 * group, outputs))
    return g.build({y: ("N", outputs)})
