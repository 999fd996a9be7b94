"""A model in canonical form as a file of its own again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.golden import GOLDEN
from onnxpart.frontend.load import load
from onnxpart.ir.redraft import redraft
from tests.networks.net import Net
from tests.networks.running import Array, run_onnx


@pytest.mark.parametrize("name", ["chain", "lrn", "recurrent"])
def test_it_computes_the_same(name: str) -> None:
    before = GOLDEN[name]()
    after = redraft(load(before)).model()
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for value in before.graph.input:
        dims = value.type.tensor_type.shape.dim
        inputs[value.name] = rng.standard_normal([d.dim_value or 2 for d in dims]).astype(np.float32)
    for a, b in zip(run_onnx(before, inputs), run_onnx(after, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_constants_are_nodes_again() -> None:
    n = Net(("x", ("N", 4)))
    n.nodes.append(onnx.helper.make_node("Constant", [], ["half"], value_float=0.5))
    model = load(n.model(n.op("Mul", n.linear("x", 4, 2), "half"), shape=("N", 2)))
    assert "half" in model.constants
    made = redraft(model).proto
    assert "half" not in {tensor.name for tensor in made.graph.initializer}
    assert made.graph.node[0].op_type == "Constant"


def test_external_data_stay_streams(tmp_path: Path) -> None:
    n = Net(("x", ("N", 4)))
    proto = n.model(n.linear("x", 4, 2048), shape=("N", 2048))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=100)
    model = load(tmp_path / "m.onnx")
    assert list(redraft(model).streams) == ["linear.weight"]
    assert model.files == [tmp_path / "m.onnx"]


def test_a_model_in_memory_has_no_files() -> None:
    assert load(GOLDEN["chain"]()).files == []
