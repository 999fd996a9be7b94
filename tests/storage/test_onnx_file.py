"""ONNX files with external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from models import GOLDEN
from onnxpart.errors import ModelError
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import ALIGNMENT, check_external, fetch, nbytes, packed, read, save, tensor_rows
from onnxpart.storage.rows import stream


def _saved(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A model of which each initializer is in the file of external data."""
    model = GOLDEN["chain"]()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    save(Draft(model, {name: stream(array) for name, array in arrays.items()}), folder / "m.onnx")
    return folder / "m.onnx", arrays


def test_external_data_are_mapped_where_they_lie(tmp_path: Path) -> None:
    path, arrays = _saved(tmp_path)
    proto = read(path)
    check_external(proto, path)
    for tensor in proto.graph.initializer:
        assert tensor.data_location == TensorProto.EXTERNAL
        offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
        assert offset % ALIGNMENT == 0
        np.testing.assert_array_equal(stream(tensor_rows(tensor, tmp_path)).array(), arrays[tensor.name])
        fetch(tensor, tmp_path)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])
    onnx.checker.check_model(path)


def test_data_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    proto = read(path)
    proto.graph.initializer[0].external_data[0].value = "../m.onnx.data"
    with pytest.raises(ModelError, match="outside the model's folder"):
        check_external(proto, path)


@pytest.mark.parametrize(("kind", "several", "size"), [
    (TensorProto.FLOAT, 1, 20), (TensorProto.INT4, 2, 3), (TensorProto.UINT4, 2, 3), (TensorProto.BOOL, 1, 5),
    (TensorProto.STRING, 1, 0), (TensorProto.BFLOAT16, 1, 10), (TensorProto.FLOAT4E2M1, 2, 3),
])  # fmt: skip
def test_how_many_bytes_a_tensor_has(kind: int, several: int, size: int) -> None:
    assert packed(kind) == several
    assert nbytes(TensorProto(dims=[5], data_type=kind)) == size
