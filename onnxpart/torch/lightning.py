"""The parts of a LightningModule's network, and then the network, each trained by a Trainer of Lightning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxpart.torch.exporter.export import Dynamic, Inputs
from onnxpart.torch.handle import Handle, check_merge_at, split_module

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer


class PartitionedTrainer:
    """Trains K parts of a network, merges them into it, and trains it on; `handle` is the way between them.

    :param trainer_factory: makes the Trainer of `part0`, `part1`, ... and `whole`, which it gets the name of.
    :param module: has the trained weights at the end. :param network: the name under which the module has the network.
    :param example_inputs, k, outputs, dynamic: see `split_module`.
    :param merge_at: epochs of the parts; the whole gets the rest of `max_epochs`.
    """

    handle: Handle

    def __init__(
        self,
        trainer_factory: Callable[[str], Trainer],
        module: LightningModule,
        example_inputs: Inputs,
        *,
        network: str = "model",
        k: int = 2,
        merge_at: int,
        outputs: Sequence[str] | None = None,
        dynamic: Dynamic | None = None,
    ) -> None:
        self.trainer_factory, self.module, self.network, self.merge_at = trainer_factory, module, network, merge_at
        self.parts, self.handle = split_module(
            module.get_submodule(network), example_inputs, k, outputs=outputs, dynamic=dynamic, everywhere=True
        )

    def fit(self, *data: Any, **options: Any) -> None:
        """Train the parts one after the other, merge, and train the whole: arguments are those of `Trainer.fit`.

        With `ckpt_path="last"` each network goes on from the last checkpoint in its Trainer's folder, if there is one;
        `ModelCheckpoint(save_last=True)` writes it.

        :raises UsageError: if no epochs are left for the parts or the whole.
        """
        for p, part in enumerate(self.parts):
            module = copy.deepcopy(self.module)
            module.set_submodule(self.network, part)
            self._trainer(f"part{p}", 0).fit(module, *data, **options)
        self.handle.module.load_state_dict(self.handle.merge())
        self._trainer("whole", self.merge_at).fit(self.module, *data, **options)

    def _trainer(self, name: str, since: int) -> Trainer:
        """The Trainer of a part, or of the whole after the merge."""
        trainer = self.trainer_factory(name)
        epochs = trainer.max_epochs or 0
        check_merge_at(self.merge_at, epochs)
        trainer.fit_loop.max_epochs = epochs - since if since else self.merge_at
        return trainer
