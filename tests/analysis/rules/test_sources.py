"""Operators that tell sizes or make constants: nothing is divided, and sizes are the whole network's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxpart import split
from onnxpart.verification.runtime import Session
from tests.networks.alone import Alone
from tests.networks.net import Net


@pytest.mark.parametrize("op_type", ["Shape", "Size"])
def test_a_size_has_no_units(op_type: str) -> None:
    alone = Alone(op_type, [(2, 3)])
    f = alone.label(0, 1)
    assert alone.run() == [()]
    assert alone.rule.kind == "source"
    assert alone.units(f) == [0, 1, 2]


@pytest.mark.parametrize(("op_type", "batch"), [("Shape", 2), ("Shape", "N"), ("Size", 2), ("Size", "N")])
@pytest.mark.parametrize("attributes", [{}, {"start": 1}, {"end": -2}])
def test_a_part_tells_the_sizes_of_the_whole(op_type: str, batch: int | str, attributes: dict[str, int]) -> None:
    n = Net(("x", (batch, 2, 4, 4)))
    h = n.conv("x", 2, 6, name="before")
    told = n.op(op_type, h, name="told", **(attributes if op_type == "Shape" else {}))
    size = n.op("ReduceProd", n.op("Cast", told, to=onnx.TensorProto.FLOAT), keepdims=0, name="size")
    y = n.conv(n.op("Div", h, size), 6, 3, name="last")
    done = split(n.model(y, shape=(batch, 3, 4, 4)), 2)
    found = set()
    for proto in (n.model(y, shape=(batch, 3, 4, 4)), *done.parts):
        proto.graph.output.append(onnx.helper.make_tensor_value_info(size, onnx.TensorProto.FLOAT, ()))
        found.add(float(Session(proto).run({"x": np.ones((2, 2, 4, 4), np.float32)})[size]))
    assert done.parts[0].graph.initializer[0].dims[0] == 3
    shape = [2, 6, 4, 4]
    wanted = shape[attributes.get("start", 0) : attributes.get("end", 4)] if op_type == "Shape" else shape
    assert found == {float(np.prod(wanted))}
