"""A graph that is pickled as it is, and names the node that it failed in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnxpart.errors import OnnxpartError
from onnxpart.torch import ImportedModule, import_onnx


def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Mul", ["b", "z"], ["c"], "product"),
        helper.make_node("Add", ["c", "w"], ["y"], "sum"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "M"]) for name in ("x", "z", "w")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "M"])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


COPIES: dict[str, Callable[[ImportedModule], Any]] = {
    "itself": lambda module: module,
    "pickled": lambda module: pickle.loads(pickle.dumps(module)),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize(("z", "w", "node"), [(3, 2, "product' \\(Mul"), (2, 3, "sum' \\(Add")])
@pytest.mark.parametrize("kind", ["itself", "pickled", "copied"])
def test_an_error_names_the_node(kind: str, z: int, w: int, node: str) -> None:
    module = COPIES[kind](import_onnx(model()))
    with pytest.raises(OnnxpartError, match=f"^node '{node}\\): The size of tensor a .*; check what the model is fed"):
        module(torch.ones(2, 2), torch.ones(2, z), torch.ones(2, w))


def test_an_error_under_vmap_names_the_node() -> None:
    module = import_onnx(model())
    with pytest.raises(OnnxpartError, match=r"^node 'product' \(Mul\): "):
        torch.vmap(module)(torch.ones(4, 2, 2), torch.ones(4, 2, 3), torch.ones(4, 2, 2))


def test_an_error_in_front_of_the_graph_names_none() -> None:
    module = import_onnx(model())
    with pytest.raises(OnnxpartError, match=r"^the model: .*missing 2 required positional arguments"):
        module(torch.ones(2, 2))


def test_the_code_is_the_same_after_pickling() -> None:
    module = import_onnx(model())
    found = pickle.loads(pickle.dumps(module))
    assert found.program.code == module.program.code
    assert [node.meta.get("origin", "") for node in found.program.graph.nodes] == [
        node.meta.get("origin", "") for node in module.program.graph.nodes
    ]


def test_it_compiles_as_one_graph() -> None:
    module = import_onnx(model()).eval()
    inputs = [torch.randn(2, 2) for _ in range(3)]
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
