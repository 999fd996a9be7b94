"""What training changes: the table, the compiler and the importer say the same of every initializer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import ModelProto

import onnxpart
from onnxpart.ir.trainable import SLOTS, Kind
from onnxpart.torch import export_weights, import_onnx
from tests.networks.net import Net

PARAMETER, STATISTIC, SETTING, CONSTANT = Kind.PARAMETER, Kind.STATISTIC, Kind.SETTING, Kind.CONSTANT
Build = Callable[[Net, str], str]
"""What stands between two layers, given what it reads."""


def _floats(n: Net, name: str, *values: float) -> str:
    return n.array(name, np.asarray(values, np.float32))


def _scalar(n: Net, name: str, value: float) -> str:
    return n.array(name, np.asarray(value, np.float32))


def _image(n: Net, x: str) -> str:
    return n.op("Reshape", x, n.ints(0, 1, 2, 4))


def _rows(n: Net, x: str) -> str:
    return n.op("Flatten", x)


def _one_hot(n: Net, x: str) -> str:
    place = n.op("ArgMax", x, axis=1, keepdims=0)
    return n.op("Add", x, n.op("OneHot", place, _scalar(n, "depth", 8), _floats(n, "values", -0.5, 0.5)))


def _resize(n: Net, x: str) -> str:
    scales = _floats(n, "scales", 1, 1, 2, 2)
    roi = _floats(n, "roi", 0, 0, 0, 0, 1, 1, 1, 1)
    return _rows(n, n.op("Resize", _image(n, x), roi, scales, mode="nearest"))


def _upsample(n: Net, x: str) -> str:
    return _rows(n, n.op("Upsample", _image(n, x), _floats(n, "scales", 1, 1, 2, 2)))


def _norm(op_type: str, channels: int, **attributes: float) -> Build:
    def build(n: Net, x: str) -> str:
        h = n.op("Conv", _image(n, x), n.random("kernel", channels, 1, 1, 1))
        return _rows(n, n.op(op_type, h, n.random("scale", channels), n.random("shift", channels), **attributes))

    return build


def _batch_norm(channels: int) -> Build:
    def build(n: Net, x: str) -> str:
        h = n.op("Conv", _image(n, x), n.random("kernel", channels, 1, 1, 1))
        statistics = n.random("mean", channels), n.positive("var", channels)
        h = n.op("BatchNormalization", h, n.random("scale", channels), n.random("shift", channels), *statistics)
        return _rows(n, h)

    return build


def _rms_norm(width: int) -> Build:
    def build(n: Net, x: str) -> str:
        return n.op("RMSNormalization", n.linear(x, 8, width, name="narrow"), n.random("scale", width))

    return build


def _layer_norm(n: Net, x: str) -> str:
    return n.op("LayerNormalization", x, n.random("scale", 8), n.random("shift", 8))


def _conv(n: Net, x: str) -> str:
    return _rows(n, n.op("Conv", _image(n, x), n.random("kernel", 2, 1, 1, 1), n.random("offset", 2)))


def _transposed(n: Net, x: str) -> str:
    return _rows(n, n.op("ConvTranspose", _image(n, x), n.random("kernel", 1, 2, 1, 1), n.random("offset", 2)))


def _recurrent(op_type: str, gates: int, *more: str) -> Build:
    """Four units over the rows, with initial states and, for an LSTM, peepholes."""

    def build(n: Net, x: str) -> str:
        sequence = n.op("Reshape", x, n.ints(-1, 1, 8))
        weights = n.random("input", 1, 4 * gates, 8), n.random("recurrent", 1, 4 * gates, 4)
        states = [n.random(name, 1, 3 * 4) if name == "peepholes" else n.random(name, 1, 1, 4) for name in more]
        bias = n.random("bias", 1, 8 * gates)
        return n.op("Reshape", n.op(op_type, sequence, *weights, bias, "", *states, hidden_size=4), n.ints(-1, 4))

    return build


def _left(n: Net, x: str) -> str:
    row = n.op("Reshape", x, n.ints(1, -1))
    return n.op("Reshape", n.op("MatMul", n.random("left", 1, 1), row), n.ints(-1, 8))


def _gemm_left(n: Net, x: str) -> str:
    row = n.op("Reshape", x, n.ints(1, -1))
    return n.op("Reshape", n.op("Gemm", n.random("left", 1, 1), row), n.ints(-1, 8))


def _gemm(n: Net, x: str) -> str:
    return n.op("Gemm", x, n.random("weight", 8, 1), n.random("bias", 1))


def _bias(n: Net, x: str) -> str:
    return n.op("Add", n.op("MatMul", x, n.random("weight", 8, 1)), n.random("bias", 1))


def _offset(n: Net, x: str) -> str:
    return n.op("Add", n.op("MatMul", x, n.random("weight", 8, 3)), _scalar(n, "offset", 0.5))


def _range(n: Net, x: str) -> str:
    bounds = _scalar(n, "start", 0), _scalar(n, "limit", 8), _scalar(n, "delta", 1)
    return n.op("Add", x, n.op("Range", *bounds))


def _settings(op_type: str, **values: float) -> Build:
    def build(n: Net, x: str) -> str:
        return n.op(op_type, x, *(_scalar(n, name, value) for name, value in values.items()))

    return build


def _pad(n: Net, x: str) -> str:
    return n.op("Pad", x, n.ints(0, 1, 0, 1), _scalar(n, "value", 0.5))


def _shared(n: Net, x: str) -> str:
    bound = _scalar(n, "bound", 0.7)
    return n.op("Clip", n.op("PRelu", x, bound), "", bound)


def _through_identity(n: Net, x: str) -> str:
    place = n.op("ArgMax", x, axis=1, keepdims=0)
    values = n.op("Identity", _floats(n, "values", -0.5, 0.5))
    return n.op("Add", x, n.op("OneHot", place, n.array("depth", np.asarray(8)), values))


def _all(*names: str) -> dict[str, Kind]:
    return dict.fromkeys(names, PARAMETER)


CASES: dict[str, tuple[Build, int, int, dict[str, Kind]]] = {
    "OneHot": (_one_hot, 17, 8, {"values": SETTING, "depth": SETTING}),
    "OneHot behind Identity": (_through_identity, 17, 8, {"values": SETTING, "depth": CONSTANT}),
    "Upsample": (_upsample, 9, 32, {"scales": SETTING}),
    "Resize": (_resize, 17, 32, {"roi": SETTING, "scales": SETTING}),
    "Clip": (_settings("Clip", low=-0.5, high=0.5), 17, 8, {"low": SETTING, "high": SETTING}),
    "Dropout": (_settings("Dropout", ratio=0.25), 17, 8, {"ratio": SETTING}),
    "Pad": (_pad, 17, 10, {"value": SETTING}),
    "Range": (_range, 17, 8, {"start": SETTING, "limit": SETTING, "delta": SETTING}),
    "BatchNormalization": (
        _batch_norm(2), 17, 16, {"scale": PARAMETER, "shift": PARAMETER, "mean": STATISTIC, "var": STATISTIC},
    ),
    "BatchNormalization of one": (
        _batch_norm(1), 17, 8, {"scale": PARAMETER, "shift": PARAMETER, "mean": STATISTIC, "var": STATISTIC},
    ),
    "GroupNormalization": (
        _norm("GroupNormalization", 2, num_groups=2), 21, 16, {"scale": PARAMETER, "shift": PARAMETER},
    ),
    "GroupNormalization of one": (
        _norm("GroupNormalization", 1, num_groups=1), 21, 8, {"scale": PARAMETER, "shift": PARAMETER},
    ),
    "InstanceNormalization of one": (
        _norm("InstanceNormalization", 1), 17, 8, {"scale": PARAMETER, "shift": PARAMETER},
    ),
    "RMSNormalization": (_rms_norm(4), 23, 4, {"scale": PARAMETER}),
    "RMSNormalization of one": (_rms_norm(1), 23, 1, {"scale": PARAMETER}),
    "LayerNormalization": (_layer_norm, 17, 8, {"scale": PARAMETER, "shift": PARAMETER}),
    "Conv": (_conv, 17, 16, _all("kernel", "offset")),
    "ConvTranspose": (_transposed, 17, 16, _all("kernel", "offset")),
    "RNN": (_recurrent("RNN", 1, "state"), 17, 4, _all("input", "recurrent", "bias", "state")),
    "GRU": (_recurrent("GRU", 3, "state"), 17, 4, _all("input", "recurrent", "bias", "state")),
    "LSTM": (
        _recurrent("LSTM", 4, "state", "cell", "peepholes"), 17, 4,
        _all("input", "recurrent", "bias", "state", "cell", "peepholes"),
    ),
    "Gemm with a bias of one": (_gemm, 17, 1, {"weight": PARAMETER, "bias": PARAMETER}),
    "MatMul from the left": (_left, 17, 8, {"left": PARAMETER}),
    "Gemm from the left": (_gemm_left, 17, 8, {"left": PARAMETER}),
    "a bias of one": (_bias, 17, 1, {"weight": PARAMETER, "bias": PARAMETER}),
    "a number added to a product": (_offset, 17, 3, {"weight": PARAMETER, "offset": CONSTANT}),
    "a number": (_settings("Mul", factor=0.5), 17, 8, {"factor": CONSTANT}),
    "a vector": (lambda n, x: n.op("Mul", x, n.random("factor", 8)), 17, 8, {"factor": PARAMETER}),
    "PRelu of one": (lambda n, x: n.op("PRelu", x, _scalar(n, "slope", 0.3)), 17, 8, {"slope": PARAMETER}),
    "a setting that is a weight elsewhere": (_shared, 17, 8, {"bound": SETTING}),
}  # fmt: skip


def _network(case: str) -> ModelProto:
    build, opset, width, _ = CASES[case]
    n = Net(("x", ("N", 5)), opset=opset)
    h = n.op("Tanh", n.linear("x", 5, 8, name="divided"))
    h = build(n, n.op("Tanh", n.linear(h, 8, 8, name="before")))
    return n.model(n.linear(h, width, 3, name="last"), shape=("N", 3))


def _changed(model: ModelProto) -> set[str]:
    """The initializers that a step of training changes; a gradient reaches every parameter of the module."""
    torch.manual_seed(0)
    module = import_onnx(model)
    before = onnxpart.arrays(export_weights(module, model))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.randn(6, 5)).square().sum().backward()
    optimizer.step()
    after = onnxpart.arrays(export_weights(module, model))
    changed = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    return changed


@pytest.mark.parametrize("case", CASES)
def test_the_table_the_compiler_and_the_importer_agree(case: str) -> None:
    model, expected = _network(case), CASES[case][3]
    loaded = onnxpart.load(model)
    assert {name: loaded.kinds[name] for name in expected} == expected
    changed = _changed(model)
    for name, kind in loaded.kinds.items():
        assert (name in changed) == (kind in (PARAMETER, STATISTIC)), (name, kind)
    for initializer in onnxpart.split(model, 2).plan.initializers:
        kind = loaded.kinds[initializer.name]
        assert initializer.constant == (kind in (SETTING, CONSTANT)), (initializer.name, kind)
        if initializer.constant:
            assert all(initializer.part_shape(p) == initializer.shape for p in range(2)), initializer.name


def test_each_input_of_the_table_is_tried() -> None:
    tried = {
        (node.op_type, i)
        for case, (_, _, _, expected) in CASES.items()
        for node in _network(case).graph.node
        for i, name in enumerate(node.input)
        if name in expected
    }
    assert {(op_type, i) for op_type, slots in SLOTS.items() for i in slots} <= tried
