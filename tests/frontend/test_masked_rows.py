"""Rows that a mask chooses are written as rows, wherever exporters write them element by element; other writes stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxpart import load, split
from tests.networks.net import Net
from tests.networks.running import run_onnx

SHAPE = (3, 4)


def chosen(n: Net, data: str, mask: str, values: str, **attributes: str) -> str:
    """`values` written where a mask of the size of `data` is true, in order."""
    places = n.op("Transpose", n.op("NonZero", n.op("Expand", mask, n.op("Shape", data))), perm=[1, 0])
    return n.op("ScatterND", data, places, values, **attributes)


def flat(n: Net, rows: str) -> str:
    return n.op("Reshape", rows, n.ints(-1))


def positive(n: Net, x: str, *axes: int) -> str:
    """Where a sum over some axes is positive; they stay, of size 1."""
    return n.op("Greater", n.op("ReduceSum", x, n.ints(*axes), keepdims=1), n.number(0))


def found(n: Net, x: str, mask: str, *axes: int) -> str:
    """The rows of x that a mask chooses, changed."""
    places = n.op("Transpose", n.op("NonZero", n.op("Squeeze", mask, n.ints(*axes))), perm=[1, 0])
    return n.op("Tanh", n.op("GatherND", x, places))


def rows(n: Net, x: str, *axes: int, **attributes: str) -> str:
    """Each row that is chosen, changed."""
    mask = positive(n, x, *axes)
    return chosen(n, x, mask, flat(n, found(n, x, mask, *axes)), **attributes)


def columns(n: Net, x: str) -> str:
    """A mask of columns is repeated for each row: its elements aren't in the order of columns."""
    mask = n.op("Greater", n.random("w", 1, 1, SHAPE[1]), n.number(0))
    return chosen(n, x, mask, flat(n, n.op("Tanh", n.op("GatherND", x, places_of(n, mask, x)))))


def places_of(n: Net, mask: str, x: str) -> str:
    return n.op("Transpose", n.op("NonZero", n.op("Expand", mask, n.op("Shape", x))), perm=[1, 0])


def repeated(n: Net, x: str) -> str:
    """A mask that is repeated for each sample, and a row for each place in each."""
    mask = n.op("Greater", n.random("w", 1, SHAPE[0], 1), n.number(0))
    lead = n.op("Shape", x, start=0, end=2)
    places = n.op("NonZero", n.op("Expand", n.op("Squeeze", mask, n.ints(2)), lead))
    found = n.op("Tanh", n.op("GatherND", x, n.op("Transpose", places, perm=[1, 0])))
    return chosen(n, x, mask, flat(n, found))


def every_element(n: Net, x: str, mask: str) -> str:
    """A mask that isn't of rows, and chooses all elements, so that there are as many as rows have."""
    return chosen(n, x, n.op("Less", mask, n.number(1000)), flat(n, n.op("Reshape", n.op("Tanh", x), n.ints(-1, 4))))


def of_another_shape(n: Net, x: str) -> str:
    """Blocks whose elements come in the shape of others."""
    mask = positive(n, x, 1, 2)
    return chosen(n, x, mask, flat(n, n.op("Reshape", found(n, x, mask, 1, 2), n.ints(-1, *SHAPE[::-1]))))


def one_by_one(n: Net, x: str) -> str:
    """Elements that were never rows."""
    mask = positive(n, x, 2)
    return chosen(n, x, mask, flat(n, n.op("Tanh", n.op("GatherND", x, places_of(n, mask, x)))))


WRITTEN = {
    "rows": lambda n, x: rows(n, x, 2),
    "blocks": lambda n, x: rows(n, x, 1, 2),
    "added": lambda n, x: rows(n, x, 2, reduction="add"),
}
"""Networks that write rows."""
LEFT = {
    "columns": columns,
    "repeated": repeated,
    "all columns": lambda n, x: every_element(n, x, n.random("w", 1, 1, SHAPE[1])),
    "all elements": lambda n, x: every_element(n, x, x),
    "of another shape": of_another_shape,
    "one by one": one_by_one,
}
"""Networks that write something else."""


def network(name: str) -> onnx.ModelProto:
    n = Net(("x", ("N", *SHAPE)), opset=18)
    return n.model((WRITTEN | LEFT)[name](n, "x"), shape=("N", *SHAPE))


@pytest.mark.parametrize("name", [*WRITTEN, *LEFT])
def test_the_same_is_written(name: str) -> None:
    model = network(name)
    loaded = load(network(name))
    onnx.checker.check_model(loaded.proto, full_check=True)
    (write,) = [op for op in loaded.flat.nodes if op.op_type == "ScatterND"]
    assert ("Reshape" in {op.op_type for op in loaded.flat.nodes}) == (name in LEFT), write
    for size in (1, 2, 5):
        x = np.random.default_rng(size).standard_normal((size, *SHAPE)).astype(np.float32)
        for result, expected in zip(run_onnx(loaded.proto, {"x": x}), run_onnx(model, {"x": x}), strict=True):
            np.testing.assert_array_equal(result, expected)


def test_an_expert_for_some_tokens_is_divided() -> None:
    """A layer between rows that are chosen and rows that are written has units, and both have the network's."""
    n = Net(("x", ("N", 3, 6)), opset=18)
    h = n.op("Tanh", n.op("MatMul", "x", n.random("first", 6, 8)))
    mask = positive(n, "x", 2)
    inner = n.op(
        "MatMul", n.op("Tanh", n.op("MatMul", found(n, h, mask, 2), n.random("up", 8, 12))), n.random("down", 12, 8)
    )
    h = n.op("Add", h, chosen(n, n.op("Mul", h, n.number(0)), mask, flat(n, inner)))
    made = split(n.model(n.op("MatMul", h, n.random("last", 8, 2)), shape=("N", 3, 2)), 2)
    sizes = {t.name: tuple(t.dims) for t in made.parts[0].graph.initializer}
    assert (sizes["first"], sizes["up"], sizes["down"], sizes["last"]) == ((6, 4), (4, 6), (6, 4), (4, 2))
