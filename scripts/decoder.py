"""A decoder of a language model in bfloat16, its weights in external data: for figures of memory and time."""

from pathlib import Path
from typing import Any

from onnx import NodeProto, TensorProto, helper

SIZES = {"0.3B": (16, 1_024, 2_816), "1.5B": (28, 2_048, 5_504), "7B": (32, 4_096, 11_008)}
"""Layers, width, and width within the perceptrons of what is called so."""
TOKENS, HEAD = 32_000, 128
"""Size of the vocabulary, and width of a head."""


def build(size: str, path: Path) -> int:
    """Write a decoder as a file and `<name>.data` beside it; returns the bytes of its largest weight.

    The data are a hole of the file system: all zeros, which take no place on the disk.
    """
    layers, width, inner = SIZES[size]
    data = path.with_name(path.name + ".data")
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    end = largest = 0

    def weight(name: str, *dims: int) -> str:
        nonlocal end, largest
        tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=dims)
        tensor.data_location, length = TensorProto.EXTERNAL, 2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
        for key, value in (("location", data.name), ("offset", end), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        end, largest = end + length, max(largest, length)
        tensors.append(tensor)
        return name

    def node(op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def linear(name: str, x: str, *dims: int) -> str:
        return node("MatMul", name, x, weight(f"{name}.weight", *dims))

    def norm(name: str, x: str) -> str:
        return node("RMSNormalization", name, x, weight(f"{name}.weight", width))

    for name, shape in (("split", [0, 0, -1, HEAD]), ("joined", [0, 0, width])):
        tensors.append(helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape))
    h = node("Gather", "embedded", weight("embedding", TOKENS, width), "tokens")
    for i in range(layers):
        x, heads = norm(f"{i}.norm", h), []
        for name, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            apart = node("Reshape", f"{i}.{name}.heads", linear(f"{i}.{name}", x, width, width), "split")
            heads.append(node("Transpose", f"{i}.{name}.turned", apart, perm=perm))
        scores = node("Softmax", f"{i}.softmax", node("MatMul", f"{i}.scores", *heads[:2]), axis=-1)
        seen = node("Transpose", f"{i}.last", node("MatMul", f"{i}.seen", scores, heads[2]), perm=[0, 2, 1, 3])
        out = linear(f"{i}.out", node("Reshape", f"{i}.joined", seen, "joined"), width, width)
        h = node("Add", f"{i}.attended", h, out)
        x = norm(f"{i}.second", h)
        gate = linear(f"{i}.gate", x, width, inner)
        gated = node("Mul", f"{i}.swish", gate, node("Sigmoid", f"{i}.sigmoid", gate))
        product = node("Mul", f"{i}.product", gated, linear(f"{i}.up", x, width, inner))
        h = node("Add", f"{i}.sum", h, linear(f"{i}.down", product, inner, width))
    linear("scores", norm("norm", h), width, TOKENS)
    ends = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"]),
        helper.make_tensor_value_info("scores", TensorProto.BFLOAT16, ["N", "T", TOKENS]),
    ]
    graph = helper.make_graph(nodes, f"decoder_{size}", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    path.write_bytes(model.SerializeToString())
    with data.open("wb") as file:
        file.truncate(end)
    return largest
