"""Operators that work place by place: fields written down."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpart.analysis.op import Barrier
from tests.networks.alone import Alone


@pytest.mark.parametrize("op_type", ["Relu", "Cast", "Clip"])
def test_one_operand(op_type: str) -> None:
    alone = Alone(op_type, [(2, 3)], **({"to": 1} if op_type == "Cast" else {}))
    f = alone.label(0, 1)
    ((g,),) = alone.run()
    assert g is f
    assert alone.op.labels.ties == []


def test_operands_along_the_same_axis_are_the_same_units() -> None:
    alone = Alone("Add", [(2, 3), (3,)])
    f, g = alone.label(0, 1), alone.label(1, 0)
    ((out,),) = alone.run()
    assert alone.same(f, g)
    assert alone.units(out) == [0, 1, 2]


def test_operands_along_different_axes_are_a_soft_tie() -> None:
    alone = Alone("Mul", [(2, 3), (2, 3)])
    alone.label(0, 0)
    alone.label(1, 1)
    assert len(alone.run()[0]) == 2
    assert alone.soft() == ["the product of two divided axes"]


def test_a_parameter_makes_no_units() -> None:
    alone = Alone("Add", [(2, 3)], [(3,)])
    assert alone.run() == [()]
    assert alone.units(alone.op.fields(1)[0]) == [-1] * 3


def test_slopes_go_with_their_units() -> None:
    alone = Alone("PRelu", [(2, 4, 3)], [(4, 1)])
    f = alone.label(0, 1)
    assert alone.run() == [(f,)]
    assert alone.same(f, alone.op.fields(1)[0])


def test_batch_norm_applies_along_axis_1() -> None:
    alone = Alone("BatchNormalization", [(2, 4, 3)], [(4,)] * 4)
    f = alone.label(0, 1)
    assert alone.run()[0] == (f,)
    for i in range(1, 5):
        assert alone.same(f.ravel(), alone.op.fields(i)[0])


def test_pooling_ties_what_a_window_sees() -> None:
    alone = Alone("MaxPool", [(1, 2, 4, 4)], kernel_shape=[2, 2], strides=[2, 2])
    alone.label(0, 1, 2, 3)
    ((out,),) = alone.run()
    assert out.shape == (1, 2, 1, 1)
    assert alone.units(out) == [0, 1]


def test_positions_of_a_pooling_count_over_all_channels() -> None:
    alone = Alone("MaxPool", [(1, 2, 4, 4)], outputs=2, kernel_shape=[2, 2])
    f = alone.label(0, 1)
    alone.run()
    assert alone.units(f) == [-1, -1]
    assert alone.reasons() == ["it returns positions that count over all channels"]


def test_groups_in_the_batch_axis_are_sampled_at_their_own_places() -> None:
    alone = Alone("GridSample", [(4, 3, 4, 4), (4, 5, 5, 2)])
    f, g = alone.label(0, 0, 1), alone.label(1, 0, 3)
    ((first, _),) = alone.run()
    assert first is f
    assert alone.units(f) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert alone.same(g[..., :1], f[:, :1])
    assert alone.same(g[..., 1:], f[:, :1])


def test_places_alone_may_be_divided_along_the_batch_axis() -> None:
    alone = Alone("GridSample", [(4, 3, 4, 4), (4, 5, 5, 2)])
    g = alone.label(1, 0)
    assert alone.run() == [(g,)]


def test_every_part_samples_at_the_same_places() -> None:
    alone = Alone("GridSample", [(1, 2, 4, 4), (1, 5, 5, 2)])
    f, g = alone.label(0, 1), alone.label(1, 3)
    assert alone.run() == [(f,)]
    assert alone.units(g) == [-1, -1]


def test_scales_by_channel_go_with_their_units() -> None:
    alone = Alone("QuantizeLinear", [(2, 4, 3)], [np.ones(4, np.float32)], opset=13)
    f = alone.label(0, 1)
    assert alone.run() == [(f,)]
    assert alone.same(f.ravel(), alone.op.fields(1)[0])


def test_scales_by_block_have_no_rule() -> None:
    alone = Alone("QuantizeLinear", [(2, 4)], [np.ones((2, 2), np.float32)], opset=21, axis=1, block_size=2)
    with pytest.raises(Barrier, match="its scales are per block"):
        alone.run()
