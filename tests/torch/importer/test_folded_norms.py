"""Whether an export took batch norms out."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from onnxpart.torch.importer.folded_norms import has_folded_norms


@pytest.mark.parametrize(
    ("weight", "bias", "producer", "norm", "expected"),
    [
        ("onnx::Conv_7", "onnx::Conv_8", "pytorch", False, True),
        ("conv.weight", "conv.weight_bias", "pytorch", False, True),
        ("conv.weight", "conv.bias", "pytorch", False, False),
        ("onnx::Conv_7", "conv.bias", "pytorch", False, False),
        ("onnx::Conv_7", "onnx::Conv_8", "other", False, False),
        ("onnx::Conv_7", "onnx::Conv_8", "pytorch", True, False),
        ("conv.weight", None, "pytorch", False, False),
    ],
)
def test_folded_norms_are_known_by_their_names(
    weight: str, bias: str | None, producer: str, norm: bool, expected: bool
) -> None:
    nodes = [helper.make_node("Conv", ["x", weight, *([bias] if bias else [])], ["y"])]
    nodes += [helper.make_node("BatchNormalization", ["y", "s", "b", "m", "v"], ["z"])] if norm else []
    model: onnx.ModelProto = helper.make_model(helper.make_graph(nodes, "graph", [], []), producer_name=producer)
    assert has_folded_norms(model) == expected
