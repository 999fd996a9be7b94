"""A model is read, checked and brought into canonical form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.golden import GOLDEN
from onnxpart.errors import ModelError
from onnxpart.frontend.load import arrays, load, read_checked, stored_arrays
from tests.networks.net import Net


def test_nodes_are_sorted_and_the_model_is_left_alone() -> None:
    proto = GOLDEN["chain"]()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    before = proto.SerializeToString()
    assert [node.name for node in load(proto).proto.graph.node] == [node.name for node in nodes]
    assert proto.SerializeToString() == before


def test_the_digest_is_of_the_graph_and_not_of_the_weights() -> None:
    first, second, third = GOLDEN["chain"](), GOLDEN["chain"](), GOLDEN["chain"]()
    weight = second.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    third.graph.node[0].name = "another"
    assert load(first).digest == load(second).digest != load(third).digest


def cycle() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.node[0].input[0] = proto.graph.node[1].output[0]
    return proto


def without_nodes() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    del proto.graph.node[:]
    return proto


def of_unknown_type() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.input[0].type.tensor_type.elem_type = 77
    return proto


def negative() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -3
    return proto


def of_unknown_type_within() -> onnx.ModelProto:
    proto = GOLDEN["branches"]()
    inner = next(node for node in proto.graph.node if node.op_type == "If").attribute[0].g
    inner.output[0].type.tensor_type.elem_type = 77
    return proto


def without_weights() -> onnx.ModelProto:
    n = Net(("x", ("N", 2)))
    return n.model(n.op("Relu", "x"), shape=("N", 2))


def sequence() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))
    return proto


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (cycle, "has a cycle"),
        (without_nodes, "holds no graph"),
        (of_unknown_type, "of the unknown element type 77"),
        (of_unknown_type_within, "'tanh' is of the unknown element type 77"),
        (negative, "axis of size -3"),
        (without_weights, "no initializers"),
        (sequence, "no tensor but sequence"),
    ],
)
def test_what_can_not_be_used_is_said(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ModelError, match=words):
        load(make())


def test_arrays_of_whatever_file(tmp_path: Path) -> None:
    proto = GOLDEN["chain"]()
    onnx.save(proto, tmp_path / "m.onnx")
    wanted = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for source in (proto, tmp_path / "m.onnx", load(proto)):
        found = arrays(source)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], array) for name, array in wanted.items())
    assert stored_arrays(load(proto)).keys() == wanted.keys()
    assert read_checked(tmp_path / "m.onnx")[1:] == (str(tmp_path / "m.onnx"), tmp_path)
