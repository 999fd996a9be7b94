"""Each trainer ends with the weights of the hand-written loop, and its own options work on parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from lightning import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from onnxpart.errors import MergeError, UsageError
from onnxpart.torch import lightning, split_module
from onnxpart.torch.hf import PartitionedTrainer
from scripts.trainers import examples
from tests.networks.plain import CLASSES, GPT2, ResNet18, learn
from tests.test_tutorials import DOCS, follow

torch.set_num_threads(1)
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def gpt2(dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=4, use_cache=False, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def texts() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in torch.arange(64 * 12).view(64, 12) * 7 % 31]


def images() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 3, 8, 8, generator=generator), torch.randint(0, CLASSES, (32,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def by_hand(
    model: nn.Module, example: Any, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor],
    build: Optimizers, moments: bool = False,
) -> None:  # fmt: skip
    """Two epochs of the parts, one of the whole; its optimizer goes on from theirs, if that is asked for."""

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, epochs: Iterable[int]) -> None:
        module.train()
        for epoch in epochs:
            if hasattr(batches, "set_epoch"):
                batches.set_epoch(epoch)
            for batch in batches:
                optimizer.zero_grad()
                loss(module, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    parts, handle = split_module(model, example, 2)
    optimizers = [build(part) for part in parts]
    for part, optimizer in zip(parts, optimizers, strict=True):
        train(part, optimizer, range(2))
    model.load_state_dict(handle.merge())
    last = build(model)
    if moments:
        handle.merge_optimizer(optimizers, last)
    train(model, last, range(1))


def classified(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def assert_alike(one: nn.Module, other: nn.Module, atol: float = 1e-6) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-4, atol=atol, msg=name)


def test_transformers(tmp_path: Path) -> None:
    model, data = gpt2(), texts()
    own = copy.deepcopy(model)
    examples.by_transformers(model, data, str(tmp_path), per_device_train_batch_size=8)
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, report_to=[], use_cpu=True)
    batches = Trainer(own, args, train_dataset=data).get_train_dataloader()
    example = {key: torch.stack([row[key] for row in data[:8]]) for key in data[0]}
    by_hand(
        own, example, batches, lambda module, batch: module(**batch).loss,
        lambda module: torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0),
    )  # fmt: skip
    assert (own.lm_head.weight - gpt2().lm_head.weight).abs().max() > 1e-3
    assert_alike(model, own, atol=1e-4)  # Adam divides by gradients near 0, which are rounded otherwise


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # Lightning's own
def test_lightning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResNet18()
    own = copy.deepcopy(model)
    examples.by_lightning(model, images(), str(tmp_path), logger=False)
    by_hand(
        own, images().dataset[:8][0], images(), classified,
        lambda module: torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9),
    )  # fmt: skip
    assert_alike(model, own)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part0", "part1", "whole"]


def test_accelerate() -> None:
    torch.manual_seed(0)
    model = ResNet18()
    own = copy.deepcopy(model)
    examples.by_accelerate(model, images())
    by_hand(
        own, images().dataset[:8][0], images(), classified,
        lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2), moments=True,
    )  # fmt: skip
    assert_alike(model, own)


def test_accumulated_gradients_are_those_of_a_larger_batch(tmp_path: Path) -> None:
    one, other = gpt2(), gpt2()
    examples.by_transformers(one, texts(), str(tmp_path / "a"), per_device_train_batch_size=8)
    examples.by_transformers(
        other, texts(), str(tmp_path / "b"), per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert_alike(one, other, atol=1e-4)


def test_texts_of_any_length(tmp_path: Path) -> None:
    """The second batch is shorter than the first, and the third is of another length still."""
    model = gpt2()
    before = copy.deepcopy(model.state_dict())
    cut = [{key: row[: 12 - 2 * (i // 8 % 4)] for key, row in text.items()} for i, text in enumerate(texts())]
    options = {"per_device_train_batch_size": 8, "train_sampling_strategy": "sequential"}
    examples.by_transformers(model, cut, str(tmp_path), **options)
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # Lightning's own
def test_each_network_has_a_run_in_the_trainers_own_tracker(tmp_path: Path) -> None:
    """The losses of the parts and of the whole are three curves in TensorBoard, each of its own steps."""
    options = {"per_device_train_batch_size": 8, "report_to": ["tensorboard"], "logging_steps": 1}
    examples.by_transformers(gpt2(), texts(), str(tmp_path / "hf"), **options)
    torch.manual_seed(0)
    examples.by_lightning(ResNet18(), images(), str(tmp_path / "lightning"), logger=True, log_every_n_steps=1)
    for trainer, tag, steps in (("hf", "train/loss", (16, 16, 8)), ("lightning", "loss", (8, 8, 4))):
        for name, count in zip(("part0", "part1", "whole"), steps, strict=True):
            (events,) = (tmp_path / trainer / name).rglob("events.out.tfevents.*")
            assert len(EventAccumulator(str(events)).Reload().Scalars(tag)) == count, (trainer, name)


class Stop(Exception):
    """What ends a run between two steps."""


def test_a_run_that_ended_goes_on_from_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended within the second part, it trains only what is missing; dropout draws what it would have drawn."""
    options = {"per_device_train_batch_size": 8, "save_steps": 5}
    one, other, steps = gpt2(0.1), gpt2(0.1), list[int]()
    examples.by_transformers(one, texts(), str(tmp_path / "a"), **options)
    step = Trainer.training_step

    def counted(*args: Any, **named: Any) -> Any:
        steps.append(0)
        if len(steps) == 16 + 12:
            raise Stop
        return step(*args, **named)

    monkeypatch.setattr(Trainer, "training_step", counted)
    with pytest.raises(Stop):
        examples.by_transformers(other, texts(), str(tmp_path / "b"), **options)
    steps[:] = [0] * 100
    examples.by_transformers(other := gpt2(0.1), texts(), str(tmp_path / "b"), **options)
    assert len(steps) - 100 == (16 - 10) + 8
    assert_alike(one, other)


OPTIONS: list[dict[str, Any]] = [{"bf16": True}, {"activation_checkpointing": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_the_trainers_own_options_train_parts(options: dict[str, Any], tmp_path: Path) -> None:
    plain, other = gpt2(), gpt2()
    examples.by_transformers(plain, texts(), str(tmp_path / "a"), per_device_train_batch_size=8)
    examples.by_transformers(other, texts(), str(tmp_path / "b"), per_device_train_batch_size=8, **options)
    batch = {key: torch.stack([row[key] for row in texts()[:8]]) for key in texts()[0]}
    with torch.no_grad():
        before, after, wanted = (float(model(**batch).loss) for model in (gpt2(), other, plain))
    assert after < before
    assert after == pytest.approx(wanted, rel=0.01)


class Words(nn.Module):
    """Classifies texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.layers(tokens).mean(1)
        return found


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # Lightning's own
def test_lightning_and_texts_of_any_length(tmp_path: Path) -> None:
    """The third batch has the length of no example."""
    model = Words()
    before = copy.deepcopy(model.state_dict())
    batches: Any = [(torch.arange(4 * n).view(4, n) % 16, torch.arange(4) % CLASSES) for n in (6, 9, 7)]
    trainer = lightning.PartitionedTrainer(
        lambda name: LightningTrainer(
            max_epochs=2, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False
        ),
        examples.Classifier(model), batches[0][0], dynamic=batches[1][0], k=2, merge_at=1,
    )  # fmt: skip
    trainer.fit(DataLoader(batches, batch_size=None))
    trained = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert trained == before.keys()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES)
    )


def smaller_batches() -> DataLoader[Any]:
    return DataLoader(images().dataset, batch_size=4)


def changed(model: nn.Module) -> float:
    """How far a network's weights are from its first ones."""
    pairs = zip(model.parameters(), small().parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # Lightning's own
def test_the_options_of_lightning_train_parts(tmp_path: Path) -> None:
    plain, accumulated, half = small(), small(), small()
    examples.by_lightning(plain, images(), str(tmp_path / "a"), logger=False)
    examples.by_lightning(accumulated, smaller_batches(), str(tmp_path / "b"), logger=False, accumulate_grad_batches=2)
    assert_alike(plain, accumulated)
    examples.by_lightning(
        half, images(), str(tmp_path / "c"), logger=False, precision="bf16-mixed", enable_model_summary=False
    )
    assert changed(plain) > 0.05
    assert_alike(plain, half, atol=0.02)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")  # Lightning's own
@pytest.mark.filterwarnings("ignore::UserWarning")  # likewise: of folders with checkpoints and of those without
def test_a_run_of_lightning_that_ended_goes_on_from_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended within the second epoch of the second part, it trains only what is missing."""
    one, other, steps = small(), small(), list[int]()
    examples.by_lightning(one, images(), str(tmp_path / "a"), logger=False)
    step = examples.Classifier.training_step

    def counted(module: examples.Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
        steps.append(0)
        if len(steps) == 8 + 6:
            raise Stop
        return step(module, batch)

    monkeypatch.setattr(examples.Classifier, "training_step", counted)

    def trained(model: nn.Module, **options: Any) -> None:
        trainer = lightning.PartitionedTrainer(
            lambda name: LightningTrainer(
                max_epochs=3, default_root_dir=tmp_path / name, accelerator="cpu", logger=False,
                callbacks=[ModelCheckpoint(save_last=True)],
            ),
            examples.Classifier(model), images().dataset[:8][0], k=2, merge_at=2,
        )  # fmt: skip
        trainer.fit(images(), **options)

    with pytest.raises(Stop):
        trained(other)
    steps[:] = [0] * 100
    trained(other := small(), ckpt_path="last")
    assert len(steps) - 100 == 4 + 4
    assert_alike(one, other)


def test_the_options_of_accelerate_train_parts() -> None:
    plain, accumulated, half = small(), small(), small()
    examples.by_accelerate(plain, images())
    examples.by_accelerate(accumulated, smaller_batches(), gradient_accumulation_steps=2)
    assert_alike(plain, accumulated, atol=1e-4)
    AcceleratorState._reset_state()  # noqa: SLF001
    examples.by_accelerate(half, images(), mixed_precision="bf16")
    AcceleratorState._reset_state()  # noqa: SLF001
    assert changed(plain) > 0.05
    assert_alike(plain, half, atol=0.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own
def test_an_adapter_of_peft_trains_in_parts(tmp_path: Path) -> None:
    """What it leaves frozen stays, but for the output's layer, whose last norm takes the division by two here."""
    model = get_peft_model(gpt2(), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    before = copy.deepcopy(model.state_dict())
    examples.by_transformers(model, texts(), str(tmp_path), per_device_train_batch_size=8)
    for name, tensor in model.state_dict().items():
        factor = 0.5 if name.endswith("ln_f.weight") else 1.0
        assert torch.equal(tensor, factor * before[name]) == ("lora" not in name), name


def test_an_adapter_that_is_put_on_parts_must_be_merged_into_them() -> None:
    parts, handle = split_module(GPT2(), torch.randint(0, CLASSES, (8, 6)), 2)
    adapted = [get_peft_model(part, LoraConfig(r=2, target_modules=["proj"])) for part in parts]
    for module in adapted:
        learn(module, torch.optim.SGD(module.parameters(), lr=0.1), lambda: torch.randint(0, CLASSES, (8, 6)))
    with pytest.raises(MergeError, match=r"part 0 has no 'layers.0.proj.bias' of floats; undo what changed its layers"):
        handle.merge()
    wanted = [(module.eval()(torch.zeros(1, 6, dtype=torch.long)), module.merge_and_unload())[0] for module in adapted]
    for part, want in zip(parts, wanted, strict=True):
        torch.testing.assert_close(part(torch.zeros(1, 6, dtype=torch.long)), want)
    assert handle.merge().keys() == GPT2().state_dict().keys()


def test_a_model_that_returns_a_cache_is_divided_without_it() -> None:
    """Parts return the other results; a call or an example with a cache is refused with what to do."""
    model, inputs = gpt2(), torch.arange(3 * 8).view(3, 8)
    model.config.use_cache = True
    parts, _ = split_module(model, {"input_ids": inputs})
    found, whole = parts[0](input_ids=inputs), model(input_ids=inputs)
    assert whole.past_key_values is not None
    assert type(found) is type(whole)
    assert list(found.keys()) == ["logits"]
    with pytest.raises(UsageError, match="unexpected keyword argument 'past_key_values'; call the part like"):
        parts[0](input_ids=inputs, past_key_values=whole.past_key_values)
    with pytest.raises(UsageError, match="'use_cache' isn't its default; leave it out, or split the module with it"):
        parts[0](input_ids=inputs, use_cache=True)
    with pytest.raises(UsageError, match="the example inputs are Tensor, DynamicCache; give a tensor"):
        split_module(model, {"input_ids": inputs, "past_key_values": whole.past_key_values})


def test_an_encoder_whose_states_the_model_returns_is_divided(tmp_path: Path) -> None:
    """Two parts of half the width have a fourth of a matrix each; without that they have half."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, use_cache=False
    )
    model = T5ForConditionalGeneration(config)
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, report_to=[], use_cpu=True)
    trainer = PartitionedTrainer(lambda module: Trainer(module, args, train_dataset=texts()), model, merge_at=1)
    whole, found = (module(**{key: x[None] for key, x in texts()[0].items()}) for module in (model, trainer.parts[0]))
    assert set(whole) - set(found) == {"encoder_last_hidden_state"}
    plan = trainer.handle.split.plan
    assert plan.parameters(0) < 0.3 * plan.parameters()
    trainer.train()
    assert int(trainer.handle.merge()["lm_head.weight"].isfinite().all())


def test_epochs_that_leave_none_for_the_whole(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, report_to=[], use_cpu=True)
    with pytest.raises(UsageError, match="merge_at is 2 of 2 epochs; leave some for the parts and some for the whole"):
        PartitionedTrainer(lambda module: Trainer(module, args, train_dataset=texts()), gpt2(), merge_at=2)


def test_the_tutorial_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert follow(DOCS / "tutorials" / "trainer.md")
