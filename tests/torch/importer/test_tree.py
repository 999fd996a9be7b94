"""The tree of modules that names draw."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onnxpart.errors import OnnxpartError
from onnxpart.torch import import_onnx
from onnxpart.torch.importer.tree import Container, keys, plant
from onnxpart.torch.tensors import unescape
from tests.networks.net import Net

NAMES = {
    "enc.layers.0.norm1.weight": "enc.layers.0.norm1.weight",
    "gain": "gain",
    "onnx::MatMul_12": "onnx::MatMul_12",
    "/enc/layers.0/Constant_output_0": "/enc/layers%2E0/Constant_output_0",
    "a..b": "a%2E%2Eb",
    "enc.type.weight": "enc.%74ype.weight",
    "program.weight": "%70rogram.weight",
    "scale": "scale",
    "scale.zero": "scale%2Ezero",
    "100%.weight": "100%25%2Eweight",
}


def test_keys_are_the_names_where_torch_can_have_them() -> None:
    names = list(NAMES)
    found = keys(names, ["program"])
    assert found == {name: NAMES[name] for name in names}
    assert {name: unescape(key) for name, key in found.items()} == {name: name for name in names}
    root = nn.Module()
    plant(root, {key: torch.ones(()) for key in found.values()})
    assert set(root.state_dict()) == set(found.values())


def test_what_is_numbered_from_zero_on_is_a_list() -> None:
    root = nn.Module()
    names = ["a.1.0.weight", "a.0.0.weight", "b.0.bias", "b.2.bias", "c.0.bias", "c.gain"]
    plant(root, {name: nn.Parameter(torch.ones(())) for name in names})
    kinds = {name: type(module) for name, module in root.named_modules() if name}
    assert [name for name, kind in kinds.items() if kind is nn.ModuleList] == ["a", "a.0", "a.1"]
    assert {kind for name, kind in kinds.items() if name not in ("a", "a.0", "a.1")} == {Container}
    assert {name for name, _ in root.named_parameters()} == set(names)


def test_a_container_says_that_it_is_not_called() -> None:
    container = Container()
    for call in (
        container,
        container.register_forward_hook,
        container.register_forward_pre_hook,
        container.register_full_backward_hook,
    ):
        with pytest.raises(OnnxpartError, match="this module only holds layers and tensors, which the graph"):
            call(torch.ones(1))


def test_a_container_takes_the_hooks_of_deepspeed_which_gather_what_the_graph_reads() -> None:
    def hook(*_: object) -> None:
        raise AssertionError

    hook.__module__ = "deepspeed.runtime.zero.parameter_offload"
    container = Container()
    for kind in ("forward_pre", "forward", "full_backward_pre", "full_backward"):
        getattr(container, f"register_{kind}_hook")(hook)
        held = getattr(container, f"_{kind}_hooks".replace("full_", ""))
        assert list(held.values()) == [hook]
    hook.__module__ = "deepspeedy"
    for other in (hook, functools.partial(hook)):
        with pytest.raises(OnnxpartError, match="this module only holds"):
            container.register_forward_hook(other)


def test_names_may_be_keywords_of_python() -> None:
    n = Net(("x", ("N", 3)))
    model = n.model(n.linear(n.linear("x", 3, 4, name="in"), 4, 2, name="class.if"), shape=("N", 2))
    module, x = import_onnx(model), torch.randn(5, 3)
    assert [name for name, _ in module.named_parameters()] == [
        "in.weight",
        "in.bias",
        "class.if.weight",
        "class.if.bias",
    ]
    again = pickle.loads(pickle.dumps(module))
    own = dict(module.named_parameters())
    wanted = F.linear(F.linear(x, own["in.weight"], own["in.bias"]), own["class.if.weight"], own["class.if.bias"])
    for each in (module, again):
        torch.testing.assert_close(each(x), wanted)
