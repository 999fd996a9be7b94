"""Gradient descent with momentum, whose state goes by the initializers' names as the weights do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.errors import OnnxpartError
from onnxpart.torch.module import ImportedModule, parameters
from onnxpart.torch.store import to_array, to_tensor

_EVALUATED_AT_ONCE = 1000


@dataclass(frozen=True)
class Data:
    """Samples to learn and to test: inputs float [N, ...] and classes int64 [N], on the module's device."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Epoch:
    """After an epoch: seconds of training so far, mean test loss in nats, and test error as share of 1."""

    seconds: float
    loss: float
    error: float


@dataclass(frozen=True)
class TrainResult:
    """One `Epoch` per epoch, and the momentum of every trained initializer by its name."""

    curve: list[Epoch]
    momenta: dict[str, np.ndarray]

    @property
    def seconds(self) -> float:
        """Seconds spent in training, evaluation excluded."""
        return self.curve[-1].seconds if self.curve else 0.0


def fit(
    module: ImportedModule,
    data: Data,
    *,
    epochs: int,
    lr: float,
    momentum: float,
    batch_size: int,
    seed: int,
    optimizer_state: Mapping[str, np.ndarray] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train a classifier that yields logits, in place; leave it in evaluation mode.

    The seed orders the samples and drives dropout: it sets torch's global generator. `optimizer_state` is the
    momentum to go on from, of an earlier result or merged of several. Seconds count training alone.

    :raises OnnxpartError: if a momentum has no parameter, or another shape.
    """
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum)
    _set_momenta(module, optimizer, optimizer_state or {})
    torch.manual_seed(seed)
    curve, seconds = [], 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        _train_epoch(module, data, optimizer, batch_size)
        seconds += time.perf_counter() - start
        curve.append(Epoch(seconds, *evaluate(module, data)))
        if on_epoch:
            on_epoch(curve[-1])
    return TrainResult(curve, _momenta(module, optimizer))


def evaluate(module: ImportedModule, data: Data) -> tuple[float, float]:
    """Return the mean loss in nats and the share of wrong classes over the test samples."""
    logits = predict(module, data.test_x)
    wrong = (logits.argmax(1) != data.test_y).float().mean()
    return F.cross_entropy(logits, data.test_y).item(), wrong.item()


@torch.no_grad()
def predict(module: ImportedModule, x: Tensor) -> Tensor:
    """Return the logits [N, classes] of samples [N, ...]; the module is left in evaluation mode."""
    module.eval()
    return torch.cat([_logits(module, batch) for batch in torch.split(x, _EVALUATED_AT_ONCE)])


def _train_epoch(module: ImportedModule, data: Data, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
    module.train()
    order = torch.randperm(len(data.train_x)).to(data.train_x.device)
    for batch in torch.split(order, batch_size):
        optimizer.zero_grad()
        F.cross_entropy(_logits(module, data.train_x[batch]), data.train_y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _logits(module: ImportedModule, x: Tensor) -> Tensor:
    result = module(x)
    if not isinstance(result, Tensor):
        raise OnnxpartError("the model has several outputs; name the one to train, and remove the others.")
    return result


def _set_momenta(module: ImportedModule, optimizer: torch.optim.Optimizer, momenta: Mapping[str, np.ndarray]) -> None:
    named = parameters(module)
    for name, array in momenta.items():
        if name not in named or tuple(array.shape) != tuple(named[name].shape):
            raise OnnxpartError(f"the momentum {name!r} fits no parameter; use that of the same model.")
        parameter = named[name]
        buffer = to_tensor(array).to(parameter)
        optimizer.state[parameter]["momentum_buffer"] = buffer


def _momenta(module: ImportedModule, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    states = {name: optimizer.state[parameter] for name, parameter in parameters(module).items()}
    buffers = {name: state.get("momentum_buffer") for name, state in states.items()}
    return {name: to_array(buffer) for name, buffer in buffers.items() if buffer is not None}
