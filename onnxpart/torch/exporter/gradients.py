"""Whether gradients through an exported model are the module's: a graph silently loses what it can't hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError
from onnxpart.storage.draft import Draft
from onnxpart.torch.importer.import_onnx import imported
from onnxpart.torch.importer.module import ImportedModule, parameters
from onnxpart.torch.interface import results

TOLERANCE, ROUNDINGS = 2e-2, 16
"""Of a parameter's gradient, by its norm: the least, and steps between numbers of its type, as bfloat16 needs them."""
FLAT = 1e-3
"""Gradients smaller than this share of the largest are measured by that share: rounding is no deviation."""
CAUSES = "detach(), torch.no_grad(), a straight-through estimator or an autograd.Function of your own"
Named = Mapping[str, Tensor]


def gradient_difference(
    draft: Draft, module: nn.Module, run: Callable[[Named], Sequence[Tensor]], inputs: Named
) -> str | None:
    """Name a parameter whose gradient through the graph differs from that in the module; None if there is none.

    Gradients are compared in evaluation mode, and also in training mode if the module then gives the same twice.
    Modules that pass on no gradients, and graphs that can't be imported, aren't compared.

    :param run: the module. :param inputs: those of the export, by the names of `run`'s, in order.
    """
    try:
        graph = imported(draft, ())
    except OnnxpartError:
        return None
    own = dict(module.named_parameters())
    for name, parameter in parameters(graph).items():
        if name in own:  # one copy in memory will do
            parameter.data = own[name].data
    for training in (False, True):
        module.train(training)
        graph.train(training)
        problem = _compared(module, graph, run, inputs)
        if problem is not None:
            return problem
    return None


def _compared(
    module: nn.Module, graph: ImportedModule, run: Callable[[Named], Sequence[Tensor]], inputs: Named
) -> str | None:
    """Name a gradient that differs in the present modes; None if there is none, or if the module's differ between runs.

    A module that returns more or fewer tensors in these modes than the graph isn't compared in them.
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    held = parameters(graph)
    names = sorted(own.keys() & held.keys())
    want, again = (_gradients(lambda: run(inputs), [own[name] for name in names]) for _ in range(2))
    if not want or not again or any(not _close(a, b, 0.0) for a, b in zip(want, again, strict=True)):
        return None
    del again  # which is as large as the module
    feed = [value.detach() for value in inputs.values()]
    with torch.no_grad():
        if len(list(results(graph(*feed)))) != len(run(inputs)):
            return None
    got = _gradients(lambda: graph(*feed), [held[name] for name in names])
    if not got:
        return f"a gradient passes through the module but not through the graph: {CAUSES} is lost"
    largest = max((float(g.norm()) for g in want), default=0.0)
    for name, a, b in zip(names, got, want, strict=True):
        if not _close(a.to(b), b, FLAT * largest):
            kind = "none reaches it" if not b.any() else "it differs"
            return (
                f"the gradient of {name!r} through the graph isn't that in the module ({kind} there): a graph can't "
                f"hold {CAUSES}"
            )
    return None


def _close(a: Tensor, b: Tensor, floor: float) -> bool:
    """Whether two gradients are equal but for rounding."""
    if torch.equal(a.isnan(), b.isnan()):
        a, b = a.nan_to_num(), b.nan_to_num()
    scale = max(float(a.norm()), float(b.norm()), floor)
    return bool((a - b).norm() <= max(TOLERANCE, ROUNDINGS * torch.finfo(b.dtype).eps) * scale)


def _gradients(run: Callable[[], object], wanted: list[Tensor]) -> list[Tensor]:
    """The gradients of a fixed random sum of the results; empty if nothing passes one on."""
    with torch.enable_grad():
        found = [x for _, x in results(run()) if x.requires_grad and x.is_floating_point()]
        if not found or not wanted:
            return []
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x) for x in found]
        total = torch.stack([(x * w).sum().float() for x, w in zip(found, weights, strict=True)]).sum()
        gradients: Sequence[Tensor | None] = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(wanted, gradients, strict=True)]
