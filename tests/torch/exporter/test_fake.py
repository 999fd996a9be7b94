"""A module runs with fake tensors, and gets its own back."""

from __future__ import annotations

import torch
from torch import nn

from onnxpart.torch.exporter.fake import faked


def test_a_module_runs_without_values_and_gets_its_tensors_back() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).to("meta")
    module[2].weight = module[0].weight
    module[1].running_mean = torch.ones(4)
    module[0].bias.requires_grad_(False)
    before = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    with faked(module, {"x": torch.ones(3, 4)}) as inputs:
        assert (module(inputs["x"]).shape, module(inputs["x"]).device.type) == ((3, 4), "cpu")
        assert module[2].weight is module[0].weight
        assert [p.requires_grad for p in module.parameters()] == [True, False, True, True, True]
    after = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    assert all(name == other and tensor is old for (name, tensor), (other, old) in zip(after, before, strict=True))
