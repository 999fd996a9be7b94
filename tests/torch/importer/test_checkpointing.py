"""Activations that are kept at residual blocks, and computed again within them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch import ImportedModule, split_module
from onnxpart.torch.importer.checkpointing import Checkpointed
from tests.networks.forms import IMAGES, WORDS
from tests.networks.plain import CLASSES, GPT2, LeNet

torch.set_num_threads(1)  # several threads are slow where other work shares the cores


class Residual(nn.Module):
    """Three blocks of convolutions and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, CLASSES)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def kept(module: nn.Module, x: Tensor) -> int:
    """How many numbers are kept for the gradients, parameters left out."""
    own = {parameter.data_ptr() for parameter in module.parameters()}
    found = dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(found.values())


def trained(part: ImportedModule, x: Tensor) -> dict[str, Tensor]:
    """The state after two steps in which dropout draws the same."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(part(x), torch.arange(len(x)) % CLASSES).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return part.state_dict()


@pytest.mark.parametrize(("build", "x"), [(Residual, IMAGES), (GPT2, WORDS % CLASSES)], ids=["residual", "gpt2"])
def test_training_is_the_same_and_keeps_less(build: type[nn.Module], x: Tensor) -> None:
    """Gradients, dropout and running statistics: what is computed twice counts once."""
    torch.manual_seed(0)
    (plain, _), _ = split_module(build(), x, 2)
    part = copy.deepcopy(plain)
    part.activation_checkpointing_enable()
    assert isinstance(copy.deepcopy(part).program, Checkpointed)
    assert isinstance(pickle.loads(pickle.dumps(part)).program, Checkpointed)
    assert kept(part, x) < 0.5 * kept(plain, x)
    assert kept(part.eval(), x) == kept(plain.eval(), x)
    part.train(), plain.train()
    for (name, tensor), wanted in zip(trained(part, x).items(), trained(plain, x).values(), strict=True):
        assert torch.equal(tensor, wanted), name
    part.activation_checkpointing_disable()
    assert not isinstance(part.program, Checkpointed)


def test_a_node_that_fails_in_a_block_is_named() -> None:
    (part, _), _ = split_module(GPT2(), WORDS % CLASSES, 2)
    part.activation_checkpointing_enable()
    with torch.no_grad():
        part.get_parameter("layers.1.fc.weight").data = torch.ones(3, 3)
    with pytest.raises(OnnxpartError, match=r"layers.1/fc/Add"):
        part(WORDS % CLASSES)


def test_what_cannot_be_checkpointed() -> None:
    (part, _), _ = split_module(LeNet(), torch.randn(2, 1, 20, 20), 2)
    with pytest.raises(UsageError, match="no residual blocks, between which one tensor is handed on; train it without"):
        part.activation_checkpointing_enable()
    with pytest.raises(UsageError, match="checkpointed at every residual block; leave out the options"):
        part.activation_checkpointing_enable(every_n_layers=2)
