"""Arrays in safetensors files, as the format's own library sees them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors import safe_open

from onnxpart.errors import ModelError
from onnxpart.storage.rows import stream
from onnxpart.storage.safetensors import read_metadata, read_safetensors, read_shards, save_arrays

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8, np.bool_)
ARRAYS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4), st.tuples(st.sampled_from(DTYPES), array_shapes(min_dims=0)), max_size=5
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ARRAYS, st.integers(0, 9))
def test_arrays_are_read_as_they_were_written(
    tmp_path: Path, kinds: dict[str, tuple[type, tuple[int, ...]]], seed: int
) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "file.safetensors"
    values = {name: rng.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in kinds.items()}
    save_arrays({name: stream(value) for name, value in values.items()}, path, {"text": "x"})
    found = read_safetensors(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].offset % value.dtype.itemsize == 0
        np.testing.assert_array_equal(stream(found[name]).array(), value)
    assert read_metadata(path) == {"text": "x"}
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == values.keys()


def test_what_is_no_safetensors_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"nothing of the kind")
    for read in (read_safetensors, read_metadata):
        with pytest.raises(ModelError, match="can't be read as safetensors"):
            read(path)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{", "index.json can't be read as an index"),
        ('{"weights": {}}', "index.json can't be read as an index"),
        ('{"weight_map": {"a": "lost.safetensors"}}', "lost.safetensors can't be read as safetensors"),
        (None, "index.json can't be read as an index"),
    ],
)
def test_what_is_no_index_of_shards_is_said(tmp_path: Path, index: str | None, problem: str) -> None:
    path = tmp_path / "index.json"
    if index is not None:
        path.write_text(index)
    with pytest.raises(ModelError, match=problem):
        read_shards(path)
