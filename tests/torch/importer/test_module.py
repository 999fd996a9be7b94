"""The imported module's tensors by the initializers' names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist

from models import regression_mlp
from onnxpart.errors import OnnxpartError
from onnxpart.torch import ImportedModule, export_weights, import_onnx, load_weights, weights
from onnxpart.torch.importer.module import parameters

MODEL = regression_mlp(0, inputs=6, hidden=(8,))


@pytest.fixture
def module() -> ImportedModule:
    return import_onnx(MODEL)


def test_weights_are_copies_that_load_again(module: ImportedModule) -> None:
    found = weights(module)
    assert found.keys() == parameters(module).keys() == {tensor.name for tensor in MODEL.graph.initializer}
    changed = {name: array + 1 for name, array in found.items()}
    load_weights(module, changed)
    for name, array in weights(module).items():
        np.testing.assert_array_equal(array, changed[name])
        assert not np.array_equal(array, found[name])


def test_some_of_the_weights_load_alone(module: ImportedModule) -> None:
    before = weights(module)
    load_weights(module, {"fc1.bias": np.ones(8, np.float32)})
    after = weights(module)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["fc1.bias"]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"other": np.ones(2)}, "'other' isn't an initializer"),
        ({"fc1.bias": np.ones(7)}, r"'fc1.bias' has shape .*\(7,\)"),
    ],
)
def test_arrays_of_another_model(module: ImportedModule, arrays: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(OnnxpartError, match=reason):
        load_weights(module, arrays)


def test_weights_go_into_the_imported_model_alone(module: ImportedModule) -> None:
    load_weights(module, {"fc1.bias": np.full(8, 3, np.float32)})
    found = {t.name: onnx.numpy_helper.to_array(t) for t in export_weights(module, MODEL).graph.initializer}
    assert found["fc1.bias"].tolist() == [3] * 8
    with pytest.raises(OnnxpartError, match=r"has no initializer 'fc1.weight' of this shape"):
        export_weights(module, regression_mlp(0, inputs=5, hidden=(8,)))


def test_inputs_go_by_position_or_name(module: ImportedModule) -> None:
    x = torch.randn(2, 6)
    (name,) = module.inputs
    assert torch.equal(module(x), module(**{name: x}))
    with pytest.raises(OnnxpartError, match=f"the inputs given by name are other, but the model takes {name}; use"):
        module(other=x)


def test_an_error_of_an_exchange_with_other_processes_isnt_the_models(module: ImportedModule) -> None:
    module.get_submodule("fc1").register_forward_pre_hook(
        lambda *_: dist.barrier()
    )  # as a sharded layer's, which fails
    with pytest.raises(ValueError, match="process group has not been initialized"):
        module(torch.zeros(2, 6))
