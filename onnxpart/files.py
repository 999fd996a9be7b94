"""Bytes on disk: reading models, mapping external data, writing whole files or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxpart.errors import ModelError

Array = NDArray[Any]
MAX_PROTOBUF = 2**31 - 2**20
"""Above this many bytes protobuf refuses a message; weights then go to an external file."""


def read(path: Path) -> onnx.ModelProto:
    """The model in a file, its external data left where they are.

    :raises ModelError: when the file is missing or damaged.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the .onnx file in it.")
    try:
        return onnx.load_model(path, load_external_data=False, format="protobuf")
    except FileNotFoundError:
        raise ModelError(f"{path} doesn't exist; check the path.") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}); check its permissions.") from None
    except DecodeError:
        raise ModelError(
            f"{path} isn't an ONNX file or is truncated (protobuf can't decode it); export it again."
        ) from None


def check_external(proto: onnx.ModelProto, path: Path) -> None:
    """Check that external data are there, whole, and within the model's folder.

    :raises ModelError: when they aren't.
    """
    root = path.parent.resolve()
    for tensor in proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = _external(tensor).get("location", "")
        target = (root / location).resolve()
        if not target.is_relative_to(root):
            raise ModelError(
                f"{path}: the external data of initializer {tensor.name!r} lie outside the model's folder "
                f"({location}); save the model with its data beside it."
            )
        if not target.is_file():
            raise ModelError(
                f"{path}: the external data file {location} of initializer {tensor.name!r} is missing; "
                "copy it beside the model."
            )
        _span(tensor, target)


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _span(tensor: TensorProto, path: Path) -> tuple[int, int]:
    """Offset and length in bytes of an external tensor in its file."""
    offset = _external(tensor).get("offset", "0")
    count = prod(tensor.dims)
    size = count * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    if not offset.isdecimal() or path.stat().st_size < int(offset) + size:
        raise ModelError(f"{path} is too short for initializer {tensor.name!r}: it is truncated; copy it again.")
    return int(offset), size


def to_array(tensor: TensorProto, folder: Path | None) -> Array:
    """The array of a tensor; external data (looked up in `folder`) are mapped from the file.

    :raises ModelError: when the file holds fewer bytes than the tensor.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        try:
            return numpy_helper.to_array(tensor)
        except ValueError:
            shape = tuple(tensor.dims)
            raise ModelError(
                f"initializer {tensor.name!r} doesn't hold the numbers of its shape {shape}; export the model again."
            ) from None
    path = (folder or Path()) / _external(tensor)["location"]
    offset, size = _span(tensor, path)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    flat = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(size,)) if size else np.zeros(0, np.uint8)
    return flat.view(dtype).reshape(tuple(tensor.dims))


def save(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write a model under a temporary name, then rename it; weights above 2 GB go to `<name>.data` beside it.

    :raises ModelError: when the folder can't be written.
    """
    path = Path(path)
    if proto.ByteSize() < MAX_PROTOBUF:
        write_bytes(path, proto.SerializeToString())
        return
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onnx.save_model(copy, path, save_as_external_data=True, location=data.name)


def save_arrays(values: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write arrays as safetensors.

    :raises ModelError: when the file can't be written.
    """
    from safetensors.numpy import save as to_bytes

    write_bytes(Path(path), to_bytes({name: np.ascontiguousarray(array) for name, array in values.items()}))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    :raises ModelError: when it can't be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ModelError(f"{path} can't be written ({error.strerror}); choose another place.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise ModelError(f"{path} can't be written ({error.strerror}); free space or choose another place.") from None
