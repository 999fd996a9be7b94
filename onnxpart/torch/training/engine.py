"""What every engine does: forward, backward, judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.tensors import sharded_like
from onnxpart.torch.training.checkpoint import PartState
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.metrics import Meter
from onnxpart.torch.training.settings import Settings

_CODES: WeakKeyDictionary[Callable[..., Any], CodeType] = WeakKeyDictionary()


class Engine(Protocol):
    """Parts side by side on a device. `busy`: the numbers of the parts that it is working on."""

    kind: Literal["series", "fused"]
    job: Job
    device: torch.device
    busy: tuple[int, ...]

    def step(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Let each part take one step, on the mean loss over some batches; return the losses [part]."""
        ...

    def evaluate(self, batch: Batch, meters: Sequence[Meter] = ()) -> Tensor:
        """Return loss and metric over a batch [2, part], as in inference; the metric is 0 if there is none.

        :param meters: one for each part, or none; each also gets the batch.
        """
        ...

    def together(self, *asked: bool) -> list[bool]:
        """Whether any of the processes that train these parts together asks for each of some things; all must call."""
        ...

    def part(self, i: int) -> PartState:
        """Return the state of the i-th part; its tensors change with the next step.

        Of a sharded part the whole is gathered: all processes that train it must call together.
        """
        ...

    def load(self, i: int, state: PartState) -> None:
        """Put the i-th part into a state."""
        ...

    def finish(self) -> None:
        """Leave the results in the modules, which are then in evaluation mode."""
        ...


def device_of(name: str) -> torch.device:
    """Return the device of a name: auto (a CUDA GPU if there is one, otherwise the CPU), cpu, cuda, cuda:i or mps.

    :raises UsageError: when there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} isn't known; choose auto, cpu, cuda, cuda:i or mps.") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} isn't supported; choose auto, cpu, cuda, cuda:i or mps.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r} isn't available ({torch.cuda.device_count()} GPUs found); use --device cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {name!r} isn't available (only Apple's chips have it); use --device cpu.")
    return device


def output_of(result: object) -> Tensor:
    """Return a module's only output.

    :raises OnnxpartError: when it has several.
    """
    if not isinstance(result, Tensor):
        raise OnnxpartError("the model has several outputs; cut it down to the one to train (see onnxpart.cut).")
    return result


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module that has the same keys.

    `load_state_dict` would ask for the count of batches that a norm from an ONNX file doesn't have.
    """
    own = module.state_dict()
    for key, tensor in tensors.items():
        own[key].copy_(sharded_like(own[key], tensor))


def has_images(modules: Sequence[nn.Module]) -> bool:
    """Return whether there is a weight of the form of a 2-d convolution's."""
    return any(p.dim() == 4 for module in modules for p in module.parameters())


def moved(batch: Batch, device: torch.device, images: bool) -> Batch:
    """Return a batch on a device, on request with the channels of images last in memory.

    A GPU gets it from pinned memory: this process goes on at once, and the copy follows the steps that were launched.
    """
    *inputs, target = (_pinned(x, device).to(device, non_blocking=True) for x in (*batch[0], batch[1]))
    if images:
        inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    return tuple(inputs), target


def _pinned(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x


def compiled(call: Callable[..., Any], settings: Settings, device: torch.device) -> Callable[..., Any]:
    """Return a call, on request compiled; on a GPU as CUDA graphs, since small parts would wait for launches.

    Steps of several batches use no CUDA graphs: torch can't add up gradients over them
    (https://github.com/pytorch/pytorch/issues/169545).
    """
    if not settings.compile:
        return call
    graphs = device.type == "cuda" and settings.accumulate == 1
    return torch.compile(_apart(call), mode="reduce-overhead" if graphs else None)


def _apart(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what a call does, and has code of its own, the same each time.

    Torch compiles a piece of code in eight forms at most, and leaves it as it is after that. Parts have the code of
    their `forward` in common, and each needs a form for each size of a batch.
    """

    def apart(*inputs: Any) -> Any:
        return call(*inputs)

    code = _CODES.setdefault(call, apart.__code__.replace())
    return FunctionType(code, globals(), apart.__name__, None, apart.__closure__)


def begin_step(settings: Settings, device: torch.device) -> None:
    """Allow CUDA graphs to overwrite their results of earlier steps."""
    if settings.compile and device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


@contextmanager
def using(device: torch.device) -> Iterator[None]:
    """Let a GPU be the current one, and multiply matrices of float32 in TF32, as torch does for convolutions.

    Where TF32 is on already nothing is set: torch refuses to mix its two ways of saying so.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        if getattr(torch.backends.cuda.matmul, "fp32_precision", "") == "tf32":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def called(call: Callable[..., object], inputs: tuple[Tensor, ...], device: torch.device, settings: Settings) -> Tensor:
    """Return a network's only output. In mixed precision operators compute in half, and the output is float32.

    :raises OnnxpartError: when it has several.
    """
    with torch.autocast(device.type, getattr(torch, settings.amp_dtype), enabled=settings.amp):
        output = output_of(call(*inputs))
    return output.float() if settings.amp else output


def judged(job: Job, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and metric of an output; the metric is 0 if there is none, or if a meter computes it."""
    loss, metric = job.loss(output, target), job.metric
    return loss, loss.new_zeros(()) if metric is None or isinstance(metric, Meter) else metric(output, target).to(loss)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let an optimizer take its next step at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
