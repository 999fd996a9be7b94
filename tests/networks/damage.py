"""Files as an enemy would write them: valid models and folders, damaged by chance, and bombs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models import golden
from models.lenet import lenet
from onnxpart import OnnxpartError, split

Rng: TypeAlias = np.random.Generator
NUMBERS = (0, 1, -1, 2, -2, 3, 7, 127, 1 << 16, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
NAMES = (
    "",
    "x",
    "y",
    "0",
    "\n",
    "a\nerror: b",
    "\x1b[31mred",
    "é",
    "../../up",
    "<b>",
    "%s",
    "{0}",
    "a" * 5000,
    "\u202e",
)
OPERATORS = (
    "Add", "MatMul", "Conv", "Reshape", "Concat", "Gather", "Expand", "Tile", "Range", "ConstantOfShape", "Loop", "If",
    "Scan", "Split", "Slice", "Pad", "Einsum", "TopK", "Nothing", "LSTM", "Resize", "OneHot", "Softmax", "Transpose",
)  # fmt: skip
BOMBS = ("ConstantOfShape", "Range", "Expand", "Tile", "Concat", "Mul")


def bases() -> dict[str, Callable[[], ModelProto]]:
    """The models that are damaged, by name."""
    return {**golden.GOLDEN, "lenet": lenet}


# -- bytes ----------------------------------------------------------------------------------------------------------


def damaged_bytes(rng: Rng, content: bytes) -> bytes:
    """Some bytes flipped, cut off, inserted, repeated or exchanged."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at, kind = int(rng.integers(0, len(data) + 1)), int(rng.integers(0, 6))
        length = int(rng.integers(1, 40))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = rng.bytes(length)
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif at < len(data):
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(data)


# -- models ---------------------------------------------------------------------------------------------------------


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _number(rng: Rng) -> int:
    return int(NUMBERS[int(rng.integers(0, len(NUMBERS)))])


def _name(rng: Rng, graph: GraphProto) -> str:
    known = [n for node in graph.node for n in (*node.input, *node.output)]
    return str(rng.choice(known)) if known and rng.random() < 0.6 else NAMES[int(rng.integers(0, len(NAMES)))]


def _change_node(rng: Rng, graph: GraphProto, node: NodeProto) -> None:
    kind = int(rng.integers(0, 7))
    if kind == 0 and node.input:
        node.input[int(rng.integers(0, len(node.input)))] = _name(rng, graph)
    elif kind == 1 and node.output:
        node.output[int(rng.integers(0, len(node.output)))] = _name(rng, graph)
    elif kind == 2:
        node.op_type = str(rng.choice(OPERATORS))
    elif kind == 3:
        node.domain = str(rng.choice(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "onnxpart.enter", "nowhere"]))
    elif kind == 4:
        node.name = _name(rng, graph)
    elif kind == 5:
        node.input.append(_name(rng, graph))
    else:
        _change_attribute(rng, node)


def _change_attribute(rng: Rng, node: NodeProto) -> None:
    if not node.attribute or rng.random() < 0.2:
        name = str(
            rng.choice(["axis", "axes", "perm", "group", "kernel_shape", "to", "value", "pads", "strides", "alpha"])
        )
        node.attribute.append(helper.make_attribute(name, [_number(rng)] if rng.random() < 0.5 else _number(rng)))
        return
    attribute = node.attribute[int(rng.integers(0, len(node.attribute)))]
    kind = int(rng.integers(0, 5))
    if kind == 0:
        node.attribute.remove(attribute)
    elif attribute.type == AttributeProto.INT:
        attribute.i = _number(rng)
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        if kind == 1:
            attribute.ints.append(_number(rng))
        elif kind == 2:
            attribute.ints.pop()
        else:
            attribute.ints[int(rng.integers(0, len(attribute.ints)))] = _number(rng)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(rng.choice([0.0, -1.0, np.inf, np.nan, 1e38]))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.bytes(4) if kind == 1 else str(rng.choice(NAMES)).encode()
    else:
        attribute.type = int(rng.integers(0, 15))


def _change_tensor(rng: Rng, tensor: TensorProto) -> None:
    kind = int(rng.integers(0, 7))
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(0, len(tensor.dims)))] = _number(rng)
    elif kind == 1:
        tensor.data_type = int(rng.choice([*range(30), 1000]))
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(0, len(tensor.raw_data) + 1))]
    elif kind == 3:
        tensor.dims.append(_number(rng))
    elif kind == 4 and tensor.dims:
        tensor.dims.pop()
    elif kind == 5:
        tensor.data_location = TensorProto.EXTERNAL
        place = str(rng.choice(["nowhere", "../../etc", "/", "", "\x00", "model.onnx", "."]))
        for key, value in (("location", place), ("offset", str(_number(rng))), ("length", str(_number(rng)))):
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.name = str(rng.choice(NAMES))


def damaged_model(rng: Rng, model: ModelProto) -> ModelProto:
    """A model with some fields changed for others that make little sense."""
    for _ in range(int(rng.integers(1, 4))):
        graphs = list(_graphs(model.graph))
        graph = graphs[int(rng.integers(0, len(graphs)))]
        kind = int(rng.integers(0, 10))
        nodes = list(graph.node)
        if kind <= 3 and nodes:
            _change_node(rng, graph, nodes[int(rng.integers(0, len(nodes)))])
        elif kind == 4 and nodes:
            graph.node.remove(nodes[int(rng.integers(0, len(nodes)))])
        elif kind == 5 and nodes:
            graph.node.append(nodes[int(rng.integers(0, len(nodes)))])
        elif kind == 6 and graph.initializer:
            _change_tensor(rng, graph.initializer[int(rng.integers(0, len(graph.initializer)))])
        elif kind == 7 and len(graph.input) + len(graph.output):
            values = [*graph.input, *graph.output]
            _change_value(rng, values[int(rng.integers(0, len(values)))])
        elif kind == 8:
            _change_header(rng, model)
        elif nodes:
            _replace_by_bomb(rng, graph, nodes[int(rng.integers(0, len(nodes)))])
    return model


def _change_value(rng: Rng, value: Any) -> None:
    kind, tensor = int(rng.integers(0, 5)), value.type.tensor_type
    if kind == 0:
        tensor.elem_type = int(rng.integers(0, 40))
    elif kind == 1 and tensor.shape.dim:
        tensor.shape.dim[int(rng.integers(0, len(tensor.shape.dim)))].dim_value = _number(rng)
    elif kind == 2:
        tensor.shape.dim.add().dim_value = _number(rng)
    elif kind == 3:
        value.name = NAMES[int(rng.integers(0, len(NAMES)))]
    else:
        value.ClearField("type")


def _change_header(rng: Rng, model: ModelProto) -> None:
    kind = int(rng.integers(0, 5))
    if kind == 0:
        del model.opset_import[:]
    elif kind == 1:
        model.opset_import.add(domain=str(rng.choice(["", "ai.onnx", "x"])), version=_number(rng))
    elif kind == 2:
        model.ir_version = _number(rng)
    elif kind == 3:
        model.metadata_props.add(
            key="onnxpart.plan", value=str(rng.choice(["{}", "[", "null", '{"k": 2}', "[" * 9999]))
        )
    else:
        model.graph.doc_string = "\x1b]0;title\x07" * int(rng.integers(1, 9))


def _constant(name: str, values: Any) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values, np.int64), name))


def _of_size(kind: str, name: str, size: int) -> list[NodeProto]:
    """Nodes that compute `name`, which is of a size that a constant tells."""
    count, little = _constant(f"{name}.n", [size]), _constant(f"{name}.0", [1])
    make = helper.make_node
    if kind == "ConstantOfShape":
        return [count, make(kind, [f"{name}.n"], [name])]
    if kind == "Range":
        bounds = [_constant(f"{name}.{i}", value) for i, value in enumerate((0, size, 1))]
        return [*bounds, make(kind, [f"{name}.0", f"{name}.1", f"{name}.2"], [name])]
    return [count, little, make(kind, [f"{name}.0", f"{name}.n"], [name])]  # Expand, Tile


def _repeated(kind: str, name: str, times: int, **attributes: Any) -> list[NodeProto]:
    """Nodes each of which combines the one before with itself."""
    values = [f"{name}.{i}" for i in range(times)] + [name]
    first = _constant(values[0], [1, 3])
    return [first, *(helper.make_node(kind, [a, a], [b], **attributes) for a, b in pairwise(values))]


def _replace_by_bomb(rng: Rng, graph: GraphProto, node: NodeProto) -> None:
    """What reads the node's first output reads something huge, which is computed of little."""
    if not node.output or not node.output[0]:
        return
    name, out = f"bomb{int(rng.integers(0, 1 << 30))}", node.output[0]
    kind, size = str(rng.choice(BOMBS)), int(rng.choice([1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -5]))
    attributes: dict[str, Any] = {"axis": 0} if kind == "Concat" else {}
    new = _repeated(kind, name, 40, **attributes) if kind in ("Concat", "Mul") else _of_size(kind, name, size)
    at = list(graph.node).index(node)
    rest = [NodeProto.FromString(n.SerializeToString()) for n in graph.node[at + 1 :]]
    del graph.node[at + 1 :]
    graph.node.extend([*new, helper.make_node("Cast", [name], [f"{name}.cast"], to=TensorProto.FLOAT)])
    for other in rest:
        other.input[:] = [f"{name}.cast" if read == out else read for read in other.input]
    graph.node.extend(rest)


def nested_functions(depth: int) -> ModelProto:
    """Functions each of which calls the next one twice: 2 ** depth nodes when written out."""
    model = golden.chain()
    opsets = list(model.opset_import)
    body = [helper.make_node("Identity", ["x"], ["y"])]
    functions = [helper.make_function("bomb", "f0", ["x"], ["y"], body, opsets)]
    for i in range(1, depth + 1):
        calls = [helper.make_node(f"f{i - 1}", ["x"], ["h"], domain="bomb"),
                 helper.make_node(f"f{i - 1}", ["h"], ["y"], domain="bomb")]  # fmt: skip
        functions.append(
            helper.make_function("bomb", f"f{i}", ["x"], ["y"], calls, [*opsets, helper.make_opsetid("bomb", 1)])
        )
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("bomb", 1))
    first = model.graph.node[0]
    model.graph.node.insert(0, helper.make_node(f"f{depth}", [first.input[0]], ["bombed"], domain="bomb"))
    model.graph.node[1].input[0] = "bombed"
    return model


# -- JSON -----------------------------------------------------------------------------------------------------------


def damaged_json(rng: Rng, text: str) -> str:
    """A JSON text with some values changed, or that is none."""
    if rng.random() < 0.2:
        return str(rng.choice(["", "{", "[" * 100_000, "null", "1e999", '"' + "a" * 10, "\x00", "{}" * 2, "NaN"]))
    data = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        _change_json(rng, data)
    return json.dumps(data)


def _change_json(rng: Rng, data: Any) -> None:
    at: Any = data
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = keys[int(rng.integers(0, len(keys)))]
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        kind = int(rng.integers(0, 4))
        if kind == 0:
            del at[key]
        elif kind == 1:
            at[key] = _number(rng)
        else:
            at[key] = [None, True, "", -1, 1.5, [], {}, "a\n", [[]], float("nan")][int(rng.integers(0, 10))]
        return


# -- cases ----------------------------------------------------------------------------------------------------------


def prepare(seed: int, folder: Path) -> list[list[str]]:
    """Write the damaged files of a seed, and return the commands to give in their folder."""
    rng = np.random.default_rng(seed)
    names = sorted(bases())
    model = bases()[names[int(rng.integers(0, len(names)))]]()
    kind = int(rng.integers(0, 10))
    k = int(rng.choice([1, 2, 2, 2, 3, 4]))
    if kind < 5:
        content = damaged_model(rng, model).SerializeToString()
    elif kind == 5:
        content = damaged_bytes(rng, model.SerializeToString())
    elif kind == 6 and rng.random() < 0.1:
        content = nested_functions(int(rng.integers(1, 26))).SerializeToString()
    else:
        return _damaged_folder(rng, model, k, folder)
    (folder / "model.onnx").write_bytes(content)
    name = ["--outputs", _name(rng, model.graph)] if rng.random() < 0.1 else []
    return [
        ["inspect", "model.onnx", "-k", str(k), *name],
        ["split", "model.onnx", "-k", str(k), "-o", "parts", *name],
        ["merge", "parts", "-o", "merged.onnx"],
    ]


def _damaged_folder(rng: Rng, model: ModelProto, k: int, folder: Path) -> list[list[str]]:
    """A split's folder with a damaged file in it."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    try:
        split(folder / "model.onnx", k).save(folder / "parts")
    except OnnxpartError:
        return [["split", "model.onnx", "-k", str(k), "-o", "parts"]]
    files = sorted((folder / "parts").iterdir())
    file = files[int(rng.integers(0, len(files)))]
    kind = int(rng.integers(0, 4))
    if kind == 0:
        file.unlink()
    elif file.suffix == ".json":
        file.write_text(damaged_json(rng, file.read_text()))
    elif kind == 1:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))
    else:
        damaged = damaged_model(rng, ModelProto.FromString(file.read_bytes()))
        file.write_bytes(damaged.SerializeToString())
    into = ["--into", "original"] if rng.random() < 0.3 else []
    return [["merge", "parts", "-o", "merged.onnx", *into], ["widen", "parts/part0.onnx", "-o", "wide.onnx"]]
