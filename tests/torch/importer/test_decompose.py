"""What the importer needs of a model before its one pass: composites taken apart, branches taken, types inferred."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxpart.torch.importer.decompose import branch_of, inlined, opsets_of, with_branches
from onnxpart.torch.importer.types import inferred, info_of

FLOAT = TensorProto.FLOAT


def value(name: str, dims: list[str | int] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", 3] if dims is None else dims)


def model(nodes: list[onnx.NodeProto], *functions: onnx.FunctionProto) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", [value("x")], [value("y")])
    opsets = [helper.make_opsetid("ai.onnx", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_onnx_has_one_name() -> None:
    assert opsets_of(model([])) == {"": 18, "own": 1}


def test_functions_are_taken_apart() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Exp", ["b"], ["c"])]
    function = helper.make_function("own", "Decay", ["a"], ["c"], nodes, [helper.make_opsetid("", 18)])
    found = inlined(model([helper.make_node("Decay", ["x"], ["y"], domain="own")], function))
    assert kinds(found) == ["Neg", "Exp"]


@pytest.mark.parametrize("op_type", ["MeanVarianceNormalization", "SoftmaxCrossEntropyLoss"])
def test_a_composite_without_an_entry_is_taken_apart(op_type: str) -> None:
    """What it becomes computes the same."""
    loss = op_type == "SoftmaxCrossEntropyLoss"
    attributes = {"reduction": "none"} if loss else {}  # those that are left out have their defaults
    proto = model([helper.make_node(op_type, ["x", "t"] if loss else ["x"], ["y"], **attributes)])
    proto.opset_import[0].domain = ""
    if loss:
        proto.graph.input.append(value("t", ["N"], TensorProto.INT64))
        proto.graph.output[0].CopyFrom(value("y", ["N"]))
    else:
        proto.graph.input[0].CopyFrom(value("x", ["N", 3, 2, 2]))
        proto.graph.output[0].CopyFrom(value("y", ["N", 3, 2, 2]))
    found = inlined(proto)
    assert op_type not in kinds(found)
    feeds = {
        "x": np.random.default_rng(0).normal(size=(4, 3) if loss else (4, 3, 2, 2)).astype(np.float32),
        "t": np.arange(4) % 3,
    }
    feeds = {name: feeds[name] for name in ("x", "t")[: len(proto.graph.input)]}
    (want,), (have,) = (ReferenceEvaluator(each).run(None, feeds) for each in (proto, found))
    np.testing.assert_allclose(have, want, rtol=1e-5)


def conditional() -> onnx.ModelProto:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op_type, ["x"], [f"{name}_y"])], name, [], [value(f"{name}_y")]
        )
        for name, op_type in (("then", "Exp"), ("else", "Neg"))
    }
    true = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    return model([true, helper.make_node("If", ["c"], ["y"], **branches)])


def test_a_branch_that_is_taken_stands_in_place_of_the_if() -> None:
    proto = conditional()
    for then, op_type in ((True, "Exp"), (False, "Neg")):
        assert [node.op_type for node in branch_of(proto.graph.node[1], then).node] == [op_type]
        assert kinds(with_branches(proto, {"y": then})) == ["Constant", op_type, "Identity"]
    assert kinds(with_branches(proto, {})) == kinds(proto) == ["Constant", "If"]


def test_types_are_inferred_without_weights() -> None:
    weight = onnx.numpy_helper.from_array(np.zeros((3, 5000), np.float32), "w")
    proto = model([helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Shape", ["h"], ["y"])])
    proto.graph.initializer.append(weight)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [2]))
    infos = {name: info_of(kind) for name, kind in inferred(proto).items()}
    assert (infos["h"].shape, infos["h"].dtype) == ((None, 5000), FLOAT)
    assert (infos["y"].shape, infos["y"].dtype) == ((2,), TensorProto.INT64)
    assert (info_of(onnx.TypeProto()).shape, info_of(onnx.TypeProto()).dtype) == (None, None)


def test_bodies_that_give_one_name_to_several_values_say_nothing_of_it() -> None:
    proto = conditional()
    for attribute, kind in zip(proto.graph.node[1].attribute, (FLOAT, TensorProto.INT64), strict=True):
        attribute.g.value_info.append(value("same", [1], kind))
        attribute.g.node.append(
            helper.make_node("Constant", [], ["same"], value=helper.make_tensor("v", kind, [1], [1]))
        )
    assert inferred(proto)["same"] == onnx.TypeProto()
