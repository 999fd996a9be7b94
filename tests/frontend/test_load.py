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
from onnxpart.ir.model import OLDEST_OPSET
from onnxpart.ir.protos import SMALL
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


def of_no_type() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    return proto


def of_an_invalid_node() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.graph.node[0].attribute.append(helper.make_attribute("odd", 1))
    return proto


def of_old_operators() -> onnx.ModelProto:
    proto = GOLDEN["chain"]()
    proto.opset_import[0].version = OLDEST_OPSET - 1
    return proto


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (cycle, "has a cycle"),
        (without_nodes, "holds no graph"),
        (of_unknown_type, "has the unknown element type 77"),
        (of_unknown_type_within, "'tanh' has the unknown element type 77"),
        (of_no_type, "'x' has no element type"),
        (of_an_invalid_node, r"is not a valid ONNX model: Unrecognized attribute: odd .*; fix the export\.$"),
        (of_old_operators, f"has opset {OLDEST_OPSET - 1}, and the oldest that is read is {OLDEST_OPSET}; convert it"),
        (negative, "axis of size -3"),
        (without_weights, "no initializers"),
        (sequence, "isn't a tensor but sequence"),
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


def large() -> tuple[onnx.ModelProto, TensorProto]:
    """A network with one weight that isn't looked at when it is read."""
    n = Net(("x", ("N", 8)))
    proto = n.model(n.linear("x", 8, SMALL, name="wide"), shape=("N", SMALL))
    return proto, next(t for t in proto.graph.initializer if t.name == "wide.weight")


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_a_weight_of_a_file_that_is_too_short_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    proto, weight = large()
    assert load(saved(proto, tmp_path)).initializers["wide.weight"].dims == [SMALL, 8]
    weight.raw_data = weight.raw_data[: len(weight.raw_data) // 8 - 1]
    with pytest.raises(ModelError, match=r"initializer 'wide\.weight' holds too few bytes; the file is damaged"):
        load(saved(proto, tmp_path))


def test_a_weight_of_a_type_to_come_is_named(tmp_path: Path) -> None:
    proto, weight = large()
    weight.data_type = 999
    with pytest.raises(ModelError, match=r"initializer 'wide\.weight' is of the element type 999"):
        load(saved(proto, tmp_path))


def test_of_external_data_only_small_ones_are_read(tmp_path: Path) -> None:
    n = Net(("x", ("N", 8)))
    out = n.linear(n.op("Reshape", "x", n.ints(-1, 8, hint="target")), 8, SMALL, name="wide")
    proto = n.model(out, shape=("N", SMALL))
    wanted = arrays(proto)["wide.weight"]
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = read_checked(tmp_path / "m.onnx")[0].graph.initializer
    assert {t.name: t.data_location == TensorProto.EXTERNAL for t in found} == {
        "target": False, "wide.weight": True, "wide.bias": False
    }  # fmt: skip
    assert np.array_equal(arrays(tmp_path / "m.onnx")["wide.weight"], wanted)


def test_external_data_without_a_folder_are_refused() -> None:
    proto, weight = large()
    weight.data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="net has external data, but no folder to look for it in"):
        load(proto)


def test_nodes_in_order_stay_in_order() -> None:
    """Although another order would do, too."""
    n = Net(("x", ("N", 2)))
    first, second = n.linear("x", 2, 2, name="b"), n.linear("x", 2, 2, name="a")
    proto = n.model(n.op("Add", second, first), shape=("N", 2))
    assert [node.name for node in read_checked(proto)[0].graph.node] == ["b", "a", "add"]
    apart = [proto.graph.node[2], proto.graph.node[0], proto.graph.node[1]]
    proto.graph.ClearField("node")
    proto.graph.node.extend(apart)
    assert [node.name for node in read_checked(proto)[0].graph.node][-1] == "add"


def test_constant_nodes_are_weights() -> None:
    n = Net(("x", ("N", 2)))
    weight = n.op("Constant", value=onnx.numpy_helper.from_array(np.ones((2, 2), np.float32)))
    assert load(n.model(n.op("MatMul", "x", weight), shape=("N", 2))).initializers
