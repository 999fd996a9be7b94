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


def test_constants_are_values() -> None:
    n = Net(("x", ("N", 2)))
    model = load(n.model(n.op("Reshape", n.linear("x", 2, 4), n.ints(-1, 2, 2, hint="target")), shape=("N", 2, 2)))
    found = infer(model).value("target")
    assert found is not None
    np.testing.assert_array_equal(found, [-1, 2, 2])
