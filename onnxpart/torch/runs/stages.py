"""The method in memory: stages of networks that train side by side, each made from those of the stage before.

Parts merge into the whole (section 2.2) or into fewer and larger parts (section 4), the whole is divided anew
(independent subnet training, Yuan et al., VLDB 2022), or copies of one part fill it (Net2WiderNet). Networks with few
of their blocks become deep ones (gradual stacking).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import onnx
import torch
from torch import Tensor, nn

from onnxpart.emission.split import Split
from onnxpart.ir.arrays import array_of
from onnxpart.merging.cross_weights import ZERO, Edges, fill_edges
from onnxpart.merging.deepen import Growth, deepen, deepen_state
from onnxpart.merging.hierarchy import merge_states_to, merge_to
from onnxpart.merging.merge import Into, merge, unmerge
from onnxpart.merging.net2wider import widen
from onnxpart.merging.optimizer_state import OptimizerState, merge_states, unmerge_states
from onnxpart.storage.rows import Array, stream
from onnxpart.torch.importer.import_onnx import import_onnx
from onnxpart.torch.importer.module import ImportedModule, load_weights, weights
from onnxpart.torch.training.engine import output_of
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.job import Result
from onnxpart.torch.training.settings import Settings

Build: TypeAlias = Callable[[onnx.ModelProto], ImportedModule]
"""Model -> the module to train; `import_onnx`, unless something is cut off the model first."""


@dataclass(frozen=True)
class Networks:
    """Networks that train side by side: the parts of a split, or the whole that they merge into.

    `states`: of their optimizers; None before any training. `curves`: for each network the epochs that it trained.
    `gpu_memory`: the most bytes that they took on a GPU (see `Result`).
    `whole`: the weights that the parts are slices of, if they aren't the network's.
    """

    split: Split
    modules: Sequence[ImportedModule]
    states: Sequence[OptimizerState] | None = None
    curves: Sequence[Sequence[Epoch]] = ()
    whole: Mapping[str, Array] | None = None
    gpu_memory: int | None = None

    @property
    def weights(self) -> list[dict[str, Array]]:
        """Initializer name -> array, of each network."""
        return [weights(module) for module in self.modules]

    @property
    def seconds(self) -> float:
        """How long they trained."""
        return max((curve[-1].seconds for curve in self.curves if curve), default=0.0)


@dataclass(frozen=True)
class Stage:
    """Some epochs of training, and how its networks are made from those of the stage before.

    A stage without epochs trains nothing: it shows its networks as they begin. `name`: for the caller.
    """

    name: str
    epochs: range
    settings: Settings
    begin: Callable[[Networks], Networks] = lambda before: before


Train: TypeAlias = Callable[[Stage, Networks], Sequence[Result]]
"""Trains the networks of a stage, in place, from their states on, for its epochs; a result for each network."""


def run_stages(first: Networks, stages: Sequence[Stage], train: Train) -> Iterator[Networks]:
    """Train stage by stage.

    :param first: the networks that the first stage begins with.
    :returns: the networks of each stage when it ends. The next stage trains the same modules on, or makes others.
    """
    networks = first
    for stage in stages:
        networks = stage.begin(networks)
        if stage.epochs:
            results = train(stage, networks)
            before = networks.curves or [()] * len(results)
            curves = [[*curve, *result.curve] for curve, result in zip(before, results, strict=True)]
            taken = [networks.gpu_memory, *(result.gpu_memory for result in results)]
            most = max((memory for memory in taken if memory is not None), default=None)
            states = [result.state for result in results]
            networks = replace(networks, states=states, curves=curves, gpu_memory=most)
        yield networks


class Ensemble(nn.Module):
    """Computes the mean of the parts' outputs. The whole will compute the same if the merge is exact."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the mean of the parts' outputs."""
        return torch.stack([output_of(part(*inputs)) for part in self.parts]).mean(0)


def parts_of(split: Split, build: Build = import_onnx) -> Networks:
    """Return the parts of a split, untrained."""
    return Networks(split, [build(part) for part in split.parts])


def divide_anew(before: Networks, parts: Networks, edges: Edges = ZERO) -> Networks:
    """Let untrained parts go on from the merged weights of other parts of the same network; the curves go on, too.

    The others are merged into the original graph, and the new split slices its weights and optimizer states. If the
    others were not trained, the new parts stay as they are.

    :param parts: as many as before. :param edges: which cross weights are kept; the others are zero.
    """
    if before.states is None:
        return parts
    whole = _merged(before, replace(edges, spread=0.0), "original")
    for module, arrays in zip(parts.modules, unmerge(parts.split.plan, whole), strict=True):
        load_weights(module, arrays)
    state = merge_states(before.split.plan, before.states, into="original")
    states, memory = unmerge_states(parts.split.plan, state), before.gpu_memory
    return replace(parts, states=states, curves=before.curves, whole=whole, gpu_memory=memory)


def _merged(parts: Networks, edges: Edges, into: Into) -> dict[str, Array]:
    """The merged weights of parts, with cross weights as `edges` says; those of frozen parameters are kept."""
    plan, model = parts.split.plan, parts.split.analysis.model
    edges = edges.keeping(model.frozen)
    before = {name: array_of(model, name) for name in edges.kept(plan)} if parts.whole is None else parts.whole
    merged = {name: stream(array) for name, array in merge(plan, parts.weights, into=into).items()}
    return {name: rows.array() for name, rows in fill_edges(plan, merged, before, edges).items()}


def merge_parts(parts: Networks, edges: Edges = ZERO, build: Build = import_onnx) -> Networks:
    """Merge weights and optimizer states of parts into the duplicated whole, Eq. (1) of section 2.2.

    :param edges: how cross weights start; those of frozen parameters are kept.
    """
    states = None if parts.states is None else [merge_states(parts.split.plan, parts.states)]
    return _whole(parts.split, _merged(parts, edges, "duplicated"), states, build)


def merge_to_parts(parts: Networks, k: int, build: Build = import_onnx) -> Networks:
    """Merge weights and optimizer states of parts into `k` larger ones (see `hierarchy.merge_to`)."""
    larger = merge_to(parts.split, parts.weights, k)
    states = None if parts.states is None else merge_states_to(parts.split.plan, larger.plan, parts.states)
    return Networks(larger, [build(part) for part in larger.parts], states)


def widen_part(parts: Networks, *, seed: int = 0, build: Build = import_onnx) -> Networks:
    """Fill the duplicated whole with copies of the first part (see `net2wider.widen`); its optimizer starts anew."""
    split = parts.split
    return _whole(split, widen(split.analysis, split.plan, parts.weights[0], seed=seed), None, build)


def deepen_networks(
    before: Networks, models: Sequence[onnx.ModelProto], grown: Sequence[Growth], build: Build = import_onnx
) -> Networks:
    """Stack the blocks of each network: weights and optimizer states (see `merging.deepen`); the curves go on.

    :param models: the deep networks. :param grown: how each of them starts.
    """
    modules = [build(model) for model in models]
    for module, each, arrays in zip(modules, grown, before.weights, strict=True):
        load_weights(module, deepen(each, arrays))
    states = None if before.states is None else list(map(deepen_state, grown, before.states))
    return replace(before, modules=modules, states=states)


def _whole(split: Split, merged: dict[str, Array], states: list[OptimizerState] | None, build: Build) -> Networks:
    module = build(split.whole)
    load_weights(module, merged)
    return Networks(split, [module], states)
