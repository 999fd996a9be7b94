"""What a rule can't tell is a barrier: said by name and reason, undivided in front, and verified all the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from onnxpart import split, verify
from tests.networks.net import Net
from tests.networks.operators import WIDTH, Build, indices, other


def computed_axis(n: Net, value: int) -> str:
    """An axis that only the run knows."""
    zero = n.op("Mul", n.op("ReduceMax", "x", keepdims=0), n.number(0))
    return n.op("Cast", n.op("Add", zero, n.number(value)), to=TensorProto.INT64)


def transform(n: Net, h: str) -> str:
    found = n.op("DFT", n.op("Unsqueeze", h, n.ints(4)), "", computed_axis(n, 2))
    return n.op("Gather", found, n.array("real", np.asarray(0, np.int64)), axis=4)


def some(n: Net, h: str) -> str:
    """Places of the first 4 channels."""
    shape = n.op("Concat", n.op("Slice", n.op("Shape", "x"), n.ints(0), n.ints(1)), n.ints(4, 4, 4), axis=0)
    return n.op("GatherElements", h, n.op("Expand", indices(n, 1, 4, 4, 4, upto=4), shape), axis=3)


def deformed(n: Net, h: str) -> str:
    offset = n.op("Concat", "x", "x", "x", "x", axis=1)
    return n.op("DeformConv", h, n.random("w", 6, 3, 2, 2), offset, group=2, pads=[0, 0, 1, 1], kernel_shape=[2, 2])


def diagonal(n: Net, h: str) -> str:
    return n.op("Einsum", h, other(n), n.random("third", 6, 6), equation="nchw,nchw,cc->nchw")


NEXT: dict[str, tuple[Build, int, int, str]] = {
    "CumSum": (lambda n, h: n.op("CumSum", h, computed_axis(n, 2)), WIDTH, 17, "its axis is computed at run time"),
    "DFT": (transform, WIDTH, 20, "its axis is computed at run time"),
    "GatherElements": (some, 4, 17, "it reaches some of the places along a divided axis only"),
    "CenterCropPad": (
        lambda n, h: n.op("CenterCropPad", h, n.ints(4), axes=[1]),
        4,
        18,
        "it crops or pads a divided axis",
    ),
    "DeformConv": (deformed, WIDTH, 19, "a deformable convolution in groups has no rule"),
    "Einsum": (diagonal, WIDTH, 17, "its equation takes a diagonal"),
}


@pytest.mark.parametrize("op_type", NEXT)
def test_barrier(op_type: str) -> None:
    build, channels, opset, reason = NEXT[op_type]
    n = Net(("x", ("N", 2, 4, 4)), opset=opset)
    h = build(n, n.conv("x", 2, WIDTH, name="before"))
    h = n.op("Relu", n.conv(h, channels, WIDTH, name="behind"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h))
    done = split(n.model(n.linear(h, WIDTH, 3, name="logits"), shape=("N", 3)), 2)
    assert [entry.split(" ")[0] for entry in done.plan.blocked] == [op_type]
    assert done.plan.blocked[0].endswith(f": {reason}")
    assert done.plan.by_name["before.weight"].part_shape(0)[0] == WIDTH
    assert done.plan.by_name["behind.weight"].part_shape(0)[0] == WIDTH // 2
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
