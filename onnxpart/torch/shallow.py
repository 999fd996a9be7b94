"""A PyTorch module -> a shallow one with few of its blocks, and its trained weights back into the module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onnxpart.emission.shallow import shallow
from onnxpart.merging.deepen import Growth, New, deepen, deepen_state, growth
from onnxpart.merging.optimizer_state import OptimizerState
from onnxpart.torch.exporter.export import Dynamic, Inputs
from onnxpart.torch.handle import Handle, split_module
from onnxpart.torch.importer.module import ImportedModule, parameters, weights
from onnxpart.torch.merge_optimizers import merge_optimizers


def shallow_module(
    module: nn.Module,
    example_inputs: Inputs,
    blocks: int,
    *,
    new: New = "copies",
    exporter: str = "auto",
    dynamic: Dynamic | None = None,
) -> tuple[ImportedModule, ShallowHandle]:
    """Leave out repeated blocks of a module, with a handle that puts them back.

    :param module: any module that torch can export; it is left as it is. :param example_inputs, exporter, dynamic: see
        `export`.
    :param blocks: how many blocks of each stack stay, the first ones (see `emission.shallow`).
    :param new: how the others start when the module is deep again: as copies of trained ones, or adding nothing
        (`zero`).
    :returns: the shallow module, which is called and trained like the module, and may be split; and the handle that
        stacks its blocks.
    :raises UsageError: for a number of blocks that makes no sense. :raises PartitionError: when nothing repeats.
    :raises MergeError: when new blocks can't start like that.
    :raises OnnxpartError: when the module can't be exported, or uses what the importer lacks.
    """
    _, whole = split_module(module, example_inputs, 1, exporter=exporter, dynamic=dynamic)
    made = shallow(whole.split.analysis.model, blocks)
    grown = growth(whole.split.analysis.model, made, new)
    network = whole.network(made)
    return network, ShallowHandle(network, whole, grown)


@dataclass(frozen=True, repr=False)
class ShallowHandle:
    """The way from a shallow module back into the deep one.

    `whole`: the handle of the deep module as one part. `grown`: how each of its initializers starts.
    """

    shallow: ImportedModule
    whole: Handle
    grown: Growth

    def __repr__(self) -> str:
        """The module and its remaining blocks, on one line."""
        module = self.whole.module
        sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (self.shallow, module)]
        return f"ShallowHandle({type(module).__name__}: {sizes[0]:,} parameters, of {sizes[1]:,})"

    def deepen(self) -> dict[str, Tensor]:
        """Stack the shallow module's blocks as they are now.

        :returns: a `state_dict` that the module loads; what the graph doesn't use is as in the module.
        """
        return self.whole.state_dict(deepen(self.grown, weights(self.shallow)))

    def deepen_optimizer(self, optimizer: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
        """Copy the state of the shallow module's optimizer into that of one over the module's parameters.

        Copies of a block have its momenta and step counts; where new blocks add nothing, momenta start at zero.

        :param optimizer: of any class (see `Handle.merge_optimizer`). :param target: one of the same class.
        :raises UsageError: for another class or other settings.
        """
        held = parameters(self.shallow)
        held |= {name: held[old] for name, old in self.grown.sources.items() if old in held}

        def deepened(states: Sequence[OptimizerState], *, squared: Collection[str]) -> OptimizerState:
            return deepen_state(self.grown, states[0], squared=squared)

        merge_optimizers(deepened, [optimizer], [held], target, self.whole.parameters)
