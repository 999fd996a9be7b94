"""Arrays in safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from onnxpart.errors import ModelError
from onnxpart.storage.atomic import replacing
from onnxpart.storage.json_text import from_json
from onnxpart.storage.rows import Rows, Stored, Stream, stream, write_rows

_SAFETENSORS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Names of element types in safetensors files."""


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The arrays of a safetensors file, where they lie.

    :raises ModelError: when the file can't be read, or holds types that ONNX doesn't know.
    """
    result = {}
    try:
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            dtypes = {name: np.dtype(_SAFETENSORS[found.get_dtype()]) for name, found in slices.items()}
    except KeyError as error:
        raise ModelError(f"{path} holds numbers of type {error.args[0]}; save them as floats or integers.") from None
    lengths = {name: prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    offset = path.stat().st_size - sum(lengths.values())  # the format leaves no gaps
    for name, shape in shapes.items():
        result[name] = Stored(path, offset, dtypes[name], shape)
        offset += lengths[name]
    return result


def read_shards(path: Path) -> dict[str, Stored]:
    """The arrays of a safetensors file, or of the shards that an index names (`model.safetensors.index.json`).

    :raises ModelError: when a file can't be read.
    """
    if path.suffix != ".json":
        return read_safetensors(path)
    try:
        names = sorted(set(from_json(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} can't be read as an index of safetensors files ({error}); name the index that was saved with them."
        ) from None
    return {name: array for shard in names for name, array in read_safetensors(path.parent / shard).items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its arrays.

    :raises ModelError: when the file can't be read.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    :raises ModelError: when it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} can't be read as safetensors ({error}); check the file.") from None


def save_arrays(
    values: Mapping[str, Rows | Stream], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as safetensors, whole or not at all, a few rows in memory at a time.

    :param metadata: texts that the file carries beside them.
    :raises ModelError: when the file can't be written.
    """
    sources = {name: value if isinstance(value, Stream) else stream(value) for name, value in values.items()}
    order = sorted(sources, key=lambda name: (-sources[name].dtype.itemsize, name))  # so that each is aligned
    kinds = {np.dtype(dtype): kind for kind, dtype in _SAFETENSORS.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        source = sources[name]
        stop = offset + prod(source.shape) * source.dtype.itemsize
        header[name] = {"dtype": kinds[source.dtype], "shape": source.shape, "data_offsets": (offset, stop)}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            write_rows(sources[name], file)
