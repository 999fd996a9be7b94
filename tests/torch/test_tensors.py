"""Names and bytes of tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx.helper import tensor_dtype_to_np_dtype
from torch import nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch.tensors import DTYPES, ELEMENT_TYPES, HALVES, TensorRows, escape, to_array, to_tensor, unescape


@given(st.text(max_size=12) | st.sampled_from(["type", "forward", "a.b", "%2E", "x\n", '"', "\\"]))
def test_names_come_back(name: str) -> None:
    assert unescape(escape(name)) == name
    if name:
        module = nn.Module()
        module.register_buffer(escape(name), torch.zeros(()))
        assert list(module.state_dict()) == [escape(name)]


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values()), key=str), ids=str)
def test_tensors_go_and_come(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    array = to_array(tensor)
    assert array.dtype == np.dtype("float32" if dtype in HALVES else str(dtype).removeprefix("torch."))
    assert to_tensor(array).tolist() == tensor.tolist()
    rows = TensorRows(nn.Parameter(tensor, requires_grad=False))
    assert (rows.shape, rows.dtype) == (tensor.shape, np.dtype(tensor_dtype_to_np_dtype(ELEMENT_TYPES[dtype])))
    assert np.array_equal(rows[slice(1, 2),], array[1:2].astype(rows.dtype))
    assert np.shares_memory(rows[()], rows[slice(1, 2),])


def test_they_are_copies() -> None:
    array = np.zeros(2, np.float32)
    tensor = to_tensor(array)
    tensor += 1
    to_array(tensor)[:] = 5
    assert (array.tolist(), tensor.tolist()) == ([0, 0], [1, 1])


def test_strings_are_refused() -> None:
    with pytest.raises(OnnxpartError, match="torch has no tensors of"):
        to_tensor(np.array(["a"]))
