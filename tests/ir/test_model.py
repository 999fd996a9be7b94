"""Loading: what is made canonical."""

from __future__ import annotations

import onnx
import pytest

import onnxpart
from models import BUILDERS


def test_nodes_out_of_order_are_sorted() -> None:
    model = BUILDERS["residual"]()
    expected = onnxpart.split(model, 2)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result = onnxpart.split(model, 2)
    assert onnxpart.verify(result.analysis, result.plan).holds
    assert result.plan.parameters(0) == expected.plan.parameters(0)
    assert {n.name for n in result.whole.graph.node} == {n.name for n in expected.whole.graph.node}


def test_initializers_that_are_inputs_too_are_inputs_no_more() -> None:
    model = BUILDERS["chain"]()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    loaded = onnxpart.load(model)
    assert loaded.inputs == ["x"]
    assert loaded.proto.ir_version >= 4


def test_plans_do_not_see_one_another() -> None:
    analysis = onnxpart.analyse(onnxpart.load(BUILDERS["shuffle"]()))
    first = onnxpart.plan(analysis, 2).to_json()
    onnxpart.plan(analysis, 4)
    assert onnxpart.plan(analysis, 2).to_json() == first


def test_declared_shapes_are_believed_where_nothing_else_tells() -> None:
    model = BUILDERS["unknown_op"]()
    assert not onnxpart.load(model).proto.graph.value_info
    with pytest.raises(onnxpart.PartitionError, match="have no rule"):
        onnxpart.split(model, 2)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("mystery", onnx.TensorProto.FLOAT, ["N", 4]))
    result = onnxpart.split(model, 2)
    divided = [layer for layer in result.plan.layers if layer.parts]
    assert [layer.node for layer in divided] == ["Gemm 'fc2'"]
    assert result.plan.blocked == ("Mystery 'mystery': operators of the domain 'example.unknown' have no rule",)


def test_one_part_of_a_network_without_hidden_units_is_verified() -> None:
    result = onnxpart.split(BUILDERS["refused"](), 1)
    verdict = onnxpart.verify(result.analysis, result.plan)
    assert verdict.holds
    assert all(finding.compared == 2 for finding in verdict.findings)
