"""Names and bytes of an imported module's tensors: each is kept under its initializer's own name."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import nn

from onnxpart.errors import OnnxpartError
from onnxpart.storage.rows import RowIndex

_ESCAPED = re.compile(r'[%."\\\x00-\x1f]')
_TAKEN = frozenset(dir(nn.Module())) | {""}
DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
}
"""ONNX element type -> torch's; those of less than a byte, and strings, are not there."""
ELEMENT_TYPES = {dtype: element for element, dtype in DTYPES.items()}
_BITS = {"bfloat16": torch.bfloat16, **{str(d)[6:]: d for d in DTYPES.values() if "float8" in str(d)}}
"""Types that numpy lacks by the names that they have there all the same."""
HALVES = frozenset(_BITS.values())
"""Types that numpy lacks."""


def escape(name: str, taken: Collection[str] = ()) -> str:
    """Turn an initializer's name into one that torch accepts for a parameter; `unescape` turns it back.

    A dot (torch's separator), a percent sign, and what can't stand in generated code become `%XX`;
    so does the first character of a name that is `taken`, or that `nn.Module` uses itself, such as `type`.
    """
    escaped = _ESCAPED.sub(_percent, name)
    return f"%{ord(escaped[0]):02X}{escaped[1:]}" if escaped and escaped in {*_TAKEN, *taken} else escaped


def unescape(name: str) -> str:
    """Turn an escaped name back into the initializer's name: `unescape(escape(name)) == name`."""
    return re.sub("%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), name)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array of any dtype and shape into a tensor.

    Float types that numpy lacks keep their bits; integers of less than a byte become int8 or uint8.
    :raises OnnxpartError: for strings, and floats of less than a byte.
    """
    array = np.array(array, order="C")
    name = array.dtype.name
    if name in _BITS:
        bits = array.view(np.int16 if array.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits).view(_BITS[name])
    if name in ("int2", "int4", "uint2", "uint4"):
        array = array.astype(np.int8 if name.startswith("i") else np.uint8)
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise OnnxpartError(f"torch has no tensors of {name}; take them out of the model.") from None


def to_tensor_like(tensor: torch.Tensor, array: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Copy an array into a new tensor of the dtype, device, layout and sharding of one of its shape.

    Of a sharded tensor (`fully_shard`'s) every rank gives the whole array and keeps its shard; for one on the meta
    device the result is on the CPU, and for one that DeepSpeed trains copies of it is whole.

    :param dtype: another than the tensor's.
    """
    source, dtype = sharded_like(tensor, to_tensor(array)), dtype or tensor.dtype
    if tensor.is_meta or is_copied(tensor):
        return source.to(dtype)
    return torch.empty_like(tensor, dtype=dtype, requires_grad=False).copy_(source)


def is_copied(tensor: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO trains a copy of a parameter in 32 bits, which ranks share, or shares it out itself."""
    return hasattr(tensor, "_hp_mapping") or hasattr(tensor, "ds_id")


def sharded_like(tensor: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return a tensor that all ranks have as a whole with the sharding of another; as it is if that isn't sharded."""
    if not hasattr(tensor, "device_mesh"):
        return whole
    sharded: Any = tensor
    distribute = import_module("torch.distributed.tensor").distribute_tensor  # slow to import; here it is loaded
    found: torch.Tensor = distribute(
        whole.to(tensor.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )
    return found


def unsharded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU, without gradient.

    Of a sharded tensor (`fully_shard`'s) the whole is gathered: all ranks that have shards of it must call together.
    So is a parameter that DeepSpeed's ZeRO trains a copy of in 32 bits: that copy.
    """
    if is_copied(tensor):
        tensor = _copied(tensor)
    tensor = tensor.detach()
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.cpu()


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of a tensor as a whole, also while ranks of DeepSpeed's ZeRO share it out."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _copied(parameter: Any) -> torch.Tensor:
    """The copy of a parameter that DeepSpeed trains; a frozen one is gathered."""
    if parameter.requires_grad:
        found: torch.Tensor = import_module("deepspeed.utils").safe_get_full_fp32_param(parameter)
        return found
    with import_module("deepspeed").zero.GatheredParameters([parameter]):
        return torch.empty_like(parameter).copy_(parameter)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor of any dtype, shape and device into an array; floats that numpy lacks become float32.

    Of a sharded tensor see `unsharded`.
    """
    tensor = unsharded(tensor)
    return np.array((tensor.float() if tensor.dtype in HALVES else tensor).numpy())


@dataclass(frozen=True, eq=False)
class TensorRows:
    """A tensor's rows as arrays of its ONNX type; those of one on the CPU are its own memory."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[self.tensor.dtype]))

    def __getitem__(self, rows: RowIndex) -> np.ndarray:
        piece = unsharded(self.tensor[rows]).contiguous()
        if piece.dtype in HALVES:
            piece = piece.view(torch.int16 if piece.itemsize == 2 else torch.uint8)
        return piece.numpy().view(self.dtype)


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"
