"""Names and bytes of an imported module's tensors: each is kept under its initializer's own name."""

import re

import numpy as np
import torch
from torch import nn

_ESCAPED = re.compile(r'[%."\\\x00-\x1f]')
_TAKEN = frozenset(dir(nn.Module())) | {""}


def escape(name: str) -> str:
    """Turn an initializer's name into one that torch accepts for a parameter; `unescape` turns it back.

    A dot (torch's separator), a percent sign, and what can't stand in generated code become `%XX`;
    so does the first character of a name that `nn.Module` uses itself, such as `type`.
    """
    escaped = _ESCAPED.sub(_percent, name)
    return f"%{ord(escaped[0]):02X}{escaped[1:]}" if escaped and escaped in _TAKEN else escaped


def unescape(name: str) -> str:
    """Turn an escaped name back into the initializer's name: `unescape(escape(name)) == name`."""
    return re.sub("%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), name)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array of any dtype and shape into a tensor; bfloat16, which numpy lacks, keeps its bits."""
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor of any dtype, shape and device into an array; bfloat16 becomes float32."""
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"
