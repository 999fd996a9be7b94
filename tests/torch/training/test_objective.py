"""Losses: taken where they are exact, right in value and metric, and refusing targets that don't fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional as F

from onnxpart.errors import DataError, OnnxpartError, UsageError
from onnxpart.torch import import_onnx
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.data.sources import Data
from onnxpart.torch.training.losses import Loss
from onnxpart.torch.training.objective import Objective, find_objective
from tests.networks.net import Net

SAMPLES = 5


def network(*functions: str, outputs: tuple[str, ...] = (), opset: int = 17, **attributes: Any) -> onnx.ModelProto:
    """x [N, 4] -> linear value 'logits' [N, 3] -> output functions."""
    net = Net(("x", ["N", 4]), opset=opset)
    name = net.linear("x", 4, 3, name="logits")
    for function in functions:
        name = net.op(function, name, **(attributes if function.endswith("Softmax") else {}))
    return net.model(*(outputs or (name,)))


def data(target: Tensor, test: Tensor | None = None, features: int = 4) -> Data:
    x = torch.rand(len(target), features, generator=torch.Generator().manual_seed(0))
    held = None if test is None else TensorLoader((x[: len(test)],), test, 2, shuffle=False)
    return Data(TensorLoader((x,), target, SAMPLES, shuffle=False), held)


def bound(loss: str, model: onnx.ModelProto, samples: Data) -> tuple[Objective, Loss, Data, Tensor]:
    objective = find_objective(loss, model)
    module = import_onnx(objective.cut(model))
    found, prepared = objective.bind(module, samples)
    (inputs,), _ = next(prepared.train.epoch(0))
    return objective, found, prepared, module.eval()(inputs).detach()


def refused(loss: str, model: onnx.ModelProto, samples: Data, kind: type[OnnxpartError] = DataError) -> str:
    with pytest.raises(kind) as error:
        bound(loss, model, samples)
    assert str(error.value).endswith(".")
    return str(error.value)


LABELS = torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("functions", [(), ("Softmax",), ("LogSoftmax",), ("Softmax", "Log"), ("Softmax", "Identity")])
def test_cross_entropy_is_taken_at_the_logits(functions: tuple[str, ...]) -> None:
    model = network(*functions)
    objective, loss, prepared, output = bound("cross_entropy", model, data(LABELS.to(torch.uint8)))
    assert objective.value == "logits"
    assert bool(objective.note) == bool(functions)
    (inputs,), target = next(prepared.train.epoch(0))
    assert loss(output, target) == F.cross_entropy(output, LABELS)
    assert loss.metric == "error rate"
    assert loss.measure(output, target) == (output.argmax(1) != LABELS).float().mean()
    written = ort.InferenceSession(model.SerializeToString()).run(None, {"x": inputs.numpy()})[0]
    np.testing.assert_allclose(objective.finished(output), written, rtol=1e-5, atol=1e-6)


def test_cross_entropy_far_from_the_logits_would_be_wrong() -> None:
    model = network("Softmax")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(1e3 * onnx.numpy_helper.to_array(tensor), tensor.name))
    _, loss, prepared, output = bound("cross_entropy", model, data(LABELS))
    assert torch.isinf(output.softmax(1).log()).any()
    assert torch.isfinite(loss(output, next(prepared.train.epoch(0))[1]))


def test_bce_is_taken_in_front_of_the_sigmoid() -> None:
    target = torch.rand(SAMPLES, 3) > 0.5
    objective, loss, prepared, output = bound("bce", network("Sigmoid"), data(target))
    assert objective.value == "logits"
    prepared_target = next(prepared.train.epoch(0))[1]
    torch.testing.assert_close(loss(output, prepared_target), F.binary_cross_entropy(output.sigmoid(), target.float()))
    assert loss.measure(output, prepared_target) == ((output.sigmoid() > 0.5) != target).float().mean()
    torch.testing.assert_close(objective.finished(output), output.sigmoid())


def test_mse_and_how_much_of_the_variance_it_leaves() -> None:
    target, test = torch.rand(SAMPLES, 3, dtype=torch.float64), torch.rand(3, 3)
    objective, loss, prepared, output = bound("mse", network("Sigmoid"), data(target, test))
    assert (objective.value, objective.note, loss.metric) == (objective.output, "", "R2")
    torch.testing.assert_close(loss(output, target), (output - target.float()).square().mean())
    assert prepared.test is not None
    measured = torch.stack([loss.measure(output[2 * i : 2 * i + 2][: len(t)], t) * len(t)
                            for i, (_, t) in enumerate(prepared.test.epoch(0))]).sum() / 3  # fmt: skip
    expected = 1 - (output[:3] - test).square().sum() / (test - test.mean(0)).square().sum()
    torch.testing.assert_close(measured, expected)
    assert bound("mse", network(), data(target, torch.ones(2, 3)))[1].metric == ""
    assert bound("mse", network(), data(target))[1].metric == ""


def test_targets_get_the_outputs_shape() -> None:
    net = Net(("x", ["N", 4]))
    model = net.model(net.linear("x", 4, 1))
    assert next(bound("mse", model, data(torch.rand(SAMPLES)))[2].train.epoch(0))[1].shape == (SAMPLES, 1)


def absolute(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def test_a_loss_of_the_users() -> None:
    target = torch.rand(SAMPLES, 3)
    objective, loss, _, output = bound(f"{__name__}:absolute", network("Softmax"), data(target))
    assert objective.value == objective.output
    assert (loss.metric, loss(output, target)) == ("", absolute(output, target))
    sentence = refused("nowhere_at_all:f", network(), data(target), UsageError)
    assert sentence.startswith("the loss 'nowhere_at_all:f' can't be imported (ModuleNotFoundError: ")


def test_classes_of_sequences_are_the_last_axis() -> None:
    net = Net(("x", ["N", "T", 4]))
    model = net.model(net.op("MatMul", "x", net.random("w", 4, 3)))
    x, labels = torch.rand(2, 5, 4), torch.randint(0, 3, (2, 5))
    samples = Data(TensorLoader((x,), labels, 2, shuffle=False), None)
    _, loss, prepared, output = bound("cross_entropy", model, samples)
    target = next(prepared.train.epoch(0))[1]
    torch.testing.assert_close(loss(output, target), F.cross_entropy(output.flatten(0, 1), labels.flatten()))
    assert loss.measure(output, target) == (output.argmax(2) != labels).float().mean()


@pytest.mark.parametrize(
    ("loss", "target", "sentence"),
    [
        ("cross_entropy", torch.tensor([0, 1, 2, 3, 0]), "there is a label 3, but the output has the classes 0 to 2;"),
        (
            "cross_entropy",
            torch.tensor([0, -1, 2, 1, 0]),
            "there is a label -1, but the output has the classes 0 to 2;",
        ),
        ("cross_entropy", torch.rand(5), "the labels have type float32; cross_entropy takes classes as integers."),
        ("cross_entropy", torch.zeros(5, 2, dtype=torch.int64), "a sample has labels [2], the output [3] wants []"),
        ("bce", torch.full((5, 3), 1.5), "there is a target 1.5; bce takes probabilities from 0 to 1."),
        ("bce", torch.zeros(5), "a sample has targets [], the output is [3]; give them that shape."),
        ("mse", torch.zeros(5, 4), "a sample has targets [4], the output is [3]; give them that shape."),
        ("mse", torch.full((5, 3), math.nan), "there are targets that are NaN or infinite; leave those samples out."),
    ],
)
def test_targets_that_do_not_fit(loss: str, target: Tensor, sentence: str) -> None:
    assert refused(loss, network(), data(target)).startswith(sentence)
    held = torch.zeros(5, 3) if loss != "cross_entropy" else LABELS
    assert refused(loss, network(), data(held, target)).startswith(sentence)


def test_graphs_that_do_not_fit() -> None:
    assert refused("hinge", network(), data(LABELS), UsageError).startswith("the loss 'hinge' isn't known; give cross")
    two = Net(("x", ["N", 4]))
    outputs = [two.linear("x", 4, 3, name=name) for name in ("left", "right")]
    assert refused("mse", two.model(*outputs), data(LABELS), UsageError).startswith(
        "the network's outputs are 'left', 'right', and one is trained; cut it down to that one"
    )
    sentence = refused("mse", network(), data(LABELS, features=5))
    assert sentence.startswith("the network can't compute the first batch (")
    flat = Net(("x", ["N", 4]))
    assert "needs an axis of classes" in refused(
        "cross_entropy",
        flat.model(flat.op("ReduceMean", flat.linear("x", 4, 3), axes=[1], keepdims=0)),
        data(LABELS),
    )


def test_probabilities_are_no_logits() -> None:
    net = Net(("x", ["N", 4]))
    exponentials = net.op("Exp", net.linear("x", 4, 3, name="logits"))
    model = net.model(net.op("Div", exponentials, net.op("ReduceSum", exponentials, net.ints(1), keepdims=1), name="p"))
    assert refused("cross_entropy", model, data(LABELS), UsageError).startswith("the output 'p' holds probabilities, ")


def test_an_old_softmax_over_several_axes() -> None:
    net = Net(("x", ["N", 4, 2, 2]), opset=12)
    model = net.model(net.op("Softmax", net.op("Conv", "x", net.random("w", 3, 4, 1, 1)), axis=1))
    samples = Data(TensorLoader((torch.rand(2, 4, 2, 2),), torch.zeros(2, 2, 2, dtype=torch.int64), 2), None)
    assert "goes over several axes, as before opset 13" in refused("cross_entropy", model, samples, UsageError)


def test_outputs_that_say_the_same_are_one() -> None:
    model = network("Softmax", outputs=("logits", "softmax"))
    objective = find_objective("cross_entropy", model)
    assert (objective.value, objective.output) == ("logits", "softmax")
    labelled = network("Softmax")
    labelled.graph.node.append(helper.make_node("ArgMax", ["softmax"], ["label"], axis=1, keepdims=0))
    labelled.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
    assert find_objective("cross_entropy", labelled).value == "logits"
