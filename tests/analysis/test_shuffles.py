"""Chains of movements that only rearrange the units of one axis."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpart import analyse, load
from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.shuffles import permutation
from tests.networks.net import Net


def shuffled(groups: int, *, back: bool = True, read: bool = False, places: bool = False) -> Analysis:
    """Twelve channels in groups, groups and channels exchanged.

    ``read``: something else reads what is between. ``places``: rows are shuffled, too.
    """
    n = Net(("x", (1, 2, 4, 4)))
    h = n.conv("x", 2, 12, name="before")
    rows = (2, 2) if places else (1, 4)
    apart = n.op("Reshape", h, n.ints(1, groups, 12 // groups, *rows, 4), name="apart")
    turned = n.op("Transpose", apart, perm=[0, 2, 1, *((4, 3) if places else (3, 4)), 5], name="turned")
    shape = (1, 12, 4, 4) if back else (1, 12, 16)
    joined = n.op("Reshape", turned, n.ints(*shape), name="joined")
    y = n.conv(joined, 12, 3, name="last") if back else n.op("MatMul", joined, n.random("w", 16, 3))
    outputs = [y] + ([n.op("Relu", n.op("ReduceSum", turned, keepdims=0), name="sum")] if read else [])
    shapes = {y: (1, 3, 4, 4) if back else (1, 12, 3), "sum": ()}
    return analyse(load(n.model(*outputs, shape={name: shapes[name] for name in outputs})))


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_a_channel_shuffle_is_one_selection(groups: int) -> None:
    analysis = shuffled(groups)
    assert analysis.virtual == {"apart": "before", "turned": "before"}
    moved = permutation(analysis, "before", "joined", 1)
    assert moved is not None
    assert moved.tolist() == np.arange(12).reshape(groups, -1).T.ravel().tolist()
    for axis in (2, 3):
        still = permutation(analysis, "before", "joined", axis)
        assert still is not None
        assert still.tolist() == list(range(4))


def test_a_chain_that_ends_in_another_shape_is_no_shuffle() -> None:
    assert shuffled(2, back=False).virtual == {}


def test_a_chain_that_moves_places_as_well_is_no_shuffle() -> None:
    assert shuffled(2, places=True).virtual == {}


def test_what_something_else_reads_is_there() -> None:
    assert "turned" not in shuffled(2, read=True).virtual
