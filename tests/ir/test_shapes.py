"""What is known of tensors under one set of trial sizes, and what of it depends on the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxpart.frontend.load import load
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model
from onnxpart.ir.shapes import TRIALS, Shapes, record, type_of
from tests.networks.net import Net


@pytest.fixture
def shapes() -> Shapes:
    n = Net(("x", ("N", "T", 4)))
    h = n.op("Relu", n.op("MatMul", "x", n.random("w", 4, 6)), name="hidden")
    size = n.op("Shape", h, name="size")
    n.op("Slice", size, n.ints(2), n.ints(3), name="width")
    n.op("NonZero", h, name="found")
    flat = n.op("Reshape", h, n.ints(-1, 6), name="flat")
    n.op("Cast", "size", to=1, name="sizes")
    n.op("Cast", "width", to=1, name="widths")
    n.op("Cast", "found", to=1, name="places")
    out = n.op("MatMul", flat, n.random("out", 6, 2))
    dims = {out: ("M", 2), "sizes": (3,), "widths": (1,), "places": (3, "K")}
    return infer(load(n.model(*dims, shape=dims)))


def test_sizes_that_depend_on_symbols(shapes: Shapes) -> None:
    assert shapes.dynamic_dims("hidden") == (True, True, False)
    assert shapes.dynamic_dims("flat") == (True, False)
    assert shapes.dynamic_dims("w") == (False, False)


def test_values_that_depend_on_symbols(shapes: Shapes) -> None:
    size = shapes.value("size")
    assert size is not None
    assert size.tolist() == [TRIALS[0].batch, TRIALS[0].length, 6]
    assert shapes.dynamic_value("size").tolist() == [True, True, False]
    assert shapes.dynamic_value("width").tolist() == [False]
    assert shapes.value("hidden") is None


def test_sizes_that_depend_on_data(shapes: Shapes) -> None:
    assert shapes.sized_by_data("found")
    assert not shapes.sized_by_data("hidden")


def test_a_size_that_is_not_known_is_no_shape() -> None:
    shapes = Shapes(_model())
    record(shapes, "a", helper.make_tensor_type_proto(1, (3, "M")))
    record(shapes, "b", helper.make_tensor_type_proto(1, (3, "M")), unknown=7)
    assert "a" not in shapes.shape
    assert shapes.shape["b"] == (3, 7)
    assert type_of(shapes, "b") == helper.make_tensor_type_proto(1, (3, 7))


def _model() -> Model:
    n = Net(("x", ("N", 2)))
    return load(n.model(n.linear("x", 2, 2), shape=("N", 2)))


def test_a_size_of_zero_is_a_size_where_it_is_said() -> None:
    shapes = Shapes(_model())
    record(shapes, "empty", helper.make_tensor_type_proto(1, (0, 3)))
    record(shapes, "partly", helper.make_tensor_type_proto(1, (0, "M")))
    record(shapes, "scalar", helper.make_tensor_type_proto(1, ()))
    record(shapes, "any", helper.make_tensor_type_proto(1, None))
    record(shapes, "list", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, (2,))))
    assert shapes.shape == {"empty": (0, 3), "scalar": ()}
    assert shapes.dtype == dict.fromkeys(("empty", "partly", "scalar", "any"), 1)


def test_what_is_inferred_once_depends_on_nothing() -> None:
    shapes = Shapes(_model(), shape={"a": (2, 3)}, folded={"a": np.zeros(2)})
    assert shapes.dynamic_dims("a") == (False, False)
    assert shapes.dynamic_value("a").tolist() == [False, False]
    assert not shapes.sized_by_data("a")


def test_what_is_not_known_at_other_sizes_depends_on_them() -> None:
    """Values do; of sizes nothing is said."""
    other = Shapes(_model(), shape={"b": (3,)}, folded={"b": np.zeros(3)})
    by_data = Shapes(_model(), shape={"b": (2,)})
    shapes = Shapes(
        _model(),
        shape={"a": (2,), "b": (2,)},
        folded={"a": np.zeros(2), "b": np.zeros(2)},
        other=other,
        by_data=by_data,
    )
    assert shapes.dynamic_dims("a") == (False,)
    assert shapes.dynamic_dims("b") == (True,)
    assert shapes.dynamic_value("a").tolist() == shapes.dynamic_value("b").tolist() == [True, True]
    assert not shapes.sized_by_data("a")
    assert not shapes.sized_by_data("b")
    assert not shapes.sized_by_data("c")


def test_trial_sizes_differ_wherever_they_may_not_be_told_for_constants() -> None:
    first, other, by_data = TRIALS
    assert all(getattr(first, name) != getattr(other, name) for name in vars(first))
    assert [name for name in vars(first) if getattr(first, name) != getattr(by_data, name)] == ["found"]


def test_constants_are_values() -> None:
    n = Net(("x", ("N", 2)))
    model = load(n.model(n.op("Reshape", n.linear("x", 2, 4), n.ints(-1, 2, 2, hint="target")), shape=("N", 2, 2)))
    found = infer(model).value("target")
    assert found is not None
    np.testing.assert_array_equal(found, [-1, 2, 2])
