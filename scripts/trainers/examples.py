"""A network in two parts, by the trainers that people have; each in under 20 lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from onnxpart.torch import lightning, split_module
from onnxpart.torch.hf import PartitionedTrainer


def by_transformers(model: nn.Module, data: Sequence[dict[str, Tensor]], folder: str, **options: Any) -> None:
    """Two epochs of the parts and one of the whole, by the Trainer of transformers."""
    import transformers

    args = transformers.TrainingArguments(
        folder, num_train_epochs=3, learning_rate=1e-3, lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True,
        **{"report_to": [], **options},
    )  # fmt: skip
    trainer = PartitionedTrainer(
        lambda module: transformers.Trainer(module, args, train_dataset=data), model, k=2, merge_at=2
    )
    trainer.train(resume_from_checkpoint=True)


class Classifier(LightningModule):
    """What one writes for Lightning."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def by_lightning(model: nn.Module, loader: DataLoader[Any], folder: str, **options: Any) -> None:
    """Two epochs of the parts and one of the whole, by the Trainer of Lightning."""
    trainer = lightning.PartitionedTrainer(
        lambda name: Trainer(max_epochs=3, default_root_dir=f"{folder}/{name}", accelerator="cpu", **options),
        Classifier(model), next(iter(loader))[0], k=2, merge_at=2,
    )  # fmt: skip
    trainer.fit(loader)


def by_accelerate(model: nn.Module, loader: DataLoader[Any], **options: Any) -> None:
    """Two epochs of the parts and one of the whole, which goes on with their optimizers' state, by accelerate."""
    accelerator = Accelerator(cpu=True, **options)

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        for x, y in (batch for _ in range(epochs) for batch in batches):
            with accelerator.accumulate(module):
                accelerator.backward(F.cross_entropy(module(x), y))
                optimizer.step()
                optimizer.zero_grad()

    parts, handle = split_module(model, next(iter(loader))[0], k=2)
    batches = accelerator.prepare(loader)
    prepared = [accelerator.prepare(m, torch.optim.AdamW(m.parameters(), lr=1e-2)) for m in (*parts, model)]
    *learning, (whole, last) = prepared
    for part, optimizer in learning:
        train(part, optimizer, 2)
    model.load_state_dict(handle.merge())
    handle.merge_optimizer([optimizer for _, optimizer in learning], last)
    train(whole, last, 1)
