"""Modules as files to train from, by both exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from onnxpart import split
from onnxpart.errors import ModelError, OnnxpartError, UsageError
from onnxpart.ir.trainable import frozen
from onnxpart.torch import export, import_onnx
from onnxpart.torch.importer.module import parameters

EXPORTERS = ("torchscript", "dynamo")


class Tokens(nn.Module):
    """Convolution, batch norm, both forms of dropout, a linear layer over three axes, a buffer and unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.mix, self.head, self.unused = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(2, 2)
        self.register_buffer("scale", torch.rand(6) + 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.norm(self.conv(x)))).flatten(2).transpose(1, 2)
        y = F.dropout(self.mix(y), 0.2, self.training) * self.scale
        return self.head(y).mean(1)


class Stacked(nn.Module):
    """Recurrent layers with dropout between them."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(3, 4, 2, batch_first=True, dropout=dropout), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Attends(nn.Module):
    """Multi-head attention of torch's own, whose three projections are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left: Tensor, right: Tensor, last: int = 0, *, far: bool = False) -> tuple[Tensor, Tensor]:
        left = left * (1 + last) if not far else right
        return self.a(left) * self.b(right), self.b(right)


NETWORKS = {
    "tokens": (Tokens, (2, 3, 6, 6), {"BatchNormalization": 1, "Dropout": 2}),
    "lstm": (lambda: Stacked(0.0), (2, 5, 3), {"LSTM": 2}),
    "attention": (Attends, (2, 5, 8), {"LayerNormalization": 2, "Dropout": 4}),
}


def run(path: Path, **inputs: Tensor) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_and_names_stay(name: str, exporter: str, tmp_path: Path) -> None:
    build, shape, layers = NETWORKS[name]
    module, path = build(), tmp_path / "m.onnx"
    export(module, torch.randn(shape), path, exporter=exporter)

    graph = onnx.load(path).graph
    for op_type, count in layers.items():
        assert sum(node.op_type == op_type for node in graph.node) == count, op_type
    state = module.state_dict()
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for key, array in held.items():
        np.testing.assert_array_equal(array, state[key].numpy())
    used = {key for key, _ in module.named_parameters() if not key.startswith("unused.")}
    assert used | {key for key in state if "running" in key} == set(held)

    x = torch.randn(3, *shape[1:])  # another batch than the example's
    (result,) = run(path, **{graph.input[0].name: x})
    torch.testing.assert_close(result, module.eval()(x).detach(), rtol=1e-5, atol=1e-6)
    assert graph.output[0].name == "output"


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_stays_acts_in_training(exporter: str, tmp_path: Path) -> None:
    export(Tokens(), torch.randn(2, 3, 6, 6), tmp_path / "m.onnx", exporter=exporter)
    module, x = import_onnx(tmp_path / "m.onnx"), torch.randn(4, 3, 6, 6)
    assert not torch.equal(module(x), module(x))
    mean = dict(module.named_buffers())["norm.running_mean"]
    before = mean.clone()
    module(x)
    assert not torch.equal(mean, before)
    assert "scale" not in dict(module.named_parameters())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_module_and_terminal_are_left_as_they_were(
    exporter: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = Tokens().eval()
    module.drop.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    generator = torch.random.get_rng_state()
    export(module, torch.randn(1, 3, 6, 6, generator=torch.Generator()), tmp_path / "m.onnx", exporter=exporter)
    assert [child.training for child in module.modules()] == [child is module.drop for child in module.modules()]
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_inputs_by_name(exporter: str, tmp_path: Path) -> None:
    module, left, right = Two(), torch.randn(2, 3), torch.randn(2, 2)
    export(module, {"right": right, "left": left}, tmp_path / "m.onnx", exporter=exporter)
    assert "forward" not in vars(module)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [value.name for value in graph.input] == ["left", "right"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]
    for ours, theirs in zip(run(tmp_path / "m.onnx", left=left, right=right), module(left, right), strict=True):
        torch.testing.assert_close(ours, theirs.detach())


def test_input_of_a_parameters_name(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.weight

    export(Scaled(), torch.ones(2, 3), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [value.name for value in graph.input] == ["weight_1"]
    assert [tensor.name for tensor in graph.initializer] == ["weight"]


def test_the_second_exporter_does_what_the_first_cannot(tmp_path: Path) -> None:
    module, x = Stacked(0.2), torch.randn(2, 5, 3)
    with pytest.raises(OnnxpartError, match=r"Stacked can't be exported: torchscript: Unsupported.*dropout"):
        export(module, x, tmp_path / "m.onnx", exporter="torchscript")
    export(module, x, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert sum(node.op_type == "Dropout" for node in graph.node) == 1
    assert {tensor.name for tensor in graph.initializer} == set(module.state_dict())


class Wordless(nn.Linear):
    """Fails without a word."""

    def forward(self, _: Tensor) -> Tensor:
        raise AssertionError


def test_module_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match=r"torchscript: mat1 and mat2.*dynamo: .*Check that it runs"):
        export(nn.Linear(3, 2), torch.ones(2, 4), tmp_path / "m.onnx")
    with pytest.raises(OnnxpartError, match=r"Wordless can't be exported: torchscript: AssertionError\. Check"):
        export(Wordless(3, 2), torch.ones(2, 3), tmp_path / "m.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'trace' is unknown; choose one of auto, torchscript, dynamo"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "m.onnx", exporter="trace")
    with pytest.raises(UsageError, match="the example inputs are Tensor, int"):
        export(nn.Linear(3, 2), (torch.ones(2, 3), 1), tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="can't be written"):
        export(nn.Linear(3, 2), torch.ones(2, 3), tmp_path / "absent" / "m.onnx")


class Branches(nn.Module):
    """What it computes depends on the values that come in, which tracing can't see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class Counted(nn.Module):
    """A size as a number of Python's, which tracing takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.reshape(int(x.shape[0]), 4))


class Drawn(nn.Module):
    """A dropout that is always active."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.a(x), 0.5, training=True)


def test_what_tracing_misses_is_found(tmp_path: Path) -> None:
    x, path = torch.ones(2, 3), tmp_path / "m.onnx"
    with pytest.raises(OnnxpartError, match="the module takes a number out of what it computes") as e:
        export(Branches(), x, path)
    assert "dynamo: Could not guard on data-dependent expression" in str(e.value)
    with pytest.raises(OnnxpartError, match="the exported model doesn't run on a larger batch"):
        export(Counted(), torch.randn(2, 2, 2), path)
    assert not path.exists()


class Skipped(nn.Module):
    """A branch that training leaves out for some samples, by a mask with or without the mean of one."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.a, self.scaled = nn.Linear(4, 4), scaled

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if not self.training:
            return x + y
        mask = torch.empty(x.shape[0], 1).bernoulli_(0.75)
        return x + y * (mask.div_(0.75) if self.scaled else mask)


def test_stochastic_depth_is_a_dropout(tmp_path: Path) -> None:
    module, x = Skipped(scaled=True), torch.randn(200, 4)
    export(module, x, tmp_path / "m.onnx")
    assert "Dropout" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    imported = import_onnx(tmp_path / "m.onnx")
    torch.testing.assert_close(imported.eval()(x), module.eval()(x))
    share = ((imported.train()(x) - x) / module.a(x)).detach()
    skipped = (share.abs() < 1e-3).all(1)
    torch.testing.assert_close(share[~skipped], torch.full((int((~skipped).sum()), 4), 1 / 0.75), rtol=1e-3, atol=1e-3)
    assert 20 < skipped.sum() < 80


def test_random_numbers_of_training_that_evaluation_would_keep(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match="torchscript: the exported model gives something other than the module"):
        export(Skipped(scaled=False), torch.randn(2, 4), tmp_path / "m.onnx", exporter="torchscript")

    class Noisy(Skipped):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + (torch.rand_like(x) if self.training else 0)

    with pytest.raises(OnnxpartError, match=r"RandomUniform.* is random in evaluation, too, so remove it"):
        export(Noisy(scaled=True), torch.randn(2, 4), tmp_path / "m.onnx")


def test_random_results_are_taken_on_trust(tmp_path: Path) -> None:
    export(Drawn(), torch.randn(32, 4), tmp_path / "m.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node][-1] == "Dropout"


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_frozen_parameters_stay_so(tmp_path: Path, exporter: str) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    module[2].requires_grad_(False)
    export(module, torch.randn(3, 4), tmp_path / "m.onnx", exporter=exporter)
    assert frozen(onnx.load_model(tmp_path / "m.onnx")) == {"2.weight", "2.bias"}
    (part, _) = split(tmp_path / "m.onnx", 2).parts
    held = {name for name, p in parameters(import_onnx(part)).items() if not p.requires_grad}
    assert held == {"2.weight", "2.bias"}
    module.requires_grad_(True)
    export(module, torch.randn(3, 4), tmp_path / "m.onnx", exporter=exporter)
    assert not onnx.load_model(tmp_path / "m.onnx").metadata_props
