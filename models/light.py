"""The nine light models of the onnx wheel, with random weights in place of their constant ones.

The wheel ships the graphs of well-known image classifiers (operator set 9, batch 1) whose weights are
made by ConstantOfShape nodes, all 0.02. Networks of equal weights hide almost any mistake.
"""

from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.builder import IR_VERSION, generator, he_normal, near

_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_PREFIX = "light_"

# Center and spread by the operator and the input slot that an initializer reaches.
_NEAR: dict[tuple[str, int], tuple[float, float]] = {
    ("Add", 1): (0.0, 0.1),
    ("BatchNormalization", 1): (1.0, 0.2),
    ("BatchNormalization", 2): (0.0, 0.1),
    ("BatchNormalization", 3): (0.0, 0.1),
    ("BatchNormalization", 4): (1.0, 0.5),
    ("Conv", 2): (0.0, 0.1),
    ("Gemm", 2): (0.0, 0.1),
    ("Mul", 1): (1.0, 0.2),
}
_VIEWS = ("Reshape", "Unsqueeze")
# A normalisation that none of these follows ends a branch. Its scale is kept small: sums of many branches
# would grow otherwise, up to a softmax that is one everywhere but at one class.
_ACTIVATIONS = ("Mul", "Relu")
_BRANCH_END = (0.4, 0.1)


def light_names() -> tuple[str, ...]:
    """Return the names that `light` takes, sorted."""
    return tuple(sorted(path.stem.removeprefix(_PREFIX) for path in _FOLDER.glob(f"{_PREFIX}*.onnx")))


def light(name: str, seed: int = 0) -> ModelProto:
    """Return the light model `name` with seeded weights that keep the variance of what flows through.

    Weights are initializers under the names that the graph's nodes know them by; initializers that
    nothing reads and graph inputs that are initializers are gone. Nodes and values keep their names.
    Raises ValueError for a name that is not one of `light_names`.
    """
    if name not in light_names():
        raise ValueError(f"no light model {name!r}; there are {', '.join(light_names())}")
    model = onnx.load(_FOLDER / f"{_PREFIX}{name}.onnx")
    graph = model.graph
    old = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _weight_shapes(graph.node, old)
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    consumers = _consumers(nodes)
    kept = [tensor for key, tensor in old.items() if key in consumers and key not in shapes]
    weights = [_random(key, shape, consumers, seed) for key, shape in shapes.items() if key in consumers]
    inputs = [value for value in graph.input if value.name not in old]
    new = helper.make_graph(nodes, graph.name, inputs, list(graph.output), kept + weights)
    return helper.make_model(new, opset_imports=list(model.opset_import), ir_version=IR_VERSION)


def _weight_shapes(nodes: list[NodeProto], old: dict[str, TensorProto]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every float initializer, stored or made by a ConstantOfShape node."""
    shapes = {key: tuple(t.dims) for key, t in old.items() if t.data_type == TensorProto.FLOAT}
    for node in nodes:
        if node.op_type == "ConstantOfShape":
            shapes[node.output[0]] = tuple(numpy_helper.to_array(old[node.input[0]]).tolist())
    return shapes


def _consumers(nodes: list[NodeProto]) -> dict[str, tuple[NodeProto, int]]:
    """Return for each value the first node that reads it, and in which input slot."""
    found: dict[str, tuple[NodeProto, int]] = {}
    for node in nodes:
        for slot, value in enumerate(node.input):
            found.setdefault(value, (node, slot))
    return found


def _random(name: str, shape: tuple[int, ...], consumers: dict[str, tuple[NodeProto, int]], seed: int) -> TensorProto:
    """Draw the initializer `name` for the place where it is used, seen through reshaping nodes."""
    node, slot = consumers[name]
    while node.op_type in _VIEWS:
        node, slot = consumers[node.output[0]]
    rng = generator(seed, name)
    values: NDArray[np.float32]
    if (node.op_type, slot) == ("BatchNormalization", 1) and _ends_branch(node, consumers):
        values = near(rng, shape, *_BRANCH_END)
    elif (node.op_type, slot) in _NEAR:
        values = near(rng, shape, *_NEAR[node.op_type, slot])
    elif node.op_type == "Conv":
        values = he_normal(rng, shape, fan_in=prod(shape[1:]))
    elif node.op_type == "Gemm":
        values = he_normal(rng, shape, fan_in=shape[-1])
    else:
        raise ValueError(f"{name}: no initial values for input {slot} of {node.op_type} {node.name!r}")
    return numpy_helper.from_array(values, name)


def _ends_branch(node: NodeProto, consumers: dict[str, tuple[NodeProto, int]]) -> bool:
    """Tell whether the result of the normalisation `node` goes on without an activation."""
    return consumers[node.output[0]][0].op_type not in _ACTIVATIONS
