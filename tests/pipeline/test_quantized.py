"""Networks that are quantised by ONNX Runtime: activations are divided, integer weights are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxpart import PartitionError, analyse, load, plan, split, verify, why
from tests.networks.net import Array, Net


def network() -> ModelProto:
    n = Net(("x", ("N", 2, 8, 8)))
    h = n.op("Relu", n.conv("x", 2, 6, kernel=3, name="one"))
    h = n.op("MaxPool", n.op("Relu", n.conv(h, 6, 6, kernel=3, name="two")), kernel_shape=[2, 2])
    return n.model(n.linear(n.op("Flatten", n.op("GlobalAveragePool", h)), 6, 3, name="logits"), shape=("N", 3))


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Three random batches."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches: Iterator[dict[str, Array]] = iter(
            [{"x": rng.standard_normal((2, 2, 8, 8)).astype(np.float32)} for _ in range(3)]
        )

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


@pytest.fixture(params=[False, True], ids=["per tensor", "per channel"])
def quantized(request: pytest.FixtureRequest, tmp_path: Path) -> ModelProto:
    onnx.save_model(network(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "quantized.onnx",
        Batches(),
        quant_format=QuantFormat.QDQ,
        per_channel=request.param,
        weight_type=QuantType.QInt8,
    )
    return onnx.load_model(tmp_path / "quantized.onnx")


def test_integer_weights_are_refused_by_name(quantized: ModelProto) -> None:
    reason = "its weights are integers, which neither train nor divide by K: split before quantizing"
    analysis = analyse(load(quantized))
    assert set(analysis.barriers.values()) == {reason}
    assert len(analysis.barriers) == 6  # weight and bias of three layers
    with pytest.raises(PartitionError, match="DequantizeLinear .*" + reason):
        plan(analysis, 2)
    found = why(analysis, "relu", 2)
    assert found.axes == ()
    assert found.cause is not None
    assert (found.cause.kind, found.cause.reason) == ("barrier", reason)


def test_quantized_activations_are_divided(quantized: ModelProto) -> None:
    """The same network with its weights as floats again, as in training with quantised activations."""
    graph, values = quantized.graph, {t.name: t for t in quantized.graph.initializer}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]:
        whole, scale, zero = (onnx.numpy_helper.to_array(values[name]).astype(np.float32) for name in node.input)
        along = (-1,) + (1,) * (whole.ndim - 1)
        weight = (whole - zero.reshape(along)) * scale.reshape(along)
        graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    done = split(quantized, 2)
    assert done.plan.by_name["two.weight_DequantizeLinear_Output"].part_shape(0) == (3, 3, 3, 3)
    assert done.plan.blocked == ()
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
