"""What an initializer is, where several operators read it or it is found by roundabout ways."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpart.ir.trainable import FROZEN, SLOTS, Kind, frozen, kinds


def _tensor(*shape: int, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), "t")


def _reads(op_type: str, slot: int, domain: str = "") -> NodeProto:
    return helper.make_node(op_type, ["x"] * slot + ["t"], [f"{op_type}_{slot}"], domain=domain)


@pytest.mark.parametrize("op_type", SLOTS)
def test_the_table_counts_whatever_the_size(op_type: str) -> None:
    for slot, kind in SLOTS[op_type].items():
        for tensor in (_tensor(), _tensor(1), _tensor(3, 2)):
            assert kinds([tensor], [_reads(op_type, slot)]) == {"t": kind}


@pytest.mark.parametrize(("nodes", "kind"), [
    ([], Kind.PARAMETER),
    ([_reads("Mul", 1)], Kind.PARAMETER),
    ([_reads("BatchNormalization", 3), _reads("Mul", 1)], Kind.PARAMETER),
    ([_reads("Conv", 1), _reads("OneHot", 2)], Kind.SETTING),
    ([_reads("OneHot", 2, "example.other")], Kind.PARAMETER),
    ([_reads("OneHot", 2, "ai.onnx")], Kind.SETTING),
])  # fmt: skip
def test_the_highest_counts(nodes: list[NodeProto], kind: Kind) -> None:
    for order in (nodes, nodes[::-1]):
        assert kinds([_tensor(4)], order) == {"t": kind}


def _chain(*op_types: str) -> list[NodeProto]:
    """Nodes that read ``t`` one after the other, by names of their own."""
    return [
        helper.make_node(op_type, [f"v{i}" if i else "t", "other"], [f"v{i + 1}"]) for i, op_type in enumerate(op_types)
    ]


@pytest.mark.parametrize(("nodes", "kind"), [
    (_chain("Equal"), Kind.CONSTANT),
    (_chain("Slice", "Unsqueeze", "Equal", "Where"), Kind.CONSTANT),
    ([helper.make_node("Cast", ["t"], ["v"], to=TensorProto.BOOL)], Kind.CONSTANT),
    ([helper.make_node("Cast", ["t"], ["v"], to=TensorProto.DOUBLE)], Kind.PARAMETER),
    (_chain("Slice", "Mul", "Equal"), Kind.PARAMETER),
    (_chain("Slice"), Kind.PARAMETER),
    ([*_chain("Slice", "Equal"), helper.make_node("Sub", ["v1", "x"], ["z"])], Kind.PARAMETER),
    ([*_chain("Equal"), _reads("Mul", 1)], Kind.PARAMETER),
])  # fmt: skip
def test_what_is_compared_alone_is_no_parameter(nodes: list[NodeProto], kind: Kind) -> None:
    """As is a mask in floats, of which positions that equal zero are hidden: it has no gradient."""
    assert kinds([_tensor(4)], nodes) == {"t": kind}


def test_only_floats_are_anything_but_constants() -> None:
    assert kinds([_tensor(4, dtype=np.int64)], [_reads("Conv", 1)]) == {"t": Kind.CONSTANT}


@pytest.mark.parametrize(("shape", "kind"), [((1,), Kind.PARAMETER), ((), Kind.CONSTANT)])
def test_a_single_bias_of_a_product_is_a_parameter(shape: tuple[int, ...], kind: Kind) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert kinds([_tensor(*shape)], [product, helper.make_node("Add", ["t", "y"], ["z"])]) == {"t": kind}
    assert kinds([_tensor(*shape)], [helper.make_node("Add", ["t", "y"], ["z"])]) == {"t": Kind.CONSTANT}


@pytest.mark.parametrize(
    ("text", "names"), [('["a", "b"]', {"a", "b"}), ("[]", set()), ("[1]", set()), ('{"a": 1}', set()), ("[", set())]
)
def test_what_is_frozen_is_read_from_the_metadata(text: str, names: set[str]) -> None:
    model = ModelProto()
    assert frozen(model) == set()
    helper.set_model_props(model, {FROZEN: text})
    assert frozen(model) == names
