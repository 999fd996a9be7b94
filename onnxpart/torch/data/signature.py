"""Names, types and shapes of a graph's inputs, and whether samples fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from onnxpart.errors import DataError
from onnxpart.torch.data.batch import Batch

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


@dataclass(frozen=True)
class Port:
    """An input of a graph; a dimension is a size, a symbol, or None if it may be anything."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | str | None, ...]

    def __str__(self) -> str:
        """Return the type as in `float32 [N, 3, 32, 32]`."""
        return f"{dtype_name(self.dtype)} {listed(self.dims)}"


@dataclass(frozen=True)
class Signature:
    """The inputs of a graph, in its order. A call with samples checks them, and gives them the graph's dtypes."""

    ports: tuple[Port, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(port.name for port in self.ports)

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples in a batch, if the graph fixes it."""
        return next((port.dims[0] for port in self.ports if isinstance(port.dims[0], int)), None)

    def __call__(self, samples: Batch) -> Batch:
        """Return the samples in the graph's dtypes: floats for floats, integers for integers.

        The first axis holds any number of samples, as many for each input and the target.

        :raises DataError: when a kind, a rank or a size isn't the graph's.
        """
        inputs, target = samples
        sizes: dict[str, int] = {}
        fitted = tuple(_fitted(tensor, port, sizes) for tensor, port in zip(inputs, self.ports, strict=True))
        lengths = [len(tensor) for tensor in inputs] + [len(target) if target.dim() else 0]
        if len(set(lengths)) > 1:
            raise DataError(
                f"inputs and target have {', '.join(map(str, lengths))} samples; give the same number of each."
            )
        return fitted, target


def signature(graph: onnx.GraphProto) -> Signature:
    """Return the inputs of a graph that aren't initializers.

    :raises DataError: for an input that can't hold samples.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    return Signature(tuple(_port(value) for value in graph.input if value.name not in initializers))


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    if kind.elem_type not in _DTYPES:
        raise DataError(f"the graph's input {value.name!r} isn't a tensor of numbers, so no data can fit it.")
    if not kind.HasField("shape") or not kind.shape.dim:
        raise DataError(f"the graph's input {value.name!r} has no axis for the samples of a batch; export it with one.")
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return Port(value.name, _DTYPES[kind.elem_type], tuple(dims))


def _fitted(tensor: Tensor, port: Port, sizes: dict[str, int]) -> Tensor:
    found = f"{dtype_name(tensor.dtype)} {listed(tensor.shape)}"
    if tensor.dtype != port.dtype and _kind(tensor.dtype) != _kind(port.dtype):
        raise DataError(f"{port.name!r} of the data is {found}, but the graph's is {port}; convert its type.")
    if not fits(tensor.shape[1:], port.dims[1:]) or not tensor.dim():
        raise DataError(f"{port.name!r} of the data is {found}, but the graph's is {port}; give samples of that shape.")
    for size, symbol in zip(tensor.shape[1:], port.dims[1:], strict=True):
        if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
            raise DataError(f"{port.name!r} of the data has {symbol} = {size}, another input {sizes[symbol]}.")
    return tensor.to(port.dtype)


def fits(shape: Sequence[int], dims: Sequence[int | str | None]) -> bool:
    """Whether dimensions allow a shape."""
    return len(shape) == len(dims) and all(d == n or not isinstance(d, int) for n, d in zip(shape, dims, strict=True))


def listed(dims: Sequence[int | str | None]) -> str:
    """Return a shape as in `[N, 3, ?]`."""
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as in `float32`."""
    return str(dtype).removeprefix("torch.")


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "integer"
