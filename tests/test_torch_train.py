"""Training: it learns, it can be repeated, and its momentum goes by the initializers' names."""

import numpy as np
import pytest
import torch
from onnx import ModelProto

import onnxpart
from models import BUILDERS, lenet
from onnxpart.errors import OnnxpartError
from onnxpart.torch import import_onnx, load_weights, weights
from onnxpart.torch.module import parameters
from onnxpart.torch.train import Data, Epoch, evaluate, fit

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
SETTINGS = {"lr": 0.05, "momentum": 0.9, "batch_size": 10, "seed": 3}


def stripes() -> Data:
    """Images of class c have a bright row 2 c."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 10
    x = torch.rand(80, 1, 28, 28, generator=generator) * 0.1
    x[torch.arange(80), 0, 2 * y] = 1.0
    return Data(x[:60], y[:60], x[60:], y[60:])


def test_training_learns_and_repeats() -> None:
    data = stripes()
    epochs: list[Epoch] = []
    module, other = import_onnx(lenet(0)), import_onnx(lenet(0))
    loss, _ = evaluate(module, data)
    result = fit(module, data, epochs=8, on_epoch=epochs.append, **SETTINGS)  # type: ignore[arg-type]
    assert result.curve == epochs
    assert len(epochs) == 8
    assert result.curve[-1].loss < loss / 2
    assert result.seconds == result.curve[-1].seconds > result.curve[0].seconds > 0
    assert not module.training
    assert result.momenta.keys() == parameters(module).keys()

    again = fit(other, data, epochs=8, **SETTINGS)  # type: ignore[arg-type]
    assert [epoch.loss for epoch in again.curve] == [epoch.loss for epoch in result.curve]


def test_momentum_goes_on_from_a_given_state() -> None:
    data = stripes()
    module = import_onnx(lenet(0))
    first = fit(module, data, epochs=1, **SETTINGS)  # type: ignore[arg-type]
    idle = fit(module, data, epochs=0, optimizer_state=first.momenta, **SETTINGS)  # type: ignore[arg-type]
    assert idle.curve == []
    assert idle.seconds == 0
    for name, momentum in first.momenta.items():
        np.testing.assert_array_equal(idle.momenta[name], momentum)

    before = weights(module)
    still = dict(SETTINGS, batch_size=60, lr=1.0)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    one = next(iter(module.parameters())).requires_grad_()
    name = next(iter(first.momenta))
    fit(module, data, epochs=1, optimizer_state={name: first.momenta[name]}, **still)  # type: ignore[arg-type]
    assert one.grad is not None
    expected = before[name] - (0.9 * first.momenta[name] + one.grad.numpy())
    np.testing.assert_allclose(weights(module)[name], expected, rtol=1e-5, atol=1e-6)

    with pytest.raises(OnnxpartError, match="'nothing' fits no parameter"):
        fit(module, data, epochs=1, optimizer_state={"nothing": np.zeros(1)}, **SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [lenet(0), BUILDERS["batchnorm"]()], ids=["lenet", "batchnorm"])
def test_parts_are_trained_and_merge_with_their_momenta(model: ModelProto) -> None:
    split = onnxpart.split(model, 2)
    parts = [import_onnx(part) for part in split.parts]
    merged = onnxpart.merge(split.plan, [weights(part) for part in parts])
    whole = import_onnx(split.whole)
    load_weights(whole, merged)
    x = torch.rand(3, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    with torch.no_grad():
        mean = torch.stack([part.eval()(x) for part in parts]).mean(0)
        torch.testing.assert_close(whole.eval()(x), mean, rtol=1e-4, atol=1e-5)
    momenta = [{name: np.ones_like(p.detach().numpy()) for name, p in parameters(part).items()} for part in parts]
    result = fit(whole, stripes(), epochs=0, optimizer_state=onnxpart.merge(split.plan, momenta), **SETTINGS)  # type: ignore[arg-type]
    assert result.momenta.keys() == parameters(whole).keys()
