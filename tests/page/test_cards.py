"""What is drawn as one card, and what is said to stand there."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from models import BUILDERS
from onnxpart import analyse, load
from onnxpart.page.cards import cards, what
from onnxpart.planning.partition import Partition
from onnxpart.planning.planner import partition
from tests.networks.net import Net

IMAGE = ("x", ("N", 2, 4, 4))


def made(model: ModelProto, k: int = 2) -> Partition:
    return partition(analyse(load(model)), k)


def types(found: Partition) -> list[str]:
    """The operators of each card, by type."""
    return [" ".join(found.analysis.ops[i].op_type for i in card) for card in cards(found)]


def standing(found: Partition) -> dict[str, str]:
    """What stands at each operator, by the name of its node."""
    return {op.node.name: what(found, i) for i, op in enumerate(found.analysis.ops)}


def test_a_layer_takes_along_what_passes_its_units_on() -> None:
    assert types(made(BUILDERS["lenet"]())) == [
        "Conv Relu MaxPool", "Conv Relu MaxPool Flatten", "Gemm Relu Dropout", "Gemm",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["qkv", "shuffle", "scan", "branches", "recurrent", "light_resnet50"])
def test_every_operator_is_in_one_card(name: str) -> None:
    found = made(BUILDERS[name]())
    assert sorted(i for card in cards(found) for i in card) == list(range(len(found.analysis.ops)))


def held() -> ModelProto:
    """A stream that is an output, a hidden layer beside it, and an operator without a rule behind it."""
    n = Net(IMAGE)
    stem = n.conv("x", 2, 6, name="stem")
    inner = n.op("Relu", n.conv(stem, 6, 24, name="inner"), name="relu")
    total = n.op("Add", stem, n.conv(inner, 24, 6, name="back"), name="total")
    odd = n.op("Det", n.conv(total, 6, 8, name="before"), name="odd")
    return n.model(n.op("Tanh", total, name="features"), n.op("Neg", odd, name="negative"))


def test_what_stands_there() -> None:
    assert standing(made(held())) == {
        "stem": "replicated", "inner": "divided", "relu": "divided", "back": "meeting", "total": "replicated",
        "before": "replicated", "odd": "blocked", "features": "mean", "negative": "mean",
    }  # fmt: skip


def test_a_mix_of_divided_units_is_a_card_of_its_own() -> None:
    found = made(BUILDERS["lrn"]())
    assert "LRN" in types(found)
    assert standing(found)["norm"] == "duplicated"


def test_shape_arithmetic_stands_with_what_reads_it() -> None:
    n = Net(IMAGE)
    h = n.conv("x", 2, 6, name="stem")
    batch = n.op("Gather", n.op("Shape", h, name="shape"), n.ints(0), name="batch")
    flat = n.op("Reshape", h, n.op("Concat", batch, n.ints(-1), axis=0), name="flat")
    found = made(n.model(n.linear(flat, 96, 3, name="logits"), shape=("N", 3)))
    assert types(found) == ["Conv Shape Gather Concat Reshape", "Gemm"]


def test_what_is_made_of_inputs_alone_is_shared() -> None:
    n = Net(IMAGE)
    h = n.conv(n.op("Neg", "x", name="turned"), 2, 6, name="stem")
    assert standing(made(n.model(n.conv(h, 6, 3, name="y"))))["turned"] == "shared"


def test_a_global_pooling_begins_a_card_and_a_mean_beside_its_input_does_not() -> None:
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 6, name="stem"), name="relu")
    centred = n.op("Sub", h, n.op("ReduceMean", h, axes=[2, 3], name="middle"), name="centred")
    pooled = n.op("Flatten", n.op("GlobalAveragePool", centred, name="pool"), name="flat")
    found = made(n.model(n.linear(pooled, 6, 3, name="logits"), shape=("N", 3)))
    assert types(found) == ["Conv Relu ReduceMean Sub", "GlobalAveragePool Flatten", "Gemm"]
