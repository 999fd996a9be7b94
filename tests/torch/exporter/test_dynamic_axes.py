"""Axes of any size, by name or as two examples show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from onnxpart.errors import UsageError
from onnxpart.torch import export
from onnxpart.torch.exporter.dynamic_axes import differing, is_axes, named_axes, with_batch


def example(batch: int, length: int, places: int) -> dict[str, Tensor]:
    return {
        "x": torch.ones(batch, length),
        "y": torch.ones(batch, length, 3),
        "z": torch.ones(places),
        "n": torch.ones(()),
    }


def test_axes_along_which_examples_differ_are_of_any_size() -> None:
    assert differing(example(4, 5, 7), example(4, 6, 8)) == {"x": {1: "x_1"}, "y": {1: "x_1"}, "z": {0: "z_0"}, "n": {}}
    assert differing(example(4, 5, 7), example(4, 5, 7)) == {key: {} for key in "xyzn"}
    with pytest.raises(UsageError, match=r"ranks {'x': 2}, those of the other {'x': 1}; give two with"):
        differing({"x": torch.ones(2, 3)}, {"x": torch.ones(2)})


def test_the_first_axis_is_the_batch_where_it_has_its_size() -> None:
    found = with_batch(example(4, 5, 7), {"x": {1: "length"}, "y": {1: "length"}})
    assert found == [{0: "batch", 1: "length"}, {0: "batch", 1: "length"}, {}, {}]


LENGTH = Dim("length", min=2)
LENGTHS = {"x": {1: "length"}, "y": {1: "length"}}
ALIKE = {"x": {1: "x_1"}, "y": {1: "x_1"}}


@pytest.mark.parametrize(
    ("dynamic", "names"),
    [
        ({"x": {1: "length"}, "y": {1: LENGTH, 2: None}}, LENGTHS),
        ({"x": (None, LENGTH), "y": [4, LENGTH, Dim.STATIC], "z": None, "absent": None}, LENGTHS),
        (({1: LENGTH}, {1: "length"}), LENGTHS),
        ([{1: Dim.AUTO}, {1: Dim.DYNAMIC}, None, ()], ALIKE),
    ],
)
def test_axes_are_named_as_for_torch_export(dynamic: Any, names: dict[str, dict[int, str]]) -> None:
    assert is_axes(dynamic)
    assert named_axes(example(4, 5, 7), dynamic) == names


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        ({"x": {2: "length"}}, r"dynamic names {2: 'length'} of 'x', and the inputs are x \[4, 5\], y"),
        ([None] * 4 + [{0: "more"}], r"dynamic names {0: 'more'} of None, and the inputs are x"),
        ({"x": {1: 2 * LENGTH}}, r"dynamic gives axis 1 of 'x' the size .*; give a name or a Dim of its own"),
    ],
)
def test_axes_that_are_not_there(dynamic: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        named_axes(example(4, 5, 7), dynamic)


def test_another_example_is_not_taken_for_names() -> None:
    for other in (torch.ones(2), (torch.ones(2),), [torch.ones(2)], example(4, 5, 7), {"x": torch.ones(2), "y": None}):
        assert not is_axes(other)


def test_an_example_in_the_place_of_names(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)
    export(module, torch.ones(2, 5, 4), tmp_path / "m.onnx", dynamic=(torch.ones(3, 6, 4),))
    (value,) = onnx.load(tmp_path / "m.onnx").graph.input
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["batch", "input_1", 4]
