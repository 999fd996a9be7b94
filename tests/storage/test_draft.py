"""Drafts: models whose large initializers are streams."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from models import GOLDEN
from onnxpart.errors import ModelError
from onnxpart.storage.draft import Draft, empty, fill, to_array, without_initializers
from onnxpart.storage.rows import stream


def test_a_draft_makes_the_model_that_it_is_of() -> None:
    model = GOLDEN["chain"]()
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    streams = {name: stream(array) for name, array in arrays.items()}
    light = without_initializers(model)
    assert not light.graph.initializer
    light.graph.initializer.extend(empty(name, source) for name, source in streams.items())
    draft = Draft(light, streams)
    assert draft.model().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    for name, array in draft.arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_tensor_keeps_its_name_and_description() -> None:
    tensor = TensorProto(name="w", doc_string="a weight")
    fill(tensor, np.ones((2, 3), np.float32).T)
    assert (tensor.name, tensor.doc_string, tuple(tensor.dims)) == ("w", "a weight", (3, 2))
    np.testing.assert_array_equal(to_array(tensor), np.ones((3, 2)))


def test_a_tensor_that_is_too_short_is_said() -> None:
    tensor = TensorProto(name="w", dims=[3], data_type=TensorProto.FLOAT, raw_data=b"1234")
    with pytest.raises(ModelError, match="'w' doesn't hold the numbers"):
        to_array(tensor)
