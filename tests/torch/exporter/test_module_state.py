"""Modules without values, and with buffers that `forward` writes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations

from onnxpart.errors import OnnxpartError
from onnxpart.torch import import_onnx, split_module
from onnxpart.torch.exporter.export import exported
from onnxpart.torch.exporter.module_state import unchanged, uncompiled, values_of
from tests.networks.forms import Net, X


def test_a_module_without_values_is_refused() -> None:
    with pytest.raises(OnnxpartError, match=r"'0.weight' has no shape yet; run the module once on a batch"):
        values_of(nn.Sequential(nn.LazyLinear(3)), {})
    assert values_of(Net(), {}).keys() == Net().state_dict().keys()


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ({}, "'a.weight' is on the meta device, where it has no values; load the weights first, or name their files"),
        (
            {"a.weight": np.zeros((8, 5), np.float16)},
            r"'a.weight' is float16 \[8, 5\] in the file .* and float32 \[8, 4\] in",
        ),
    ],
)
def test_files_without_the_weights_of_a_module_are_refused(stored: dict[str, np.ndarray], problem: str) -> None:
    with pytest.raises(OnnxpartError, match=problem):
        values_of(Net().to("meta"), stored)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's own
@pytest.mark.parametrize("ready", [True, False])
def test_a_quantized_module_is_refused(ready: bool) -> None:
    module = Net()
    if ready:
        module.qconfig = quantization.get_default_qat_qconfig("x86")
        quantization.prepare_qat(module, inplace=True)
    else:
        quantization.quantize_dynamic(module, {nn.Linear}, inplace=True)
    with pytest.raises(OnnxpartError, match=r"'a\S*' is quantized, or made ready for it; split the module before that"):
        split_module(module, X)


def test_a_sharded_module_is_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        module = fully_shard(Net(), mesh=distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(OnnxpartError, match=r"'a.weight' is sharded, and its shards aren't divided; split the"):
            split_module(module, X)
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile's own
def test_parts_of_a_compiled_module_have_the_names_of_its_original() -> None:
    module = Net()
    compiled = torch.compile(module)
    assert uncompiled(compiled) is uncompiled(module) is module
    (part, _), handle = split_module(compiled, X, undivided=["a"])
    assert torch.equal(part.get_parameter("a.weight"), module.a.weight)
    parts, handle = split_module(compiled, X)
    assert dict(parts[0].named_parameters()).keys() == dict(module.named_parameters()).keys()
    compiled.load_state_dict(handle.merge())
    mean = torch.stack([part(X) for part in parts]).mean(0)
    torch.testing.assert_close(module(X), mean)
    torch.testing.assert_close(handle.whole()(X), mean)


def test_masked_places_of_an_encoder_are_what_they_are_in_training() -> None:
    """In evaluation torch's fast path makes them 0, so that a mean over places is another one."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1)

        def forward(self, x: Tensor, masked: Tensor) -> Tensor:
            return self.layers(x, src_key_padding_mask=masked).mean(1)

    module, inputs = Encoder(), (torch.randn(3, 4, 8), torch.arange(4).expand(3, 4) > 2)
    model = exported(module, inputs, "auto").model()
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(import_onnx(model)(*inputs), module.train()(*inputs))


class Counting(Net):
    """Counts by a new tensor, and reads the count where that is asked for."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.c(self.read(self.hidden(x), self.calls))


def test_the_module_is_left_as_it_was() -> None:
    module = Counting(lambda h, n: h).eval()
    before = module.calls
    state = torch.get_rng_state()
    with unchanged(module):
        module.train()
        module(X), torch.rand(3)
    assert module.calls is before
    assert module.calls == 0
    assert not module.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_buffers_that_forward_writes_and_reads_are_refused(exporter: str) -> None:
    with pytest.raises(OnnxpartError, match="forward writes the buffer 'calls' and computes with it, and a graph"):
        split_module(Counting(lambda h, n: h / n), X, exporter=exporter)


def test_why_no_exporter_can_write_a_module_is_said_alone() -> None:
    """Torchscript fails on it, too, in words of its own."""
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(8, 3)))
    with pytest.raises(OnnxpartError) as error:
        split_module(module, X)
    assert re.fullmatch(
        r"Sequential can't be exported: forward writes the buffer '2\.parametrizations\.weight\.0\._[uv]' and computes "
        r"with it, [^;]*; split the module without what writes it, [^;]*remove_parametrizations\)\.",
        str(error.value),
    )
