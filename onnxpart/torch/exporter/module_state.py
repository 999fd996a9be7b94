"""The state of an exported module: it must have values, is left as it was, and `forward` may only read it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules import transformer
from torch.nn.parameter import is_lazy

from onnxpart.errors import OnnxpartError
from onnxpart.storage.rows import Rows
from onnxpart.torch.tensors import TensorRows, is_copied

if TYPE_CHECKING:
    from onnxscript import ir

_QUANTIZED = re.compile(r"torch\.ao\.(nn\.(intrinsic\.)?(quantized|qat)|quantization\.(observer|fake_quantize))\b")
"""Where torch has the layers of quantized modules, and of those that are made ready for it."""


class UnfitError(OnnxpartError):
    """No exporter can write this module as a graph to train from."""


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the original of a compiled module; any other module as it is."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original


def values_of(module: nn.Module, stored: Mapping[str, Rows]) -> dict[str, Rows]:
    """Return the values of a module's parameters and buffers by all their names, without copying them.

    :param stored: those of a module on the meta device, by one of their names.
    :raises OnnxpartError: for a quantized layer; for a tensor without values, with values of another shape or type, or
        that is a shard.
    """
    for path, child in module.named_modules():
        if _QUANTIZED.match(type(child).__module__):
            raise OnnxpartError(
                f"{type(module).__name__} can't be exported: {path!r} is quantized, or made ready for it; split the "
                "module before that, and quantize what the parts merge to."
            )
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    found: dict[int, Rows] = {id(tensor): stored[name] for name, tensor in tensors if tensor.is_meta and name in stored}
    for name, tensor in tensors:
        rows = found.setdefault(id(tensor), TensorRows(tensor))
        if is_lazy(tensor):
            problem = "has no shape yet; run the module once on a batch"
        elif tensor.is_meta and isinstance(rows, TensorRows):
            problem = "is on the meta device, where it has no values; load the weights first, or name their files"
        elif hasattr(tensor, "device_mesh") or is_copied(tensor):
            problem = "is sharded, and its shards aren't divided; split the module before it is sharded, then the parts"
        elif tensor.is_meta and (rows.shape, rows.dtype) != (tuple(tensor.shape), TensorRows(tensor).dtype):
            problem = (
                f"is {rows.dtype} {list(rows.shape)} in the file of its weights and {TensorRows(tensor).dtype} "
                f"{list(tensor.shape)} in the module; name the file of this module, or make the module of that type"
            )
        else:
            continue
        raise OnnxpartError(f"{type(module).__name__} can't be exported: {name!r} {problem}.")
    return {name: found[id(tensor)] for name, tensor in tensors}


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the module's modes, its buffers and torch's random state after the context.

    Within it torch's encoder layers compute in evaluation as in training: their fast path gives 0 for what is masked.
    They don't look for themselves whether a mask is causal, which is a branch on its values.
    """
    modes = [(child, child.training) for child in module.modules()]
    buffers = [
        (child, name, buffer, buffer.detach().clone())
        for child in module.modules()
        for name, buffer in child.named_buffers(recurse=False)
    ]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    fast, detect = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask  # noqa: SLF001
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True  # noqa: SLF001
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        transformer._detect_is_causal_mask = detect  # noqa: SLF001
        for child, mode in modes:
            child.training = mode
        with torch.no_grad():
            for child, name, buffer, value in buffers:
                buffer.copy_(value)
                if getattr(child, name) is not buffer:
                    setattr(child, name, buffer)


def check_buffers(module: nn.Module, run: Callable[[], object], nodes: Iterable[ir.Node]) -> None:
    """Check that a graph reads nothing that the module's `forward` writes, except a batch norm's statistics.

    :param run: calls the module. :param nodes: those of the graph, in which tensors have the module's names.
    :raises UnfitError: if it does.
    """
    with unchanged(module), torch.no_grad():
        module.train()
        before = {name: (tensor, _version(tensor)) for name, tensor in _tensors(module)}
        run()
        after = _tensors(module)
        written = {n for n, t in after if n not in before or t is not before[n][0] or _version(t) != before[n][1]}
    buffers = dict(module.named_buffers())
    for node in nodes:
        for value in node.inputs[: 3 if node.op_type == "BatchNormalization" else None]:
            if value is not None and value.name in written:
                what = "buffer" if value.name in buffers else "parameter"
                raise UnfitError(
                    f"forward writes the {what} {value.name!r} and computes with it, and a graph writes nothing: parts "
                    "would compute with its first value for ever; split the module without what writes it, such as a "
                    "parametrization (torch.nn.utils.parametrize.remove_parametrizations)"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _version(tensor: torch.Tensor) -> int:
    """How many times a tensor was written in place."""
    return tensor._version  # noqa: SLF001
