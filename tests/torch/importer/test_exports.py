"""What PyTorch exports, and the light models, imported: equal to ONNX Runtime, and every weight is trained."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from onnxpart.torch import import_onnx
from onnxpart.torch.exporter.export import exported as drafted
from onnxpart.torch.importer import import_onnx as importer
from onnxpart.torch.importer.module import parameters
from tests.networks import attentions, exported, exported_control, exported_sequences
from tests.networks.light import DIFFERENT, grouped, light
from tests.networks.running import run_onnx

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
Array = NDArray[Any]
NAMES = (*exported.NETWORKS, *attentions.NETWORKS)
DYNAMO = ("resnet", "group_norm", "attention")


def feeds(model: ModelProto) -> dict[str, Array]:
    result, rng = {}, np.random.default_rng(0)  # of its own: rounding differs from one draw to the next
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floats = tensor.elem_type == TensorProto.FLOAT
        result[value.name] = rng.standard_normal(shape).astype(dtype) if floats else rng.integers(1, 5, shape, dtype)
    if "lengths" in result:
        result["lengths"][:] = sorted(result["lengths"], reverse=True)
    return result


def check(model: ModelProto, inputs: dict[str, Array]) -> None:
    """The outputs equal ONNX Runtime's to 1e-5 of their spread; a gradient reaches every weight."""
    module = import_onnx(model).eval()
    result = module(*(torch.from_numpy(array) for array in inputs.values()))
    outputs = result if isinstance(result, tuple) else (result,)
    for ours, theirs in zip(outputs, run_onnx(model, inputs), strict=True):
        assert ours.shape == theirs.shape
        difference = np.abs(ours.detach().numpy().astype(np.float64) - theirs)
        assert difference.max() <= 1e-5 * max(float(np.std(theirs)), float(np.abs(theirs).max()) / 10)
    sum((y**2).sum() for y in outputs if y.requires_grad).backward()  # type: ignore[union-attr]
    without = [name for name, p in parameters(module).items() if p.grad is None or not p.grad.any()]
    assert not without
    if not {node.op_type for node in model.graph.node} & {"If", "Loop"}:  # a condition needs a value
        elsewhere = module.to("meta")(*(torch.from_numpy(array).to("meta") for array in inputs.values()))
        for y in elsewhere if isinstance(elsewhere, tuple) else (elsewhere,):
            assert y.device.type == "meta"  # nothing is left on the CPU, or torch would refuse to mix


LOST = pytest.mark.filterwarnings("ignore:.*export it for training")


@LOST
@pytest.mark.parametrize("name", NAMES)
def test_exports_of_torchscript(name: str) -> None:
    model = exported.export(name, "torchscript", 17)
    check(model, feeds(model))


@LOST
@pytest.mark.parametrize("name", DYNAMO)
@pytest.mark.parametrize("opset", [18, 23])
def test_exports_of_dynamo(name: str, opset: int) -> None:
    model = exported.export(name, "dynamo", opset)
    check(model, feeds(model))


@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 20)])
def test_a_network_that_lost_its_batch_norms_says_so_once(exporter: str, opset: int) -> None:
    model = exported.export("resnet", exporter, opset)
    importer._warn.cache_clear()  # noqa: SLF001
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for same in (model, model, model):
            import_onnx(same)
    (warning,) = caught
    assert "export it for training with onnxpart.torch.export" in str(warning.message)
    assert warning.filename == __file__


def test_other_networks_are_not_judged() -> None:
    importer._warn.cache_clear()  # noqa: SLF001
    for name in ("vgg", "group_norm", "unet"):  # the suite takes a warning for an error
        import_onnx(exported.export(name, "torchscript", 17))
    model = exported.export("resnet", "torchscript", 17)
    model.producer_name = "somebody"
    import_onnx(model)


@pytest.mark.parametrize("name", exported_sequences.SEQUENCES)
def test_exported_sequences(name: str) -> None:
    model = exported_sequences.export(name, "torchscript", 17)
    check(model, feeds(model))


@LOST
@pytest.mark.parametrize(
    "name", ["resnet", "shufflenet_v2", "unet", "attention", "fused_inner", "sdpa", "text_lstm", "gru"]
)
def test_equal_modules_are_trained_as_one_batch(name: str) -> None:
    """Gradients by torch.func of two stacked modules are those of each alone."""
    export = exported_sequences.export if name in exported_sequences.SEQUENCES else exported.export
    model = export(name, "torchscript", 17)
    modules = [import_onnx(model).eval() for _ in range(2)]
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.mul_(1.1)
    x = tuple(torch.from_numpy(array) for array in feeds(model).values())

    def loss(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(modules[0], (parameters, buffers), x).square().sum()  # type: ignore[no-any-return]

    gradients = torch.func.vmap(torch.func.grad(loss))(*torch.func.stack_module_state(modules))
    for i, module in enumerate(modules):
        module(*x).square().sum().backward()  # type: ignore[union-attr]
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None
            scale = max(1.0, parameter.grad.abs().max().item())
            torch.testing.assert_close(gradients[key][i], parameter.grad, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", [*exported_control.SCRIPTED, *exported_control.TRACED])
def test_exported_control_flow(name: str) -> None:
    model = exported_control.export(name)
    check(model, {key: np.abs(array) for key, array in feeds(model).items()})  # so the branch with weights is taken


@pytest.mark.parametrize("name", grouped(DIFFERENT))
def test_light_models(name: str) -> None:
    model = ModelProto()
    model.CopyFrom(light(name))
    softmax = model.graph.node[-1]
    if softmax.op_type == "Softmax":  # it would magnify rounding
        model.graph.output[0].name = softmax.input[0]
        model.graph.node.remove(softmax)
    check(model, feeds(model))


class Bent(nn.Module):
    """An activation behind a weight."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.weight, self.activation = nn.Parameter(torch.ones(8)), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x * self.weight)


BENDS = (
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-0.5, 2.0), nn.LeakyReLU(0.1), nn.PReLU(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Softshrink(0.5), nn.Hardshrink(0.5), nn.Softsign(),
)  # fmt: skip


@LOST
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("activation", BENDS, ids=str)
def test_an_activation_has_its_gradient_where_it_bends(activation: nn.Module, exporter: str) -> None:
    """Units that are zero for all samples, as in front of a ReLU6 behind a norm, are at a bend exactly."""
    module = Bent(activation).eval()
    other = import_onnx(drafted(module, torch.randn(4, 8), exporter).model()).eval()
    bends = torch.tensor([[-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0], [2.0] * 8])
    one, two = (bends.clone().requires_grad_() for _ in range(2))
    module(one).sum().backward()
    other(two).sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
