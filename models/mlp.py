"""A multi-layer perceptron for regression, where Eq. (1) is the mean of the parts' predictions."""

from itertools import pairwise

from onnx import ModelProto

from models.builder import GraphBuilder


def regression_mlp(seed: int = 0, inputs: int = 8, hidden: tuple[int, ...] = (64, 64), outputs: int = 1) -> ModelProto:
    """Return the network: x ``[N, inputs]`` to y ``[N, outputs]``, Tanh after each hidden layer."""
    g = GraphBuilder("regression_mlp", seed)
    h = g.input("x", "N", inputs)
    for index, units in enumerate(pairwise((inputs, *hidden)), start=1):
        h = g.node("Tanh", f"tanh{index}", g.linear(f"fc{index}", h, units))
    y = g.linear("y", h, ((inputs, *hidden)[-1], outputs))
    return g.build({y: ("N", outputs)})
