"""Shapes and values at trial sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import GraphProto, helper

from onnxpart.frontend.load import load
from onnxpart.ir.infer import CARRIERS, MAX_LIST, infer, input_shapes, long_lists
from onnxpart.ir.protos import SMALL
from onnxpart.ir.shapes import TRIALS
from tests.networks.looping import given, integer, loop, taken
from tests.networks.net import Net


def test_symbols_of_one_name_have_one_size() -> None:
    n = Net(("x", ("N", "T", 4)), ("y", ("N", "T")), ("image", ("N", 3, "H", "W")))
    model = load(n.model(n.op("MatMul", "x", n.random("w", 4, 2))))
    first, second = input_shapes(model), input_shapes(model, TRIALS[1])
    assert first == {"x": (2, 16, 4), "y": (2, 16), "image": (2, 3, 224, 224)}
    assert second == {"x": (3, 24, 4), "y": (3, 24), "image": (3, 3, 256, 256)}


def reader(kind: str, limit: int) -> onnx.ModelProto:
    """A network that runs on lengths up to `limit` (or from it on: ``window``)."""
    n = Net(("x", ("N", "T", 4)))
    h = n.op("MatMul", "x", n.random("a", 4, 6))
    if kind == "window":
        h = n.op(
            "Transpose", n.op("Conv", n.op("Transpose", h, perm=[0, 2, 1]), n.random("w", 6, 6, limit)), perm=[0, 2, 1]
        )
    else:
        end, table = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2)), n.random("table", limit, 6)
        number = [n.array("number", np.asarray(value)) for value in (0, 1)]
        places = n.op("Range", number[0], n.op("Squeeze", end), number[1])
        h = n.op("Add", h, n.op("Gather", table, places) if kind == "gather" else n.op("Slice", table, n.ints(0), end))
    return n.model(n.op("MatMul", n.op("Tanh", h), n.random("b", 6, 3)), shape=("N", None, 3))


@pytest.mark.parametrize("kind", ["gather", "slice"])
@pytest.mark.parametrize(("rows", "length", "other"), [(24, 16, 24), (23, 4, 6), (8, 4, 6), (3, 3, 2)])
def test_lengths_are_as_short_as_a_table_of_positions_needs(kind: str, rows: int, length: int, other: int) -> None:
    shapes = infer(load(reader(kind, rows)))
    assert shapes.shape["tanh"] == (2, length, 6)
    assert shapes.other is not None
    assert shapes.other.shape["tanh"] == (3, other, 6)
    assert not shapes.refused + shapes.other.refused


def test_lengths_are_as_long_as_a_window_needs() -> None:
    assert infer(load(reader("window", 7))).shape["x"] == (2, 16, 4)
    assert infer(load(reader("window", 20))).shape["x"] == (2, 1024, 4)


def test_where_no_sizes_will_do_the_first_ones_are_taken() -> None:
    shapes = infer(load(reader("gather", 1)))
    assert shapes.shape["x"] == (2, 16, 4)
    assert shapes.refused == ["gather"]


def test_what_a_branch_alone_cannot_do_changes_no_sizes() -> None:
    """It may be there for other sizes."""
    n = Net(("x", ("N", "T", 6)))
    h = n.op("Tanh", "x")
    (out,) = taken(n, given(n), lambda m: [m.op("Squeeze", h, m.ints(1))], lambda m: [m.op("Relu", h)])
    shapes = infer(load(n.model(n.op("Reshape", out, n.ints(-1)), shape=("M",))))
    assert shapes.shape["x"] == (2, 16, 6)


def test_a_fixed_network_is_inferred_once() -> None:
    n = Net(("x", (2, 4)))
    shapes = infer(load(n.model(n.linear("x", 4, 3), shape=(2, 3))))
    assert shapes.other is None
    assert shapes.by_data is None


def test_shapes_that_can_not_be_told_have_no_entry() -> None:
    n = Net(("x", ("N", 4)))
    h = n.op("Odd", n.linear("x", 4, 6), domain="nowhere")
    n.op("Cast", h, to=1, name="y")
    shapes = infer(load(n.model("y", shape=("A", "B"))))
    assert "linear" in shapes.shape
    assert h not in shapes.shape


def test_a_state_that_grows_has_the_sizes_of_a_later_iteration() -> None:
    n = Net(("x", ("N", 5)))
    h = n.linear("x", 5, 5)
    (last,) = loop(n, integer(n, 3), [h], lambda m, _, s: ([m.op("Concat", s[0], h, axis=0)], []))
    model = load(n.model(n.linear(last, 5, 2, name="out")))
    shapes = infer(model)
    state = next(name for name in shapes.shape if name == "s0" or name.endswith("s0"))
    assert shapes.shape[state][0] > TRIALS[0].batch


def test_a_state_that_grows_by_a_symbol_depends_on_it() -> None:
    """At other sizes an iteration later is looked at, since a size may equal that of one before by chance."""
    n = Net(("x", ("N", 5)))
    h = n.linear("x", 5, 5)
    (last,) = loop(n, integer(n, 3), [h], lambda m, _, s: ([m.op("Concat", s[0], h, axis=0)], []))
    shapes = infer(load(n.model(n.linear(last, 5, 2, name="out"))))
    state = next(name for name in shapes.shape if name == "s0" or name.endswith("s0"))
    assert shapes.shape[state] == (2 * TRIALS[0].batch, 5)
    assert shapes.other is not None
    assert shapes.other.shape[state] == (3 * TRIALS[1].batch, 5)


def test_sizes_that_a_branch_chooses_are_those_of_data() -> None:
    n = Net(("x", (2, 6)))
    h = n.linear("x", 6, 6)
    (out,) = taken(n, given(n), lambda m: [m.op("Relu", h)], lambda m: [m.op("Concat", h, h, axis=0)])
    shapes = infer(load(n.model(n.op("ReduceSum", out, n.ints(1)))))
    assert shapes.sized_by_data(out)
    assert not shapes.sized_by_data(h)


def test_values_of_large_or_distant_initializers_are_not_looked_at() -> None:
    """Only their shapes; so weights that are elsewhere needn't be there."""
    n = Net(("x", ("N", 2)))
    picked = n.op("Gather", "x", n.array("many", np.zeros(2 * SMALL, np.int64)), axis=1)
    model = load(n.model(n.linear(picked, 2 * SMALL, 3), shape=("N", 3)))
    for name in ("many", "linear.weight", "linear.bias"):
        tensor = model.initializers[name]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    assert infer(model).shape[picked] == (TRIALS[0].batch, 2 * SMALL)


@pytest.mark.parametrize(("step", "long"), [(1, True), (-1, True), (8, False), (0, False)])
def test_ranges_of_constant_length(step: int, long: bool) -> None:
    n = Net(("x", ("N", 2)))
    ends = 5, 5 + 4 * (MAX_LIST if step >= 0 else -MAX_LIST)
    n.op("Range", *(n.array("end", np.asarray(end, np.int64)) for end in (*ends, step)), name="range")
    assert long_lists(_graph(n)) == (["range"] if long else [])


def test_lists_whose_length_is_elsewhere_or_several_numbers_are_not_counted() -> None:
    n = Net(("x", ("N", 2)))
    far = n.ints(2 * MAX_LIST)
    n.op("ConstantOfShape", far, name="far")
    n.op("ConstantOfShape", n.ints(MAX_LIST, 2), name="matrix")
    n.initializers[far].data_location = onnx.TensorProto.EXTERNAL
    assert long_lists(_graph(n)) == []


@pytest.mark.parametrize("times", [8, 40])
def test_lists_that_are_doubled(times: int) -> None:
    n = Net(("x", ("N", 2)))
    value = n.ints(1, 2)
    for _ in range(times):
        value = n.op("Concat", value, value, axis=0)
    n.op("Cast", value, to=1, name="end")
    found = long_lists(_graph(n))
    assert bool(found) == (times == 40)


def test_joined_data_are_no_list() -> None:
    n = Net(("x", ("N", 2)))
    value, width = "x", 2
    for _ in range(40):  # sizes are joined to a shape, and data along the last axis, again and again
        value, width = n.op("Concat", value, value, axis=-1), 2 * width
        width = width if width < 64 else 2
        ends = n.op("Gather", n.op("Shape", value), n.ints(0), axis=0)
        value = n.op("Reshape", value, n.op("Concat", ends, n.ints(-1, width), axis=0))
    n.op("ReduceSum", value, name="end")
    assert long_lists(_graph(n)) == []


def test_the_operators_that_carry_integers_are_those_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.has_data_propagation_function}
    assert known - {"Shape", "Size"} == CARRIERS


@pytest.mark.parametrize(("size", "long"), [(10, False), (MAX_LIST + 1, True)])
def test_lists_of_constant_length(size: int, long: bool) -> None:
    n = Net(("x", ("N", 2)))
    n.op("ConstantOfShape", n.ints(size), name="zeros")
    n.op("Tile", n.ints(1), n.ints(size), name="copies")
    assert long_lists(_graph(n)) == (["zeros", "copies"] if long else [])


def _graph(n: Net) -> GraphProto:
    return helper.make_graph(n.nodes, "g", n.inputs, [], list(n.initializers.values()))
