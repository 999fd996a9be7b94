"""Bytes on disk: reading models and arrays, mapping external data, writing whole files or none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper

from onnxpart.errors import ModelError
from onnxpart.storage.atomic import check_plain, names_in, replacing, replacing_files, write_bytes
from onnxpart.storage.draft import Draft, to_array, without_initializers
from onnxpart.storage.rows import Array, Rows, Stored, Stream, stream, write_rows

MAX_PROTOBUF = 2**31 - 2**20
"""From this many bytes on protobuf refuses a message; weights then go to an external file."""
SMALL_TENSOR = 1024
"""Tensors of fewer bytes stay in the model's own file."""
ALIGNMENT = 4096
"""External tensors start at multiples of this many bytes."""
DATA = ".data"
"""The end of the name of a model's external data, behind the model's file name, and a number if that name is taken."""
Data: TypeAlias = Path | Mapping[str, Stream]
"""Where a model has its external data: in files of a folder, or in memory by the location that tensors name."""


# -- reading ----------------------------------------------------------------------------------------------------------
def read(path: Path) -> onnx.ModelProto:
    """The model in a file; its external data stay where they are.

    :raises ModelError: when the file is missing or damaged.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the .onnx file in it.")
    if path.exists() and not path.is_file():  # which might never end
        raise ModelError(f"{path} is a device or a pipe; name the .onnx file itself.")
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
    for tensor in _external_tensors(proto):
        location = _external(tensor).get("location", "")
        target = (root / location).resolve()
        if not target.is_relative_to(root):
            raise ModelError(
                f"{path}: the external data of {tensor.name!r} lie outside the model's folder "
                f"({location}); save the model with its data beside it."
            )
        if not target.is_file():
            raise ModelError(
                f"{path}: the external data file {location} of {tensor.name!r} is missing; copy it beside the model."
            )
        _span(tensor, target)


def inner_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Tensors in the attributes of nodes: constants, and the initializers of subgraphs."""
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while bodies:
        for node in bodies.pop().node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    bodies.append(attribute.g)
                    yield from attribute.g.initializer


def _external_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The tensors that lie in files of their own."""
    for tensor in (*proto.graph.initializer, *inner_tensors(proto)):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _span(tensor: TensorProto, path: Path) -> tuple[int, int]:
    """Offset and length in bytes of an external tensor in its file."""
    entries = _external(tensor)
    offset, size = entries.get("offset", "0"), nbytes(tensor)
    length = entries.get("length", str(size))
    if length != str(size):
        raise ModelError(
            f"{path}: initializer {tensor.name!r} of shape {tuple(tensor.dims)} is {size} bytes, the model says "
            f"{length}; export the model again."
        )
    if not offset.isdecimal() or path.stat().st_size < int(offset) + size:
        raise ModelError(f"{path} is too short for initializer {tensor.name!r}: it is truncated; copy it again.")
    return int(offset), size


def packed(data_type: int) -> int:
    """How many elements of an ONNX type share a byte."""
    name = TensorProto.DataType.Name(data_type)
    return next((8 // n for n in (2, 4) if name in (f"INT{n}", f"UINT{n}") or name.startswith(f"FLOAT{n}")), 1)


def nbytes(tensor: TensorProto) -> int:
    """Size of a tensor's numbers in bytes; 0 for text."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    size: int = prod(tensor.dims) * itemsize
    return -(-size // packed(tensor.data_type))


def fetch(tensor: TensorProto, folder: Path) -> None:
    """Read the external data of a tensor into it."""
    path = folder / _external(tensor)["location"]
    offset, size = _span(tensor, path)
    with path.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(size)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def stored(tensor: TensorProto, folder: Path) -> Stored:
    """The array of an external tensor, where it lies."""
    path = folder / _external(tensor)["location"]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return Stored(path, _span(tensor, path)[0], dtype, tuple(tensor.dims))


def tensor_rows(tensor: TensorProto, data: Data | None) -> Rows:
    """An initializer; if it is external, it is read from `data` a few rows at a time."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return to_array(tensor)
    assert data is not None
    return stored(tensor, data) if isinstance(data, Path) else data[_external(tensor)["location"]]


def locate(tensor: TensorProto) -> None:
    """Let an external tensor find its numbers in memory by its present name, even if it is renamed."""
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=tensor.name)


# -- writing ----------------------------------------------------------------------------------------------------------
def save(model: onnx.ModelProto | Draft, path: str | os.PathLike[str]) -> None:
    """Write a model whole or not at all: at every moment the old one or the new one is there, each with its data.

    :raises ModelError: when the folder can't be written, or `path` is something other than a file.
    """
    path = Path(path)
    check_plain(path)
    with replacing_files(path, own_data(path)) as fresh:
        write(model, fresh / path.name, path.parent)


def write(model: onnx.ModelProto | Draft, path: Path, home: Path) -> None:
    """Write a model into a folder; from there it goes to another one (see `atomic.replacing_files`).

    A model that protobuf can't hold (2 GB), or that has streams, is written with external data. Tensors of at least
    `SMALL_TENSOR` bytes go one after the other to `<name>.data` beside it, a few rows in memory at a time. If `home`
    has a file of that name, they go to `<name>.1.data`, and so on.

    :param home: the other folder.
    :raises ModelError: when it can't be written.
    """
    draft = model if isinstance(model, Draft) else Draft(model)
    if not draft.streams and fits(draft.proto):
        write_bytes(path, draft.proto.SerializeToString())
        return
    proto, data = without_initializers(draft.proto), _free_name(home / path.name)
    with replacing(path.with_name(data)) as weights:
        for tensor in draft.proto.graph.initializer:
            source = draft.streams.get(tensor.name)
            if source is None and nbytes(tensor) >= SMALL_TENSOR:
                source = stream(_numbers(tensor))
            proto.graph.initializer.append(tensor if source is None else _append(tensor, source, weights, data))
    write_bytes(path, proto.SerializeToString())


def data_files(path: Path) -> list[Path]:
    """The files of a model's external data.

    :raises ModelError: when the model can't be read.
    """
    names = {_external(tensor).get("location", "") for tensor in _external_tensors(read(path))}
    return [path.parent / name for name in sorted(names)]


def is_data_of(name: str, model: str) -> bool:
    """Whether a file has a name that `save` gives to the external data of a model's file."""
    return re.fullmatch(rf"{re.escape(model)}(\.\d+)?{re.escape(DATA)}", name) is not None


def own_data(path: Path) -> list[str]:
    """Names of the files with external data of the model in `path`, if `save` named them."""
    names = {name for name in names_in(path.parent) if is_data_of(name, path.name)} if path.is_file() else set()
    try:
        return sorted(names & {file.name for file in data_files(path)}) if names else []
    except ModelError:  # the file isn't a model
        return []


def _free_name(path: Path) -> str:
    """A name for external data that no file has."""
    names = (f"{path.name}{number}{DATA}" for number in chain([""], (f".{n}" for n in count(1))))
    return next(name for name in names if not os.path.lexists(path.with_name(name)))


def fits(proto: onnx.ModelProto) -> bool:
    """Whether protobuf can hold the model."""
    try:
        size: int = proto.ByteSize()
    except EncodeError:
        return False
    return size < MAX_PROTOBUF


def _numbers(tensor: TensorProto) -> Array:
    """A tensor's array, or the bytes in which its elements are packed."""
    packed_as_bytes = packed(tensor.data_type) > 1 and tensor.HasField("raw_data")
    return np.frombuffer(tensor.raw_data, np.uint8) if packed_as_bytes else to_array(tensor)


def _append(tensor: TensorProto, source: Stream, file: BinaryIO, location: str) -> TensorProto:
    """Append a tensor's numbers to a file of external data; returns a tensor that says where they are."""
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.seek(offset)
    length = write_rows(source, file)
    result = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    result.data_location = TensorProto.EXTERNAL
    if tensor.doc_string:
        result.doc_string = tensor.doc_string
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        result.external_data.add(key=key, value=value)
    return result
