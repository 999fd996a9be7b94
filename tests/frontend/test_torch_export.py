"""What PyTorch's own exporters do to a network is undone where the file proves it, and said elsewhere."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from onnxpart import load, split, verify
from onnxpart.frontend.torch_export import advice, untie
from onnxpart.torch import export
from tests.networks.running import Array, run_onnx

Exporter = Literal["dynamo", "torchscript"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.wide, self.inner = nn.LayerNorm(8), nn.Linear(8, 12), nn.LayerNorm(12)
        self.narrow, self.behind = nn.Linear(12, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(self.wide(self.before(x))))
        return self.behind(x + self.narrow(h))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A language model whose embedding is its last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(9, 8), Block(), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)))  # type: ignore[no-any-return]


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).mean((2, 3)))  # type: ignore[no-any-return]


def blocks() -> nn.Module:
    return nn.Sequential(Block(), Block(), nn.Linear(8, 3))


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "blocks": (blocks, lambda: torch.randn(2, 8)),
    "tied": (Tied, lambda: torch.randint(0, 9, (2, 5))),
    "images": (Images, lambda: torch.randn(2, 3, 6, 6)),
}


@cache
def plain(name: str, exporter: Exporter) -> bytes:
    """What most people do first: torch.onnx.export with nothing said."""
    torch.manual_seed(0)
    make, inputs = FORMS[name]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            file = io.BytesIO()
            if exporter == "dynamo":
                program = torch.onnx.export(make().eval(), (inputs(),), dynamo=True, verbose=False)
                assert program is not None
                return program.model_proto.SerializeToString()
            torch.onnx.export(make().eval(), (inputs(),), file, dynamo=False)  # type: ignore[arg-type]
            return file.getvalue()
    finally:
        logging.disable(logging.NOTSET)


def model(name: str, exporter: Exporter) -> ModelProto:
    return ModelProto.FromString(plain(name, exporter))


def test_equal_norms_are_parameters_of_their_own_again() -> None:
    proto = model("blocks", "dynamo")
    before = {tensor.name for tensor in proto.graph.initializer}
    assert "0.behind.weight" not in before
    made = untie(proto)
    norms = {
        f"{i}.{norm}.{kind}" for i in (0, 1) for norm in ("before", "inner", "behind") for kind in ("weight", "bias")
    }
    assert set(made) == norms - before
    onnx.checker.check_model(proto, full_check=True)
    x: dict[str, Array] = {"input": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run_onnx(proto, x)[0], run_onnx(model("blocks", "dynamo"), x)[0])
    assert norms <= load(model("blocks", "dynamo")).initializers.keys()
    assert not advice(proto)
    assert not untie(proto)


def test_each_reads_its_own() -> None:
    proto = model("blocks", "dynamo")
    untie(proto)
    read = [list(node.input[1:]) for node in proto.graph.node if node.op_type == "LayerNormalization"]
    assert read == [
        [f"{i}.{norm}.weight", f"{i}.{norm}.bias"] for i in (0, 1) for norm in ("before", "inner", "behind")
    ]


def test_what_is_tied_stays_so() -> None:
    proto = model("tied", "dynamo")
    assert not {"embed.weight", "head.weight"} & set(untie(proto))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_networks_divide_as_before(exporter: Exporter) -> None:
    done = split(model("blocks", exporter), 2)
    assert verify(done.analysis, done.plan).holds


@pytest.mark.parametrize(
    ("name", "exporter", "words"),
    [
        ("blocks", "torchscript", "one parameter of several that were equal or tied ("),
        ("tied", "dynamo", "several parameters of one that is tied (head.weight = "),
        ("images", "dynamo", "batch norms were folded"),
        ("images", "torchscript", "batch norms were folded"),
    ],
)
def test_the_rest_is_said(name: str, exporter: Exporter, words: str) -> None:
    (sentence,) = [sentence for sentence in advice(model(name, exporter)) if words in sentence]
    assert "onnxpart.torch.export" in sentence


@pytest.mark.parametrize("name", FORMS)
def test_exports_for_training_need_no_advice(name: str, tmp_path: Path) -> None:
    make, inputs = FORMS[name]
    export(make(), inputs(), tmp_path / "model.onnx")
    found = load(tmp_path / "model.onnx").proto
    assert advice(found) == []
    assert untie(found) == []


def test_models_of_others_are_left_alone() -> None:
    proto = model("blocks", "dynamo")
    for node in proto.graph.node:
        del node.metadata_props[:]
    assert untie(proto) == []
