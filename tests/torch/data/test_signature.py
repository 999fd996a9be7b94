"""The graph's inputs, and whether samples fit them."""

from __future__ import annotations

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from onnxpart.errors import DataError
from onnxpart.torch.data.signature import fits, listed, signature

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def graph(**inputs: tuple[int, list[str | int | None] | None]) -> helper.GraphProto:
    values = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()]
    weight = helper.make_tensor("w", FLOAT, [1], [0.0])
    return helper.make_graph([], "graph", [*values, helper.make_tensor_value_info("w", FLOAT, [1])], [], [weight])


SIGNATURE = signature(graph(x=(FLOAT, ["N", 3, "T"]), z=(INT, ["N", "T"])))


def test_inputs_are_those_that_are_no_initializers() -> None:
    assert SIGNATURE.names == ("x", "z")
    assert [str(port) for port in SIGNATURE.ports] == ["float32 [N, 3, T]", "int64 [N, T]"]
    assert SIGNATURE.fixed_batch is None
    assert signature(graph(x=(FLOAT, [8, 3]))).fixed_batch == 8


def test_samples_get_the_graphs_types() -> None:
    (x, z), target = SIGNATURE(((torch.ones(2, 3, 5).double(), torch.ones(2, 5).int()), torch.ones(2)))
    assert (x.dtype, z.dtype, target.dtype) == (torch.float32, torch.int64, torch.float32)


@pytest.mark.parametrize(
    ("x", "z", "reason"),
    [
        (torch.ones(2, 3, 5).int(), torch.ones(2, 5).int(), "'x' of the data is int32 .* convert its type"),
        (torch.ones(2, 4, 5), torch.ones(2, 5).int(), r"'x' of the data is float32 \[2, 4, 5\], but the graph's is"),
        (torch.ones(2, 3), torch.ones(2, 5).int(), "give samples of that shape"),
        (torch.ones(2, 3, 5), torch.ones(2, 4).int(), "'z' of the data has T = 4, another input 5"),
        (torch.ones(2, 3, 5), torch.ones(3, 5).int(), "have 2, 3, 2 samples; give the same number of each"),
    ],
)
def test_samples_that_do_not_fit(x: Tensor, z: Tensor, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        SIGNATURE(((x, z), torch.ones(2)))


@pytest.mark.parametrize(
    ("kind", "dims", "reason"),
    [(TensorProto.STRING, ["N"], "isn't a tensor of numbers"), (FLOAT, [], "no axis for the samples")],
)
def test_inputs_that_hold_no_samples(kind: int, dims: list[str | int | None], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        signature(graph(x=(kind, dims)))


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((2, 3), (2, 3), True),
        ((2, 3), ("N", None), True),
        ((2, 3), (2, 4), False),
        ((2,), (2, 3), False),
        ((), (), True),
    ],
)
def test_shapes_and_dimensions(shape: tuple[int, ...], dims: tuple[int | str | None, ...], expected: bool) -> None:
    assert fits(shape, dims) == expected
    assert listed((*dims, None)).endswith("?]")
