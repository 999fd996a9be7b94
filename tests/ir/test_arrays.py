"""A model's digest, and its file again."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import onnxpart
from models import GOLDEN
from onnxpart.ir.arrays import array_of
from tests.networks.copies import restored, with_arrays
from tests.networks.net import Net


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_written_and_loaded_again_is_the_same(name: str) -> None:
    model = onnxpart.load(GOLDEN[name]())
    again = onnxpart.load(restored(model))
    assert (again.digest, again.constants) == (model.digest, model.constants)
    for initializer in model.initializers:
        np.testing.assert_array_equal(array_of(again, initializer), array_of(model, initializer))


def test_other_weights_change_no_digest_and_other_sizes_do() -> None:
    n = Net(("x", ("N", 4)))
    weight, sizes = n.random("weight", 4, 6), n.ints(0, 2, 3)
    proto = n.model(n.op("Reshape", n.op("MatMul", "x", weight), sizes), shape=("N", "A", "B"))
    digest = onnxpart.load(proto).digest
    assert onnxpart.load(with_arrays(proto, {weight: np.ones((4, 6), np.float32)})).digest == digest
    assert onnxpart.load(with_arrays(proto, {sizes: np.asarray([0, 3, 2])})).digest != digest


def test_a_model_is_data() -> None:
    model = onnxpart.load(GOLDEN["chain"]())
    with pytest.raises(FrozenInstanceError):
        model.name = "another"  # type: ignore[misc]
