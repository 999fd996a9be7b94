"""The duplicated whole of small networks, node by node."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxpart import PartitionError, analyse, arrays, load, split
from onnxpart.emission.whole import emit_whole
from onnxpart.ir.protos import metadata_of
from onnxpart.ir.trainable import FROZEN, PADDING, frozen, told_of_copies
from onnxpart.merging.hierarchy import merge_to
from onnxpart.planning.planner import partition
from onnxpart.torch import import_onnx
from tests.networks.net import Net

WIDTH = 4


def network(mix: bool, width: int = WIDTH) -> ModelProto:
    """Two layers, with a mix in between if asked for, and an output function."""
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, width, name="in"), name="act")
    if mix:
        h = n.op("LayerNormalization", h, n.positive("scale", width), n.random("shift", width), name="mix")
    return n.model(n.op("Sigmoid", n.linear(h, width, 2, name="out"), name="y"), shape=("N", 2))


def whole(model: ModelProto, k: int = 2, order: str = "contiguous") -> ModelProto:
    made = emit_whole(partition(analyse(load(model)), k, order=order))
    onnx.checker.check_model(made, full_check=True)
    return made


def of_one_slope() -> ModelProto:
    """A layer whose units have one slope, which isn't trained; every part has it."""
    n = Net(("x", ("N", 3)))
    h = n.op("PRelu", n.linear("x", 3, WIDTH, name="in"), n.positive("slope", 1), name="act")
    model = n.model(n.linear(h, WIDTH, 2, name="out"), shape=("N", 2))
    helper.set_model_props(model, {FROZEN: '["slope"]', "own": "stays"})
    return model


def test_copies_of_frozen_parameters_are_frozen() -> None:
    copies = {"slope__part0", "slope__part1"}
    found = whole(of_one_slope())
    assert copies == {tensor.name for tensor in found.graph.initializer if tensor.name.startswith("slope")}
    assert frozen(found) == {"slope", *copies}
    assert metadata_of(found)["own"] == "stays"
    assert {name for name, p in import_onnx(found).named_parameters() if not p.requires_grad} == copies


def test_copies_of_frozen_parameters_are_frozen_in_larger_parts() -> None:
    four = split(of_one_slope(), 4)
    larger = merge_to(four, [arrays(part) for part in four.parts], 2)
    for part in larger.parts:
        held = {name for name, p in import_onnx(part).named_parameters() if not p.requires_grad}
        assert (
            held == {tensor.name for tensor in part.graph.initializer if tensor.name.startswith("slope")} != {"slope"}
        )
    assert frozen(larger.whole) == {"slope", *(f"slope__part{p}" for p in range(4))}


def test_copies_of_an_embedding_have_its_row_of_padding() -> None:
    told = told_of_copies(telling({PADDING: '{"words": 1, "other": 0}'}), {"words": ["words__part0"], "slope": []})
    assert told == {PADDING: '{"words": 1, "other": 0, "words__part0": 1}'}
    assert told_of_copies(telling({}), {"words": ["words__part0"]}) == {}


def telling(props: dict[str, str]) -> ModelProto:
    model = network(mix=False)
    helper.set_model_props(model, props)
    return model


def test_without_a_mix_it_is_the_original_graph() -> None:
    model = network(mix=False)
    found = whole(model)
    assert list(found.graph.node) == list(model.graph.node)
    assert list(found.graph.initializer) == list(model.graph.initializer)


def test_a_mix_is_cut_duplicated_and_joined() -> None:
    found = whole(network(mix=True))
    kinds = Counter(n.op_type for n in found.graph.node)
    assert kinds["LayerNormalization"] == 2
    assert kinds["Concat"] == 1
    assert kinds["Gemm"] == 2
    assert kinds["Relu"] == kinds["Sigmoid"] == 1
    joined = next(n for n in found.graph.node if n.op_type == "Concat")
    assert list(joined.input) == ["mix__part0", "mix__part1"]
    assert list(joined.output) == ["mix"]
    assert [n.name for n in found.graph.node if n.op_type == "LayerNormalization"] == ["mix__part0", "mix__part1"]


def test_pieces_in_another_order_are_put_back_by_a_gather() -> None:
    found = whole(network(mix=True, width=6), order="interleaved")
    back = next(n for n in found.graph.node if n.op_type == "Gather" and n.output[0] == "mix")
    numbers = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    assert numbers[back.input[1]].tolist() == [0, 3, 1, 4, 2, 5]


def test_an_output_of_every_part_is_their_mean() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    one = n.op("Relu", n.linear(h, WIDTH, 1, name="narrow"), name="one")
    found = whole(n.model(n.op("Sigmoid", n.linear(one, 1, 2, name="out"), name="y"), shape=("N", 2)))
    assert any(
        n.op_type == "Mean" and list(n.input) == [f"{n.output[0]}__part{p}" for p in range(2)] for n in found.graph.node
    )
    names = {t.name: np.shape(numpy_helper.to_array(t)) for t in found.graph.initializer}
    assert names["narrow.bias__part0"] == names["narrow.bias__part1"] == (1,)


def test_units_of_one_copy_that_form_no_grid_are_refused() -> None:
    """A transposed convolution in groups, of places, once per part: what each has of its kernel is no block of it."""
    n = Net(("x", (2, 4, 4, 2)), opset=9)
    h = n.op("MatMul", "x", n.random("first", 2, 6))
    h = n.op("ConvTranspose", h, n.random("kernel", 4, 3, 3, 3), group=4, strides=[2, 2])
    y = n.op("ReduceMax", n.op("MatMul", h, n.random("last", 13, 1)), axes=[0, 1, 2], keepdims=0)
    with pytest.raises(PartitionError, match="the units of 'kernel' don't form a block in part"):
        split(n.model(y, shape=(1,)), 3, order="random", seed=3)
