"""Recurrent layers that get packed sequences: exporters know these only where what such a layer returns is unpacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


@torch.no_grad()
def packed_layer(module: nn.Module, run: Callable[[], object]) -> str | None:
    """Return the path of a recurrent layer that gets a packed sequence; None if none does, or the module can't run.

    :param run: calls the module.
    """
    found: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        return lambda _, args: found.append(path) if isinstance(args[0], PackedSequence) else None

    layers = [(path, child) for path, child in module.named_modules() if isinstance(child, nn.RNNBase)]
    hooks = [child.register_forward_pre_hook(watch(path)) for path, child in layers]
    try:
        run()
    except Exception:  # whatever a module raises
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
