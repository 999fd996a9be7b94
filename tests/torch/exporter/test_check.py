"""Whether an exported model computes what the module does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from onnxpart.storage.draft import Draft
from onnxpart.torch.exporter.check import difference

X = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}


def draft(op_type: str, rows: str | int = "N") -> Draft:
    node = helper.make_node(op_type, ["x"], ["y"], "node")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    return Draft(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), {})


@pytest.mark.parametrize(
    ("model", "module", "expected"),
    [
        (draft("Abs"), torch.abs, None),
        (draft("Neg"), torch.abs, "something other than the module on the example inputs"),
        (draft("Relu"), torch.abs, "something other than the module on the example inputs with the opposite sign"),
        (draft("Abs", 2), torch.abs, "the exported model doesn't run on a larger batch"),
        (draft("RandomUniformLike"), torch.abs, ": RandomUniformLike 'node' is random in evaluation, too"),
        (draft("Neg"), lambda x: torch.rand(x.shape), None),
    ],
    ids=["same", "other", "sign", "batch", "random", "trusted"],
)
def test_differences(model: Draft, module: Callable[[Tensor], Tensor], expected: str | None) -> None:
    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [module(inputs["x"])]

    found = difference(model, run, X)
    assert (
        (found is None)
        if expected is None
        else (found is not None and found.endswith(expected)) or (expected in str(found))
    )
