"""The tree of modules that holds a graph's tensors, as the tensors' dotted names make it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch.tensors import escape

_PATH = re.compile(r"\w+(\.\w+)+")
"""The form of PyTorch's name of a tensor in a submodule."""


def _hooked(kind: str) -> Callable[..., Any]:
    """A container's method that registers a hook, if it is DeepSpeed's: that gathers what a graph reads itself."""

    def register(self: Container, hook: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return getattr(nn.Module, kind)(self, hook, *args, **named) if _is_deepspeeds(hook) else self.forward()

    return register


def _is_deepspeeds(hook: Callable[..., Any]) -> bool:
    """Whether a function is DeepSpeed's."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "deepspeed"


class Container(nn.Module):
    """Holds layers and tensors that a graph reads; the graph calls its layers, not the container."""

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Refuse to be called.

        :raises OnnxpartError: always.
        """
        raise OnnxpartError(
            "this module only holds layers and tensors, which the graph of the imported module uses itself; call the "
            "imported module, or put a hook on one of the layers."
        )

    register_backward_hook = _hooked("register_backward_hook")
    register_forward_hook = _hooked("register_forward_hook")
    register_forward_pre_hook = _hooked("register_forward_pre_hook")
    register_full_backward_hook = _hooked("register_full_backward_hook")
    register_full_backward_pre_hook = _hooked("register_full_backward_pre_hook")


def keys(names: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Return the key of each tensor in a `state_dict`, by name: mostly the name itself.

    A dot separates modules if the name is a path, and nothing else has the name of a module on it. Other dots are
    escaped, and so is everything that torch doesn't accept (see `escape`).
    :param taken: names that the outermost module uses for something else.
    """
    result = {}
    for name in names:
        segments = name.split(".")
        beneath = (".".join(segments[:i]) for i in range(1, len(segments)))
        if not _PATH.fullmatch(name) or any(prefix in names for prefix in beneath):
            segments = [name]
        result[name] = ".".join([escape(segments[0], taken), *map(escape, segments[1:])])
    return result


def plant(root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a module under their keys, and the containers that the keys name around them."""
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        holder = root
        for segment in path.split(".") if path else ():
            if segment not in holder._modules:  # noqa: SLF001
                holder.add_module(segment, Container())
            holder = holder.get_submodule(segment)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(name, tensor)
        else:
            holder.register_buffer(name, tensor)
    for module in reversed(list(root.modules())):  # the inner ones first
        for segment, child in list(module.named_children()):
            if type(child) is Container and _is_list(child):
                numbered = sorted(child.named_children(), key=lambda pair: int(pair[0]))
                setattr(module, segment, nn.ModuleList(inner for _, inner in numbered))


def _is_list(container: nn.Module) -> bool:
    """Whether a container has only modules, numbered from 0."""
    found = {name for name, _ in container.named_children()}
    tensors = [*container.parameters(recurse=False), *container.buffers(recurse=False)]
    return bool(found) and not tensors and found == {str(i) for i in range(len(found))}
