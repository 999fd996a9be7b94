"""The importer's LSTM, GRU and RNN against ONNX Runtime, in every form, by torch's own operator and step by step."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from onnx import ModelProto

from onnxpart.errors import OnnxpartError
from onnxpart.torch import import_onnx
from onnxpart.torch.importer.module import parameters
from onnxpart.torch.importer.operators import recurrent
from tests.networks.net import Net
from tests.networks.recurrent import BATCH, SIZE, Form, forms, network, recur, time_first

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
RNG = np.random.default_rng(0)


def inputs(model: ModelProto, steps: int = 3) -> dict[str, np.ndarray]:
    """Random inputs; lengths are one less than all steps for the first sequence."""
    result: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [d.dim_value or steps for d in value.type.tensor_type.shape.dim]
        result[value.name] = RNG.standard_normal(shape).astype(np.float32)
    if "lengths" in result:
        result["lengths"] = np.array([steps - 1, steps], np.int32)
    return result


def run_onnx(model: ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(time_first(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def run_torch(module: torch.nn.Module, feeds: dict[str, np.ndarray]) -> torch.Tensor:
    result = module(*(torch.from_numpy(array) for array in feeds.values()))
    assert isinstance(result, torch.Tensor)
    return result


def trial(form: Form, opset: int = 17) -> tuple[ModelProto, dict[str, np.ndarray]]:
    model = network(form, opset)
    return model, inputs(model)


@settings(max_examples=150, deadline=None)
@given(drawn=forms())
def test_every_form_equals_onnx_runtime(drawn: tuple[Form, int]) -> None:
    model, feeds = trial(*drawn)
    module = import_onnx(model)
    y = run_torch(module, feeds)
    np.testing.assert_allclose(y.detach().numpy(), run_onnx(model, feeds), rtol=1e-4, atol=1e-5)
    (y**2).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in parameters(module).values())


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_torchs_own_operator_equals_the_steps(op_type: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = {"linear_before_reset": 1} if op_type == "GRU" else {}
    form = Form(op_type, direction, "yhc" if op_type == "LSTM" else "yh", attributes=attributes, layout=1, h="learned")
    model, feeds = trial(form)
    module = import_onnx(model)
    gradients = []
    for by_steps in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(recurrent, "_is_transformed", lambda *_, answer=by_steps: answer)
            if by_steps:
                patch.setattr(recurrent, "_by_torch", None)
            else:
                patch.setattr(recurrent, "_by_steps", None)
            module.zero_grad()
            (run_torch(module, feeds) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in module.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_equal_parts_run_as_one_batch() -> None:
    model, feeds = trial(Form("LSTM", "bidirectional", "yhc", layout=1))
    modules = [import_onnx(model) for _ in range(2)]
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.add_(0.1)
    x = torch.from_numpy(feeds["x"])
    state = torch.func.stack_module_state(modules)
    stacked = torch.func.vmap(lambda p, b: torch.func.functional_call(modules[0], (p, b), (x,)))(*state)
    torch.testing.assert_close(stacked, torch.stack([module(x) for module in modules]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"activations": ["Softmax"]}, "'Softmax' isn't imported"),
        ({"activations": ["Affine"]}, "Affine needs activation_alpha"),
        ({"activations": ["Tanh", "Tanh"]}, "2 activations are the wrong number"),
        ({"direction": "sideways"}, "direction 'sideways'"),
    ],
)
def test_what_isnt_imported(attributes: dict[str, str | list[str]], reason: str) -> None:
    n = Net(("x", ("T", BATCH, 3)))
    recur(n, Form("RNN", attributes=attributes), "x", 3, {})
    with pytest.raises(OnnxpartError, match=f"node 'cell' \\(RNN\\): .*{reason}"):
        import_onnx(n.model("cell.y", shape=("T", 1, BATCH, SIZE)))
