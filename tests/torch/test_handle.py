"""A module of one's own, trained as K parts in a loop of one's own, and merged back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from onnxpart.errors import MergeError, OnnxpartError, PartitionError, UsageError
from onnxpart.ir.arrays import array_of
from onnxpart.storage.draft import Draft
from onnxpart.torch import Handle, export, split_module
from onnxpart.torch import handle as home
from onnxpart.torch.exporter import trainable_graph
from onnxpart.torch.exporter.export import exported
from tests.networks.plain import CLASSES, GPT2, NETWORKS, LeNet, ResNet18, deviation, learn

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
Optimizer = torch.optim.Optimizer
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize(("name", "k"), [*((name, 2) for name in NETWORKS), ("lenet", 4), ("lstm", 4)])
def test_module_is_the_mean_of_its_parts(name: str, k: int) -> None:
    """Of the GPT-2 the norms mix units that are divided, so it is with these duplicated; the others are as they are."""
    torch.manual_seed(0)
    build, draw = NETWORKS[name]
    module = build()
    parts, handle = split_module(module, draw(), k)
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9), draw)
    assert deviation(module, parts, draw()) > 0.01
    module.load_state_dict(handle.merge())
    assert handle.exact == (name != "gpt2")
    if not handle.exact:
        assert deviation(module, parts, draw()) > 0.01
        handle.duplicate(module)
    assert deviation(module, parts, draw()) < 1e-5
    assert deviation(handle.whole(), parts, draw()) < 1e-5


class Twice(nn.Module):
    """A batch norm that is applied twice: one layer, with one set of parameters and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm, self.last = (
            nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x)).relu()
        return self.last(self.norm(self.second(h)).relu())


def test_a_norm_that_is_applied_twice_has_one_set_of_statistics() -> None:
    torch.manual_seed(0)
    module = Twice()
    parts, handle = split_module(module, torch.randn(10, 6), 2)
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), lambda: torch.randn(10, 6))
    module.load_state_dict(handle.merge())
    assert handle.exact
    assert deviation(module, parts, torch.randn(10, 6)) < 1e-5
    assert module.norm.running_mean is not None
    assert module.norm.running_mean.abs().min() > 0


@pytest.mark.parametrize(
    ("exporter", "dynamic"),
    [("torchscript", {"tokens": {1: "length"}}), ("dynamo", torch.zeros(8, 9, dtype=torch.long))],
)
def test_parts_run_at_every_length_that_the_module_runs_at(exporter: str, dynamic: Any) -> None:
    torch.manual_seed(0)
    _, draw = NETWORKS["gpt2"]
    module = GPT2(places=40)
    (same,), _ = split_module(module, draw(), 1, exporter=exporter, dynamic=dynamic)
    parts, handle = split_module(module, draw(), 2, exporter=exporter, dynamic=dynamic)
    for part, tokens in zip(parts, (torch.randint(0, CLASSES, (4, 6)), torch.randint(0, CLASSES, (4, 9))), strict=True):
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), tokens.clone)
    whole, merged = handle.whole(), copy.deepcopy(module)
    merged.load_state_dict(handle.merge())
    handle.duplicate(merged)
    for length in (2, 6, 11):
        tokens = torch.randint(0, CLASSES, (3, length))
        assert deviation(same, [module], tokens) < 1e-5
        assert deviation(whole, parts, tokens) < 1e-5
        assert deviation(merged, parts, tokens) < 1e-5
    with pytest.raises(
        UsageError, match=r"dynamic names {2: 'length'} of 'tokens', and the inputs are tokens \[8, 6\]"
    ):
        split_module(module, draw(), 2, dynamic={"tokens": {2: "length"}})


def test_duplicating_norms_changes_no_parameter() -> None:
    torch.manual_seed(0)
    build, draw = NETWORKS["gpt2"]
    module, other = build(), build()
    _, handle = split_module(module, draw(), order="interleaved", shares=(3, 1))
    before = dict(module.named_parameters())
    handle.duplicate(module)
    handle.duplicate(module)  # of which there is nothing left to do
    assert module.lm_head.weight is module.wte.weight
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    module.load_state_dict(handle.merge())
    learn(module, torch.optim.AdamW(module.parameters()), draw)
    other.load_state_dict(module.state_dict())
    handle.duplicate(other)
    assert deviation(other, [module], draw()) < 1e-6
    assert deviation(copy.deepcopy(other).double(), [module.double()], draw()) < 1e-6


class OwnNorm(nn.Module):
    """A root-mean-square norm as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class ChannelNorm(nn.LayerNorm):
    """A layer norm of images, over their channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNormed(nn.Module):
    """A norm that exporters write in pieces."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(4, 8), norm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.a(x))))


class Images(nn.Module):
    """A norm over the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(2, 8, 3), ChannelNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.a(x))).mean((2, 3)))


class Unnormed(RMSNormed):
    """Units divided by their length, and a layer that can't be divided."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(F.relu(self.a(x))))


class Narrow(RMSNormed):
    """A layer of a single unit between wide ones."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 1), nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(torch.tanh(self.one(F.relu(self.a(x)))))))


@pytest.mark.parametrize("build", [RMSNormed, lambda: RMSNormed(OwnNorm), Images], ids=["torch's", "own", "images"])
def test_norms_of_all_kinds_are_duplicated(build: Callable[[], nn.Module]) -> None:
    module = build()
    x = torch.randn(4, 2, 6, 6) if isinstance(module, Images) else torch.randn(4, 4)
    parts, handle = split_module(module, x, order="random")
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), lambda: x)
    module.load_state_dict(handle.merge())
    assert not handle.exact
    assert deviation(module, parts, x) > 1e-3
    handle.duplicate(module)
    assert deviation(module, parts, x) < 1e-5


@pytest.mark.parametrize(
    ("build", "why"), [(Unnormed, r"ReduceL2 .* mixes units"), (Narrow, r"reads 'one.bias', of wh")]
)
def test_what_no_norm_explains_is_said(build: type[nn.Module], why: str) -> None:
    module, x = build(), torch.randn(4, 4)
    parts, handle = split_module(module, x)
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), lambda: torch.randn(4, 4))
    module.load_state_dict(handle.merge())
    assert not handle.exact
    assert deviation(module, parts, x) > 1e-4
    assert deviation(handle.whole(), parts, x) < 1e-5
    with pytest.raises(OnnxpartError, match=why):
        handle.duplicate(module)


def inner(handle: Handle, name: str) -> Tensor:
    """Where a weight leads from one part to another."""
    return torch.from_numpy(handle.split.plan.by_name[name].counts() == 0)


def test_frozen_layers_keep_the_weights_between_parts() -> None:
    module = LeNet()
    module.conv2.requires_grad_(False)
    module.fc2.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    parts, handle = split_module(module, torch.randn(2, 1, 20, 20))
    for part in parts:
        learn(part, torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=0.1), NETWORKS["lenet"][1])
    for _ in range(2):
        merged = handle.merge()
        assert torch.equal(merged["conv2.weight"], before["conv2.weight"])
        assert torch.equal(merged["fc2.weight"], before["fc2.weight"] / 2)
        assert not merged["fc1.weight"][inner(handle, "fc1.weight")].any()
        module.load_state_dict(merged)
    assert not handle.exact
    assert handle.report().splitlines()[1:] == [
        "weights between parts stay as they are in conv2.weight, frozen",
        "divided by 2 for the mean, though frozen: fc2.weight",
        "weights between parts are zero after merging in fc1.weight",
        "after merging the module is near the mean of the parts, not equal to it",
    ]


@pytest.mark.parametrize("keep", [True, ["fc1.weight"], ["fc1"]])
def test_the_weights_between_parts_are_kept_where_that_is_asked_for(keep: bool | list[str]) -> None:
    module = LeNet()
    _, handle = split_module(module, torch.randn(2, 1, 20, 20))
    merged, plain = handle.merge(keep=keep), handle.merge()
    for name in ("conv2.weight", "fc1.weight"):
        where, kept = inner(handle, name), keep is True or name == "fc1.weight"
        own = module.state_dict()[name][where]
        assert torch.equal(merged[name][where], own if kept else torch.zeros_like(own))
        assert torch.equal(merged[name][~where], plain[name][~where])
        assert not plain[name][where].any()
    for name in ("fc2.weight", "fc2", "fc"):
        with pytest.raises(UsageError, match=f"'{name}' has no weights between parts to keep; name some of conv2.wei"):
            handle.merge(keep=[name])


def test_parts_in_half_types_leave_the_weights_between_parts_as_they_are() -> None:
    module = LeNet()
    parts, handle = split_module(module, torch.randn(2, 1, 20, 20))
    own = module.state_dict()["fc1.weight"]
    for part in parts:
        part.bfloat16()
    merged, where = handle.merge(keep=["fc1"])["fc1.weight"], inner(handle, "fc1.weight")
    assert merged.dtype == torch.float32
    assert torch.equal(merged[where], own[where])
    assert torch.equal(merged[~where], own[~where].bfloat16().float())


def test_report_says_what_is_averaged() -> None:
    _, handle = split_module(Narrow(), torch.randn(4, 4))
    lines = handle.report().splitlines()
    assert lines[0].startswith("2 parts of ")
    assert repr(handle) == f"Handle(Narrow: {lines[0]})"
    assert "'one.bias': every part has its own, and merging takes their mean" in lines
    assert lines[-1] == "after merging the module is near the mean of the parts, not equal to it"
    _, handle = split_module(LeNet(), torch.randn(2, 1, 20, 20))
    assert handle.report().splitlines()[1:] == [
        "weights between parts are zero after merging in conv2.weight, fc1.weight",
        "after merging the module computes the mean of the parts",
    ]


def test_both_exporters_and_all_orders_lead_back() -> None:
    torch.manual_seed(0)
    _, draw = NETWORKS["lenet"]
    for exporter, order in (("torchscript", "random"), ("dynamo", "interleaved")):
        module = LeNet()
        parts, handle = split_module(
            module, draw(), 3, order=order, seed=1, shares=(2, 1, 1), init="he", exporter=exporter
        )
        module.load_state_dict(handle.merge())
        assert deviation(module, parts, draw()) < 1e-5
        assert handle.split.plan.parameters(0) > handle.split.plan.parameters(1)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_part_and_its_optimizer_merge_into_the_module_itself(kind: str) -> None:
    """With one part merging changes nothing, so the module learns on exactly as the part does."""
    torch.manual_seed(0)
    _, draw = NETWORKS["resnet18"]
    module = ResNet18()
    (part,), handle = split_module(module, draw(), 1)
    ours, theirs = OPTIMIZERS[kind](part.parameters()), OPTIMIZERS[kind](module.parameters())
    learn(part, ours, draw)
    module.load_state_dict(handle.merge())
    handle.merge_optimizer([ours], theirs)
    for trained, optimizer in ((part, ours), (module, theirs)):
        torch.manual_seed(1)
        learn(trained, optimizer, draw)
    assert deviation(module, [part], draw()) < 1e-4


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_are_scaled_as_the_weights_are(kind: str) -> None:
    torch.manual_seed(0)
    _, draw = NETWORKS["lenet"]
    module = LeNet()
    parts, handle = split_module(module, draw())
    optimizers = [OPTIMIZERS[kind](part.parameters()) for part in parts]
    for part, optimizer in zip(parts, optimizers, strict=True):
        learn(part, optimizer, draw, steps=2)
    learn(parts[0], optimizers[0], draw, steps=1)
    groups = [{"params": [p for n, p in module.named_parameters() if n.endswith(end)]} for end in ("weight", "bias")]
    groups[1]["lr"] = 0.5  # type: ignore[assignment]
    target = OPTIMIZERS[kind](groups)
    handle.merge_optimizer(optimizers, target)

    def part_slot(p: int, name: str, slot: str) -> Tensor:
        key = name
        return optimizers[p].state[dict(parts[p].named_parameters())[key]][slot]

    powers = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
    found = target.state[module.fc2.weight]
    assert set(found) - {"step"} == set(optimizers[0].state[next(parts[0].parameters())]) - {"step"}
    for slot in set(found) & set(powers):
        expected = torch.cat([part_slot(p, "fc2.weight", slot) for p in (0, 1)], 1) / 2 ** powers[slot]
        torch.testing.assert_close(found[slot], expected)
        mean = (part_slot(0, "fc2.bias", slot) + part_slot(1, "fc2.bias", slot)) / 2
        torch.testing.assert_close(target.state[module.fc2.bias][slot], mean)
        rows = torch.cat([part_slot(p, "fc1.bias", slot) for p in (0, 1)])
        torch.testing.assert_close(target.state[module.fc1.bias][slot], rows)
    if kind != "sgd":
        assert found["step"] == 2
    assert [group["lr"] for group in target.param_groups] == [target.defaults["lr"], 0.5]
    module.load_state_dict(handle.merge())
    learn(module, target, draw, steps=1)


class Odd(nn.Module):
    """Weights of all kinds: tied, frozen, a single number, unused, and buffers that training leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.norm = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.head, self.unused, self.gain = nn.Linear(6, CLASSES), nn.Linear(2, 2), nn.Parameter(torch.ones(()))
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(self.stem(x)))))) * self.gain + self.shift
        return self.head(x)


def test_what_the_graph_does_not_compute_stays() -> None:
    torch.manual_seed(0)
    module = Odd().double()
    before = copy.deepcopy(module.state_dict())
    parts, handle = split_module(module, torch.randn(4, 4, dtype=torch.float64))
    for part in parts:
        names = {name for name, p in part.named_parameters() if p.requires_grad}
        assert {"gain", "a.weight"} <= names
        assert "a.bias" not in names
        assert "shift" not in names
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), lambda: torch.randn(4, 4, dtype=torch.float64))
    state = handle.merge()
    assert state.keys() == before.keys()
    for key in ("unused.weight", "shift", "norm.num_batches_tracked", "a.bias"):
        assert torch.equal(state[key], before[key]), key
    assert torch.equal(state["a.weight"], state["b.weight"])
    assert state["a.weight"].dtype == torch.float64
    for key in ("norm.running_mean", "gain", "head.weight"):
        assert not torch.equal(state[key], before[key]), key
    assert module.load_state_dict(state)


def test_named_inputs_and_one_of_several_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 3)

        def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            hidden = F.relu(self.a(left) + self.b(right))
            return self.head(hidden), hidden

    module, left, right = Pair(), torch.randn(4, 3), torch.randn(4, 2)
    parts, handle = split_module(module, {"left": left, "right": right}, outputs=["output_0"])
    module.load_state_dict(handle.merge())
    mean = torch.stack([part(left, right) for part in parts]).mean(0)
    assert all(torch.equal(part(right=right, left=left), part(left, right=right)) for part in parts)
    with pytest.raises(OnnxpartError, match="missing a required argument: 'right'; call the part like"):
        parts[0](left=left)
    torch.testing.assert_close(module(left, right)[0], mean)
    with pytest.raises(PartitionError, match=r"Pair: no layer can be divided into 2 parts \(it is tied to the output"):
        split_module(module, (left, right))


def test_modules_that_stay_undivided() -> None:
    torch.manual_seed(0)
    build, draw = NETWORKS["gpt2"]
    module = build()
    parts, handle = split_module(module, draw(), undivided=["layers.0.attn.weight", "layers.0.attn.bias"])
    by_module, _ = split_module(module, draw(), undivided=["layers.0.attn"])
    for part, same in zip(parts, by_module, strict=True):
        assert part.state_dict().keys() == same.state_dict().keys()
        assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in part.state_dict().items())
    whole, divided = module.get_parameter("layers.0.attn.weight"), module.get_parameter("layers.1.fc.weight")
    for part in parts:
        assert torch.equal(part.get_parameter("layers.0.attn.weight"), whole)
        assert part.get_parameter("layers.1.fc.weight").numel() == divided.numel() / 2
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), draw)
    assert deviation(handle.whole(), parts, draw()) < 1e-5
    with pytest.raises(UsageError, match=r"nothing to leave undivided in 'layers.0.at'; name a module"):
        split_module(module, draw(), undivided=["layers.0.at"])


def test_a_round_goes_on_from_what_was_merged() -> None:
    torch.manual_seed(0)
    module, draw = LeNet(), NETWORKS["lenet"][1]
    module.conv1.requires_grad_(False)
    parts, handle = split_module(module, draw(), undivided=["conv2"])
    for part in parts:
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), draw)
    before = handle.merge()
    fresh, other = handle.divide_anew(seed=1)
    assert other.split.plan != handle.split.plan
    after = other.merge()
    for name, tensor in before.items():
        same = torch.isclose(after[name], tensor, rtol=1e-5, atol=1e-7)
        assert same.float().mean() > 0.4, name
        assert (same | (after[name] == 0)).all(), name
    for part in fresh:
        assert torch.equal(part.get_parameter("conv2.weight"), before["conv2.weight"])
        assert not part.get_parameter("conv1.weight").requires_grad
        learn(part, torch.optim.SGD(part.parameters(), lr=0.1), draw)
    assert deviation(other.whole(), fresh, draw()) < 1e-5


def test_averages_and_files_of_parts_are_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, draw = NETWORKS["resnet18"]
    module = ResNet18()
    parts, handle = split_module(module, draw())
    torch.save((parts, handle), tmp_path / "begun.pt")
    averages = [AveragedModel(part, use_buffers=True) for part in parts]
    for part, average in zip(parts, averages, strict=True):
        for _ in range(2):
            learn(part, torch.optim.SGD(part.parameters(), lr=0.1), draw, steps=1)
            average.update_parameters(part)
        torch.save(average.module.state_dict(), tmp_path / f"{len(list(tmp_path.iterdir()))}.pt")
    later, resumed = torch.load(tmp_path / "begun.pt", weights_only=False)
    assert resumed.parts[1] is later[1]
    module.load_state_dict(resumed.merge([torch.load(tmp_path / f"{n}.pt") for n in (1, 2)]))
    assert deviation(module, averages, draw()) < 1e-5
    assert deviation(module, parts, draw()) > 1e-3
    with pytest.raises(MergeError, match="the plan has 2 parts, but 1 were given"):
        handle.merge([parts[0].state_dict()])


def test_weights_of_a_large_module_are_read_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All else is as with a small one's, which are copied."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    own, x = dict(module.named_parameters()), torch.randn(4, 8)
    copied, _ = split_module(module, x, init="scaled")
    monkeypatch.setattr(trainable_graph, "LARGE", 0)
    parts, handle = split_module(module, x, init="scaled")
    model = handle.split.analysis.model
    assert [n for n, p in own.items() if np.shares_memory(array_of(model, n), p.detach().numpy())] == ["2.weight"]
    torch.save((parts, handle), tmp_path / "begun.pt")
    later, resumed = torch.load(tmp_path / "begun.pt", weights_only=False)
    for part, same, other in zip(parts, copied, later, strict=True):
        for name, tensor in same.state_dict().items():
            assert torch.equal(part.state_dict()[name], tensor)
            assert torch.equal(other.state_dict()[name], tensor)
    fresh, again = resumed.divide_anew(1)
    assert deviation(again.whole(), fresh, x) < 1e-5
    export(module, x, tmp_path / "one.onnx", exporter="torchscript")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun.pt", "one.onnx"]


class Tied(nn.Module):
    """A tied embedding, a norm of batches, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(50, 16), nn.Linear(16, 96), nn.Linear(96, 96)
        self.norm, self.fc3, self.head = nn.BatchNorm1d(96), nn.Linear(96, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("rates", torch.linspace(0.5, 1.5, 16), persistent=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        h = self.fc1(self.embedding(tokens) * self.rates * torch.arange(1, tokens.shape[1] + 1)[:, None])
        h = self.norm(self.fc2(h.relu()).transpose(1, 2)).transpose(1, 2)
        return {"logits": self.head(self.fc3(h.relu()))}


@pytest.mark.parametrize("shards", [False, True])
def test_parts_of_a_module_on_the_meta_device_are_read_from_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: bool
) -> None:
    torch.manual_seed(0)
    module, tokens = Tied().to(torch.bfloat16), torch.randint(50, (3, 5))
    with torch.device("meta"):
        empty = Tied().to(torch.bfloat16)
    empty.rates = module.rates
    state = {name: tensor for name, tensor in module.state_dict().items() if name != "head.weight"}
    path = tmp_path / "model.safetensors"
    if shards:
        monkeypatch.setattr(trainable_graph, "LARGE", 0)
        places = {name: f"{i % 2}.safetensors" for i, name in enumerate(state)}
        for file in ("0.safetensors", "1.safetensors"):
            save_file({name: state[name] for name in state if places[name] == file}, tmp_path / file)
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": places}))
    else:
        save_file(state, path)
    parts, handle = split_module(empty, {"tokens": tokens}, init="scaled", weights=path)
    want, other = split_module(module, {"tokens": tokens}, init="scaled")
    with pytest.raises(UsageError, match="torchscript can't export a module on the meta device; choose the exporter"):
        split_module(empty, tokens, exporter="torchscript", weights=path)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    for part, same in zip(parts, want, strict=True):
        for name, tensor in same.state_dict().items():
            assert torch.equal(part.state_dict()[name], tensor), name
        torch.testing.assert_close(part(tokens), same(tokens=tokens))
    for keep in ((), True):
        merged, expected = handle.merge(keep=keep), other.merge(keep=keep)
        assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
    empty.load_state_dict(merged, assign=True)
    module.load_state_dict(merged)
    assert torch.equal(empty.eval()(tokens)["logits"], module.eval()(tokens)["logits"])


def test_parts_whose_layers_were_changed_are_refused() -> None:
    parts, handle = split_module(LeNet(), torch.randn(2, 1, 20, 20))
    quantized = [{**part.state_dict(), "fc1.weight": part.fc1.weight.detach().to(torch.int8)} for part in parts]
    packed = [{**part.state_dict(), "fc1.weight": (torch.qint8, None)} for part in parts]
    for states in (quantized, packed):
        with pytest.raises(MergeError, match=r"part 0 has no 'fc1.weight' of floats; undo what changed its layers"):
            handle.merge(states)
    for part in parts:
        part.fc1 = nn.Sequential(part.fc1, nn.Linear(6, 6))
    with pytest.raises(
        MergeError, match=r"part 0 has no 'fc1.bias' of floats; undo what changed its layers \(adapters, quant"
    ):
        handle.merge()


def test_parts_are_left_as_modules_are_made() -> None:
    module = LeNet().eval()
    parts, _ = split_module(module, torch.randn(1, 1, 20, 20))
    assert all(part.training for part in parts)
    assert not module.training
    assert copy.deepcopy(parts[0])(torch.randn(3, 1, 20, 20)).shape == (3, CLASSES)


def test_optimizers_that_do_not_fit() -> None:
    module = LeNet()
    parts, handle = split_module(module, torch.randn(2, 1, 20, 20))
    adam, sgd = torch.optim.Adam(parts[0].parameters()), torch.optim.SGD(module.parameters())
    with pytest.raises(UsageError, match="the optimizers are Adam and SGD; use the same for all parts and the target"):
        handle.merge_optimizer([adam, adam], sgd)
    adams = [torch.optim.Adam(part.parameters()) for part in parts]
    for part, optimizer in zip(parts, adams, strict=True):
        learn(part, optimizer, NETWORKS["lenet"][1], steps=1)
    with pytest.raises(UsageError, match="the target remembers max_exp_avg_sq, and the parts'"):
        handle.merge_optimizer(adams, torch.optim.Adam(module.parameters(), amsgrad=True))
    with pytest.raises(UsageError, match="1 optimizers for 2 parts"):
        handle.merge_optimizer([sgd], sgd)


def test_weight_without_a_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def renaming(module: nn.Module, *options: Any) -> Draft:
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.get_parameter("fc1.weight").mul_(2)
        return exported(other, *options)

    monkeypatch.setattr(home, "exported", renaming)
    with pytest.raises(OnnxpartError, match=r"the exporter made the weight 'fc1.weight' of the module's parameters"):
        split_module(LeNet(), torch.randn(2, 1, 20, 20))


class Featured(nn.Module):
    """Returns what it computes its results of, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.two(self.one(x).relu()).relu()
        logits = self.out(features)
        return {"loss": logits.logsumexp(1).mean(), "logits": logits, "features": features}


def test_report_says_which_results_keep_parts_from_being_smaller() -> None:
    module, x = Featured(), torch.randn(5, 4)
    _, handle = split_module(module, x)
    told = "features: what is returned can't be divided; outputs=['loss', 'logits'] makes smaller parts"
    assert handle.report().splitlines()[1] == told
    _, smaller = split_module(module, x, outputs=["loss", "logits"])
    assert smaller.split.plan.parameters(0) < handle.split.plan.parameters(0)
    assert "smaller" not in smaller.report()
