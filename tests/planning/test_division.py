"""What parts hold of tensors, where it can be written down by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from onnxpart import analyse, load
from onnxpart.analysis.labels import ByIdentity
from onnxpart.planning.assign import ANYWHERE
from onnxpart.planning.division import Division, NotAGrid
from onnxpart.planning.planner import partition
from tests.networks.net import Net

WIDTH = 4


def mlp() -> ModelProto:
    """Two layers: [N, 3] to [N, 4] to [N, 2]."""
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"), name="hidden")
    return n.model(n.linear(h, WIDTH, 2, name="out"), shape=("N", 2))


def chosen(*parts: int) -> Division:
    """The hidden units of `mlp` in the parts given."""
    analysis = analyse(load(mlp()))
    found = np.full(analysis.labels.count, ANYWHERE, np.int16)
    for name in ("in.weight", "in.bias", "in", "hidden", "out.weight"):
        for f in analysis.fields(name):
            if f.size == WIDTH:
                found[f.ravel()] = parts
    return Division(analysis, found, 2, frozenset())


def test_kept_indices() -> None:
    division = chosen(0, 1, ANYWHERE, 1)
    for name, axis in (("hidden", 1), ("in.weight", 0), ("in.bias", 0), ("out.weight", 1)):
        for part, kept in ((0, [0, 2]), (1, [1, 2, 3])):
            found = division.kept(name, part)
            assert found[axis] is not None
            assert found[axis].tolist() == kept
            assert all(indices is None for a, indices in enumerate(found) if a != axis)
    assert division.kept("x", 0) == (None, None)
    assert division.kept("out.bias", 1) == (None,)


@given(st.lists(st.integers(-1, 1), min_size=WIDTH, max_size=WIDTH))
@settings(max_examples=25, deadline=None)
def test_parts_cover_a_tensor_and_share_what_is_anywhere(parts: list[int]) -> None:
    division = chosen(*parts)
    counts = np.zeros(WIDTH, int)
    for part in range(2):
        kept = division.kept("hidden", part)[1]
        counts[slice(None) if kept is None else kept] += 1
    assert counts.tolist() == [2 if p == ANYWHERE else 1 for p in parts]
    assert division.divided("hidden") == (max(parts) > ANYWHERE)
    assert division.joinable("hidden") == (min(parts) > ANYWHERE)


def test_divided_replicated_and_joinable() -> None:
    division = chosen(0, 1, 0, 1)
    names = ("x", "in.weight", "in.bias", "hidden", "out.weight", "out.bias", "out")
    assert list(filter(division.divided, names)) == ["in.weight", "in.bias", "hidden", "out.weight"]
    assert division.joinable("hidden")
    assert not division.replicated("hidden")
    assert division.replicated("out.bias")
    assert not division.replicated("x")
    mixed = chosen(0, 1, ANYWHERE, 1)
    assert not mixed.joinable("hidden")
    assert mixed.divided("in.bias")
    assert mixed.replicated("in.bias")


def test_units_meet_where_a_weight_sums_over_them() -> None:
    division = chosen(0, 1, 0, 1)
    assert [division.analysis.ops[i].title for i in division.meetings] == ["Gemm 'out'"]
    assert not replace(division, duplicated=frozenset(range(3))).meetings


def test_what_has_no_mean() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    n.op("ArgMax", h, axis=1, name="index")
    made = partition(analyse(load(n.model(n.linear(h, WIDTH, 2, name="out"), shape=("N", 2)))), 2)
    assert made.division.no_mean("out") == ""
    assert made.division.no_mean("index") == "aren't floating-point numbers"


def test_no_mean_passes_into_whole_numbers() -> None:
    n = Net(("x", ("N", 3)))
    y = n.op("Cast", n.linear("x", 3, WIDTH, name="in"), to=TensorProto.DOUBLE)
    y = n.linear(n.op("Cast", y, to=TensorProto.FLOAT, name="wide"), WIDTH, 2, name="out")
    whole = n.op("Cast", y, to=TensorProto.INT32, name="whole")
    made = partition(analyse(load(n.model(n.op("Cast", whole, to=TensorProto.FLOAT), shape=("N", 2)))), 2)
    assert made.plan.mean == ("out",)
    producer = made.analysis.producer
    assert [made.division.passes_mean(producer[name]) for name in ("wide", "whole")] == ["data", "no"]


def test_what_is_no_grid_is_told() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, 4, name="in"))
    square = n.op("Reshape", h, n.ints(0, 2, 2), name="square")
    flat = n.op("Reshape", square, n.ints(0, 4))
    analysis = analyse(load(n.model(n.linear(flat, 4, 2, name="out"), shape=("N", 2))))
    (f,) = analysis.fields("square")
    parts = np.full(analysis.labels.count, ANYWHERE, np.int16)
    parts[f.ravel()] = (0, 1, 1, 0)  # a diagonal
    division = Division(analysis, parts, 2, frozenset())
    with pytest.raises(NotAGrid, match="square"):
        division.kept("square", 0)
    assert division.kept(analysis.ops[1].outputs[0], 0) is not None


def test_a_mapping_by_identity_tells_equal_arrays_apart() -> None:
    one, other = np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32)
    found = ByIdentity([(one, "one")])
    assert one in found
    assert other not in found
    found[other] = "other"
    assert [found[key] for key in found] == ["one", "other"]
    del found[one]
    assert len(found) == 1
    for _ in range(100):  # keys stay alive, so that no other object takes their identity
        found[np.arange(3, dtype=np.int32)] = "new"
    assert len(found) == 101
