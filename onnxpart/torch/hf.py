"""Models of transformers: loaded as ONNX to train from, or divided and trained by their Trainer."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from onnxpart.errors import ModelError, needs
from onnxpart.ir.protos import metadata_of
from onnxpart.merging.model_card import ARCHITECTURE, BASE_MODEL
from onnxpart.torch.exporter.export import Dynamic, Named, exported, first_line, returned, silent
from onnxpart.torch.handle import Handle, check_merge_at, split_module
from onnxpart.torch.interface import results

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers.trainer_utils import TrainOutput

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HIDDEN = "hidden_state"
"""What the names of results have in them that aren't what a model was asked for."""
_SNAPSHOT = "models--"
"""The Hub's cache has a folder for each model, named so, with what is a slash in its name as two hyphens."""


def load_pretrained(folder: str | os.PathLike[str]) -> onnx.ModelProto:
    """Return a model that `save_pretrained` wrote as ONNX to train from (see `onnxpart.torch.export`).

    It takes token ids and their mask, batch and length of any size, or images of the size in the model's configuration;
    nothing is fetched from elsewhere, and no code in the folder is run.

    :raises UsageError: without transformers.
    :raises ModelError: when the folder can't be read, or the model takes something else. Others: see `export`.
    """
    with needs("reading a model of transformers", "hf"):
        import transformers
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; name a folder that save_pretrained wrote.")
    try:
        with silent():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            (name,) = config.architectures
            module = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers raises
        raise ModelError(
            f"{folder} can't be read by transformers ({first_line(error)}); save the model again."
        ) from None
    module.config.use_cache = False
    inputs, dynamic = _examples(module, str(folder))
    result = exported(module, inputs, "auto", dynamic).model()
    result.graph.name = Path(folder).name
    base = _base_model(Path(folder))
    origin = {ARCHITECTURE: name} | ({} if base is None else {BASE_MODEL: base})
    onnx.helper.set_model_props(result, metadata_of(result) | origin)
    return result


def _base_model(folder: Path) -> str | None:
    """Return the name on the Hub of what a folder's model was loaded from: by its place in the Hub's cache, or by its
    configuration, which transformers 4 wrote so; None where neither says it.
    """
    for part in folder.resolve().parts:
        if part.startswith(_SNAPSHOT):
            return part.removeprefix(_SNAPSHOT).replace("--", "/", 1)
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", "")
    return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _examples(module: Any, folder: str) -> tuple[Named, Dynamic]:
    """Return inputs for a model, and their axes of any size besides the batch.

    :raises ModelError: when it takes neither tokens nor images.
    """
    config, wanted = module.config, module.main_input_name
    if wanted == "input_ids" and not config.is_encoder_decoder:
        words = [word for word in range(config.vocab_size) if word != config.pad_token_id][:8]
        tokens = torch.tensor([words, words[::-1]])
        inputs = {wanted: tokens, "attention_mask": torch.ones_like(tokens)}
        return inputs, {key: {1: "length"} for key in inputs}
    size = getattr(config, "image_size", None)
    if wanted == "pixel_values" and isinstance(size, int):
        return {wanted: torch.zeros(2, config.num_channels, size, size)}, {}
    raise ModelError(
        f"{folder}: what a {type(module).__name__} takes isn't known; export it with onnxpart.torch.export(module, "
        "example_inputs, 'model.onnx')."
    )


class PartitionedTrainer:
    """Trains K parts of a model, merges them into it, and trains it on; `handle` is the way between them.

    The first batch of the trainer's own loader shows how the model is called. The second shows which axes vary in
    size. Parts don't return the hidden states that some models return beside their loss, since what is returned can't
    be divided. Each network's checkpoints are in a folder of `output_dir`: `part0`, `part1`, ..., `whole`.

    :param trainer_factory: makes the Trainer of a module: of each part, and of the model itself.
    :param model: has the trained weights at the end. :param k: number of parts. :param merge_at: epochs of the parts;
        the whole trains for the rest of `num_train_epochs`.
    :raises UsageError: if no epochs are left for the parts or the whole. Others: see `split_module`.
    """

    handle: Handle

    def __init__(
        self, trainer_factory: Callable[[nn.Module], Trainer], model: nn.Module, *, k: int = 2, merge_at: float
    ) -> None:
        self.trainer_factory, self.model, self.merge_at = trainer_factory, model, merge_at
        trainer = trainer_factory(model)
        check_merge_at(merge_at, trainer.args.num_train_epochs)
        with torch.random.fork_rng(devices=[]):
            batches = list(islice(trainer.get_train_dataloader(), 2))
        first, *others = (
            {name: value for name, value in batch.items() if isinstance(value, Tensor)} for batch in batches
        )
        dynamic, found = (
            others[0] if others else None,
            [name for name, _ in results(returned(model, first, fake=False))],
        )
        outputs = [name for name in found if _HIDDEN not in name] if "loss" in found else None
        self.parts, self.handle = split_module(model, first, k, outputs=outputs, dynamic=dynamic, everywhere=True)

    def train(self, resume_from_checkpoint: bool = False) -> TrainOutput:
        """Train the parts one after the other, merge, and train the whole.

        :param resume_from_checkpoint: go on from the last checkpoints, if there are any.
        :returns: what the Trainer of the whole returns.
        """
        for p, part in enumerate(self.parts):
            self._train(part, f"part{p}", 0, resume_from_checkpoint)
        self.model.load_state_dict(self.handle.merge())
        return self._train(self.model, "whole", self.merge_at, resume_from_checkpoint)

    def _train(self, module: nn.Module, name: str, since: float, resume: bool) -> TrainOutput:
        """Train one of the networks: the parts first, after the merge the whole."""
        from transformers.trainer_utils import get_last_checkpoint

        trainer = self.trainer_factory(module)
        folder = Path(trainer.args.output_dir or ".") / name
        trainer.args = copy.copy(trainer.args)
        trainer.args.output_dir = str(folder)
        trainer.args.num_train_epochs = trainer.args.num_train_epochs - since if since else self.merge_at
        last = get_last_checkpoint(folder) if resume and folder.is_dir() else None
        return trainer.train(resume_from_checkpoint=last)
