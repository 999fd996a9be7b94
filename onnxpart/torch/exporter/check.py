"""Whether an exported model computes what the module does, also on inputs that weren't traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from onnxpart.errors import OnnxpartError
from onnxpart.storage.draft import Draft
from onnxpart.torch.tensors import to_array
from onnxpart.verification.runtime import Session, assemble

TOLERANCE = 1e-2
"""Of the largest output: what is computed otherwise is further off, what is rounded otherwise is nearer."""
RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
"""Operators that draw random numbers; Dropout doesn't in evaluation."""
Named = Mapping[str, Tensor]


@torch.no_grad()
def difference(
    draft: Draft, run: Callable[[Named], Sequence[Tensor]], inputs: Named, axes: Sequence[Mapping[int, str]] = ()
) -> str | None:
    """Say how a model differs from the module that it was exported from; None if it doesn't.

    A module that draws random numbers isn't compared, and neither is a model that ONNX Runtime lacks kernels for.

    :param run: the module, in evaluation mode. :param inputs: those of the export, by the names of `run`'s, in order.
    :param axes: for each of these, the axes of any size, by name.
    """
    try:
        session = Session(*assemble(draft.proto, {name: held.array() for name, held in draft.streams.items()}))
    except OnnxpartError:
        return None
    names = [value.name for value in draft.proto.graph.input]
    for title, trial in _trials(inputs, axes):
        try:
            want, again = ([to_array(x) for x in run(trial)] for _ in range(2))
        except Exception:  # whatever a module raises for inputs that aren't its own
            continue
        if not _close(want, again):
            return None
        try:
            feed = {name: to_array(x) for name, x in zip(names, trial.values(), strict=False)}
            got = list(session.run(feed).values())
        except OnnxpartError:
            return f"the exported model doesn't run on {title}"
        if len(got) == len(want) and not _close(got, want):
            return f"the exported model gives something other than the module on {title}{_noise(draft)}"
    return None


def _noise(draft: Draft) -> str:
    """Name a node that draws random numbers in evaluation, too; empty if there is none."""
    drawing = [node for node in draft.proto.graph.node if node.op_type in RANDOM]
    return f": {drawing[0].op_type} {drawing[0].name!r} is random in evaluation, too, so remove it" if drawing else ""


def _trials(inputs: Named, axes: Sequence[Mapping[int, str]]) -> Iterator[tuple[str, Named]]:
    """The inputs of the export, and others of the same kind, each set with its description."""
    yield "the example inputs", inputs
    if any(x.is_floating_point() for x in inputs.values()):
        turned = {name: -x if x.is_floating_point() else x for name, x in inputs.items()}
        yield "the example inputs with the opposite sign", turned
    if len({len(x) if x.ndim else 0 for x in inputs.values()}) == 1:
        yield "a larger batch", {name: torch.cat([x, x[:1]]) for name, x in inputs.items()}
    for size in sorted({found[axis] for found in axes for axis in found if axis}):
        longer = dict(inputs)
        for (name, x), found in zip(inputs.items(), axes, strict=True):
            for axis in (axis for axis in found if found[axis] == size):
                x = torch.cat([x, x.narrow(axis, 0, 1)], axis)
            longer[name] = x
        yield f"a larger {size!r}", longer


def _close(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether floating-point results are equal but for rounding, and all others have the same shape."""
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape:
            return False
        if b.dtype.kind == "f":
            finite = np.abs(b[np.isfinite(b)])
            if not np.allclose(a, b, TOLERANCE, TOLERANCE * finite.max(initial=0), equal_nan=True):
                return False
    return True
