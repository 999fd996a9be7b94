"""The oracles find a mistake: with one rule or one number wrong, `verify` must not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from models import GOLDEN
from onnxpart import Plan, analyse, load, merge, plan, verify
from onnxpart.analysis.joins import follow, follow_channels
from onnxpart.analysis.labels import Field, Fields
from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.analysis.rules import contraction, elementwise, movement, recurrent
from onnxpart.analysis.rules import table as rules
from tests.networks.net import Net
from tests.networks.operators import network as recipe
from tests.networks.operators import operator
from tests.networks.recurrent import Form, network
from tests.networks.verified import holds

Labels = Callable[[Op], list[Fields]]
ORACLES = import_module("onnxpart.verification.oracles")  # the package has a function of this name


def classified(n: Net, h: str, channels: int = 6) -> ModelProto:
    h = n.op("Relu", n.conv(h, channels, 6, name="behind"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    return n.model(n.linear(h, 6, 3, name="logits"), shape=("N", 3))


def around(build: Callable[[Net, str], str], channels: int = 6) -> ModelProto:
    """Conv, an operator, conv, pooling, linear."""
    n = Net(("x", ("N", 2, 4, 4)))
    return classified(n, build(n, n.conv("x", 2, 6, name="before")), channels)


def channel_softmax() -> ModelProto:
    return around(lambda n, h: n.op("Softmax", h, axis=1))


def group_norm() -> ModelProto:
    n = Net(("x", ("N", 2, 4, 4)), opset=21)
    h = n.conv("x", 2, 12, name="wide")
    h = n.op("GroupNormalization", h, n.positive("scale", 12), n.random("shift", 12), num_groups=4)
    return classified(n, h, 12)


def sliced() -> ModelProto:
    """The last 6 of 8 channels times those of another branch."""
    n = Net(("x", ("N", 2, 4, 4)))
    wide = n.conv("x", 2, 8, name="wide")
    cut = n.op("Slice", wide, n.ints(2), n.ints(8), n.ints(1))
    both = n.op("Concat", n.op("Tanh", cut), n.op("Relu", wide), axis=1)
    return classified(n, both, 14)


def halves() -> ModelProto:
    """Two halves of 12 channels with different activations, one behind the other."""
    n = Net(("x", ("N", 2, 4, 4)))
    left, right = n.ops("Split", n.conv("x", 2, 12, name="wide"), count=2, axis=1)
    return classified(n, n.op("Concat", n.op("Tanh", left), n.op("Relu", right), axis=1), 12)


def permuted() -> ModelProto:
    return around(lambda n, h: n.op("Gather", h, n.ints(5, 3, 1, 0, 2, 4), axis=1))


def depth_to_space() -> ModelProto:
    return around(lambda n, h: n.op("DepthToSpace", n.conv(h, 6, 24, name="wide"), blocksize=2, mode="DCR"))


def tiled() -> ModelProto:
    return around(lambda n, h: n.op("Tile", h, n.ints(1, 2, 1, 1)), 12)


def turned_weight() -> ModelProto:
    """A square weight that a Transpose turns, so that an unturned one still fits."""
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.op("GlobalAveragePool", n.op("Relu", n.conv("x", 2, 6, name="before")))
    weight = n.op("Transpose", n.random("middle.weight", 6, 6, 1, 1), perm=[1, 0, 2, 3])
    return classified(n, n.op("Conv", h, weight))


def ending(build: Callable[[Net, str], str]) -> Callable[[], ModelProto]:
    """A network with an operator behind the point where the parts' contributions meet."""

    def network() -> ModelProto:
        n = Net(("x", ("N", 2, 4, 4)))
        h = n.op("Relu", n.conv("x", 2, 6, name="hidden"))
        return n.model(build(n, n.conv(h, 6, 3, name="y")))

    return network


max_pooled = ending(lambda n, y: n.op("GlobalMaxPool", y))
clipped = ending(lambda n, y: n.op("Relu", y))
squared = ending(lambda n, y: n.op("Mul", y, y))
soft = ending(lambda n, y: n.op("Softmax", y, axis=1))


def alike(op: Op) -> list[Fields]:
    """The operator taken for elementwise, its parameters tied."""
    fields = op.fields(0)
    for i in range(1, len(op.node.input)):
        if op.has(i):
            follow_channels(op, fields, i)
    return [fields] * len(op.node.output)


def last_axis(op: Op) -> list[Fields]:
    fields = op.fields(0)
    for i in (1, 2):
        follow(op, fields, i)
    return [fields]


def first(op: Op) -> list[Fields]:
    """The result has the labels of the first input, and nothing is tied."""
    return [op.fields(0)] * len(op.node.output)


def rolled(rule: Labels, by: int = 1, axis: int = 1) -> Labels:
    """The rule's labels, moved along an axis."""
    return lambda op: [tuple(np.roll(f, by, axis) for f in fields) for fields in rule(op)]


def turned(rule: Labels) -> Labels:
    """The rule's results, last first."""
    return lambda op: rule(op)[::-1]


def places_first(op: Op) -> list[Fields]:
    """Flatten, as if the channels were the innermost axis."""
    return [tuple(np.tile(f.reshape(f.shape[0], -1), op.out_shape()[1] // f.size) for f in op.fields(0))]


def per_block(op: Op) -> list[Fields]:
    """DepthToSpace (DCR) with the labels of CRD."""
    return [tuple(op.labels.tie_along(f.reshape(1, -1, 4, 1, 1), (0, 1)).reshape(1, -1, 1, 1) for f in op.fields(0))]


def repeated(op: Op) -> list[Fields]:
    """Tile, as if each channel were repeated where it stands."""
    return [tuple(np.repeat(f, 2, axis=1) for f in op.fields(0))]


def attention() -> ModelProto:
    """Six query heads on two heads of keys and values."""
    n = Net(("x", ("N", 16, 4)), opset=23)
    sizes = {"q": 12, "k": 4, "v": 4}
    inputs = [n.op("MatMul", "x", n.random(f"{i}.weight", 4, size)) for i, size in sizes.items()]
    h = n.op("Attention", *inputs, q_num_heads=6, kv_num_heads=2)
    return classified(n, n.op("Reshape", n.op("Transpose", h, perm=[0, 2, 1]), n.ints(0, 12, 4, 4)), 12)


def rotated() -> ModelProto:
    """A head of 8 units, turned in pairs."""
    n = Net(("x", ("N", 1, 16, 4)), opset=23)
    h = n.op("MatMul", "x", n.random("weight", 4, 8))
    angles = [n.random(name, 16, 4) for name in ("cos", "sin")]
    rows = n.op("Concat", n.op("Shape", "x", start=0, end=1), n.ints(16), axis=0)
    h = n.op("RotaryEmbedding", h, *angles, n.op("Expand", n.ints(*range(16)), rows))
    return classified(n, n.op("Transpose", h, perm=[0, 3, 1, 2]), 8)


WRONG_LABELS: dict[str, tuple[Callable[[], ModelProto], str, Labels]] = {
    "LRN is elementwise": (GOLDEN["lrn"], "LRN", first),
    "LayerNormalization is elementwise": (GOLDEN["layernorm"], "LayerNormalization", last_axis),
    "Attention is elementwise": (attention, "Attention", first),
    "RotaryEmbedding is elementwise": (rotated, "RotaryEmbedding", first),
    "GroupNormalization is elementwise": (group_norm, "GroupNormalization", alike),
    "Softmax over channels is elementwise": (channel_softmax, "Softmax", first),
    "Add ties nothing": (GOLDEN["residual"], "Add", first),
    "Mul ties nothing": (GOLDEN["squeeze_excite"], "Mul", first),
    "Flatten with places first": (GOLDEN["flatten"], "Flatten", places_first),
    "Concat swapped": (GOLDEN["concat"], "Concat", rolled(movement.concat, 2)),
    "Gather off by one": (permuted, "Gather", rolled(movement.gather)),
    "Gather forgotten": (permuted, "Gather", first),
    "Slice off by one": (sliced, "Slice", rolled(movement.slice_)),
    "Split swapped": (halves, "Split", turned(movement.split)),
    "DepthToSpace in the other order": (depth_to_space, "DepthToSpace", per_block),
    "Tile repeats": (tiled, "Tile", repeated),
    "Transpose turns nothing": (turned_weight, "Transpose", first),
    "Reshape of heads off by one": (GOLDEN["qkv"], "Reshape", rolled(movement.reshape, 1, -1)),
    "GlobalAveragePool shares": (GOLDEN["chain"], "GlobalAveragePool", lambda op: [()]),
}


def windows_first(op: Op) -> list[Fields]:
    """Col2Im, as if the places of a window stood outside the channels."""
    channels = op.out_shape()[1]
    return [
        tuple(op.labels.tie_along(f.reshape(f.shape[0], -1, channels, 1), (0, 2))[:, 0, :, None] for f in op.fields(0))
    ]


def scales_off_by_one(op: Op) -> list[Fields]:
    """QuantizeLinear by channel with the next channel's scale."""
    follow(op, op.fields(0), 1, tuple(np.roll(f, 1).reshape(-1, 1, 1) for f in op.fields(1)))
    return [op.fields(0)]


def unread_positions(op: Op) -> list[Fields]:
    """MaxPool, as if nothing read its positions."""
    return [op.fields(0), ()]


WRONG_POSITIONS: dict[str, tuple[str, Labels]] = {
    "BitCast rolls": ("BitCast", rolled(elementwise.unary)),
    "CastLike rolls": ("CastLike", rolled(elementwise.unary)),
    "Col2Im with windows first": ("Col2Im", windows_first),
    "CumProd over channels is elementwise": ("CumProd: over channels", first),
    "DFT over channels is elementwise": ("DFT: over channels", first),
    "DeformConv rolls": ("DeformConv", rolled(contraction.deform_conv)),
    "DequantizeLinear rolls its scales": ("DequantizeLinear: by channel", scales_off_by_one),
    "Einsum of one operand rolls": ("Einsum: an exchange", rolled(contraction.einsum, 1, -1)),
    "Gather by strides rolls": ("Gather: a view by strides", rolled(movement.gather)),
    "GatherElements over channels is elementwise": ("GatherElements: over channels", first),
    "GatherND over channels is elementwise": ("GatherND: over channels", first),
    "GridSample rolls": ("GridSample", rolled(elementwise.grid_sample)),
    "GridSample at the places of other units": ("GridSample: places of each channel", lambda op: [op.fields(0)]),
    "MaxPool with positions that nothing reads": ("MaxPool: positions", unread_positions),
    "MaxRoiPool rolls": ("MaxRoiPool", rolled(elementwise.regions)),
    "MeanVarianceNormalization is elementwise": ("MeanVarianceNormalization: over channels", first),
    "OneHot shares": ("OneHot", lambda op: [()]),
    "QuantizeLinear rolls its scales": ("QuantizeLinear: by channel", scales_off_by_one),
    "ReverseSequence over channels is elementwise": ("ReverseSequence: over channels", first),
    "RoiAlign rolls": ("RoiAlign", rolled(elementwise.regions)),
    "Scatter over channels is elementwise": ("Scatter: over channels", first),
    "ScatterElements over channels is elementwise": ("ScatterElements: over channels", first),
    "ScatterND over channels is elementwise": ("ScatterND: over channels", first),
    "TensorScatter over channels is elementwise": ("TensorScatter: over channels", first),
    "Trilu over channels is elementwise": ("Trilu: over channels", first),
}

WRONG_REWRITES = {
    "CenterCropPad keeps the whole's target": "CenterCropPad: all axes",
    "Gather keeps its numbers": "Gather: a view by strides",
    "GatherElements keeps its indices": "GatherElements",
    "GridSample keeps all places": "GridSample: given places of each channel",
    "QuantizeLinear keeps its zero points": "QuantizeLinear: by channel",
    "ScatterElements keeps its indices": "ScatterElements",
    "ScatterND keeps its blocks": "ScatterND: blocks from the input",
}

WRONG_FLAGS: dict[str, tuple[Callable[[], ModelProto], str, rules.Mean]] = {
    "GlobalMaxPool is linear": (max_pooled, "GlobalMaxPool", "data"),
    "Relu is linear": (clipped, "Relu", "data"),
    "Mul is linear in both": (squared, "Mul", "sum"),
    "Softmax is linear": (soft, "Softmax", "data"),
}


pytestmark = pytest.mark.usefixtures("unguarded")


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_wrong_labels_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, op_type, labels = WRONG_LABELS[name]
    assert holds(network())
    monkeypatch.setitem(rules.TABLE, op_type, replace(rules.TABLE[op_type], labels=labels))
    assert not holds(network())


@pytest.mark.parametrize("name", WRONG_POSITIONS)
def test_wrong_positions_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, labels = WRONG_POSITIONS[name]
    assert holds(recipe(key), seed=2)
    monkeypatch.setitem(rules.TABLE, operator(key), replace(rules.TABLE[operator(key)], labels=labels))
    assert not holds(recipe(key), seed=2)


@pytest.mark.parametrize("name", WRONG_REWRITES)
def test_a_missing_rewrite_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = WRONG_REWRITES[name]
    assert holds(recipe(key))
    monkeypatch.setitem(rules.TABLE, operator(key), replace(rules.TABLE[operator(key)], rewrite=None))
    assert not holds(recipe(key))


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_wrong_linearity_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, op_type, mean = WRONG_FLAGS[name]
    assert holds(network())
    monkeypatch.setitem(rules.TABLE, op_type, replace(rules.TABLE[op_type], mean=mean))
    assert not holds(network())


def test_a_bias_that_is_neither_tied_nor_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "_bias", lambda op, fields: None)
    assert holds(GOLDEN["chain"]())  # what is in every part is cut to a part's units
    monkeypatch.setattr(Rewrite, "narrow_channels", lambda r, i: None)
    assert not holds(GOLDEN["chain"]())


def test_a_norm_whose_parameters_are_neither_tied_nor_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = replace(rules.TABLE["BatchNormalization"], labels=first)
    monkeypatch.setitem(rules.TABLE, "BatchNormalization", norm)
    assert holds(GOLDEN["batchnorm"]())
    monkeypatch.setitem(rules.TABLE, "BatchNormalization", replace(norm, rewrite=None))
    assert not holds(GOLDEN["batchnorm"]())


def test_a_depthwise_convolution_without_a_tie_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "_channels", lambda op: None)
    assert not holds(GOLDEN["depthwise"]())


FULL = Form("LSTM", "bidirectional", "yhc", h="activation", c="activation", peepholes=True)
"""A form with every input whose labels are tied."""
Tie = Callable[[Op, int, dict[int, Field]], None]


def gate_by_gate(f: Field) -> Field:
    """Labels as if the gates of a unit stood side by side."""
    units = len(np.unique(f))
    return f.reshape(-1, units).T.ravel() if f.size > units else f


def displaced(i: int, axis: int) -> Callable[[Tie], Tie]:
    """Input `i` has, along one axis, the labels of the units next to those that it belongs to."""
    return lambda tie: (
        lambda op, j, along: tie(op, j, {a: np.roll(f, 1) if (j, a) == (i, axis) else f for a, f in along.items()})
    )


WRONG_TIES: dict[str, Callable[[Tie], Tie]] = {
    "rows of W": displaced(1, 1),
    "features": displaced(1, 2),
    "rows of R": displaced(2, 1),
    "states that R reads": displaced(2, 2),
    "bias": displaced(3, 1),
    "first h": displaced(5, 2),
    "first c": displaced(6, 2),
    "peepholes": displaced(7, 1),
    "gates side by side": lambda tie: lambda op, i, along: tie(op, i, {a: gate_by_gate(f) for a, f in along.items()}),
}


@pytest.mark.parametrize("name", WRONG_TIES)
def test_a_wrong_tie_of_a_recurrent_operator_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds(network(FULL))
    monkeypatch.setattr(recurrent, "tie", WRONG_TIES[name](recurrent.tie))
    assert not holds(network(FULL))


@pytest.mark.parametrize("op_type", recurrent.GATES)
def test_wrong_labels_of_a_recurrent_operator_are_found(op_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(op_type, outputs="yh")
    assert holds(network(form))
    wrong = rolled(recurrent.recurrent, 1, -1)
    monkeypatch.setitem(rules.TABLE, op_type, replace(rules.TABLE[op_type], labels=wrong))
    assert not holds(network(form))


def test_a_rule_for_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.TABLE, "LRN", replace(rules.TABLE["LRN"], versions=(1,)))
    assert analyse(load(GOLDEN["lrn"]())).barriers == {"LRN 'norm'": "version 13 of LRN has no rule"}


Arrays = Mapping[str, NDArray[np.generic]]
Scale = Callable[[Plan, str, int], float]
WRONG_SCALES: dict[str, Scale] = {
    "1/K left out": lambda p, name, k: k if p.by_name[name].reduces else 1,
    "1/K twice": lambda p, name, k: 1 / k if p.by_name[name].reduces else 1,
    "bias of the output summed": lambda p, name, k: k if p.by_name[name].after_reduction else 1,
    "bias of the output divided": lambda p, name, k: 1 / k if p.by_name[name].after_reduction else 1,
    "hidden weights divided": lambda p, name, k: (
        1 if p.by_name[name].reduces or p.by_name[name].after_reduction else 1 / k
    ),
}


@pytest.mark.parametrize("name", WRONG_SCALES)
@pytest.mark.parametrize("network", ["chain", "flatten", "lrn"])
def test_a_wrong_scale_in_merging_is_found(name: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(planned: Plan, parts: Sequence[Arrays], **options: str) -> dict[str, NDArray[np.generic]]:
        merged = merge(planned, parts, **options)  # type: ignore[arg-type]
        factor = WRONG_SCALES[name]
        return {
            key: (value * factor(planned, key, planned.k)).astype(value.dtype) if key in planned.by_name else value
            for key, value in merged.items()
        }

    assert holds(GOLDEN[network]())
    monkeypatch.setattr(ORACLES, "merge", wrong)
    assert not holds(GOLDEN[network]())


def test_parts_in_the_wrong_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(planned: Plan, parts: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
        return merge(planned, parts[::-1])

    monkeypatch.setattr(ORACLES, "merge", swapped)
    assert not holds(GOLDEN["residual"]())


def test_a_link_between_parts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def linked(planned: Plan, parts: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
        merged = merge(planned, parts)
        weight = merged["conv2.weight"]
        merged["conv2.weight"] = np.where(weight == 0, np.float32(0.01), weight)
        return merged

    monkeypatch.setattr(ORACLES, "merge", linked)
    assert not holds(GOLDEN["chain"]())


def test_what_is_nowhere_a_number_is_not_verified() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.conv("x", 2, 6, name="before")
    roots = n.op("Sqrt", n.op("Sub", n.number(-1), n.op("Abs", h)), name="roots")
    model = load(classified(n, n.op("Where", n.op("IsNaN", roots), h, roots)))
    verdict = verify(analysis := analyse(model), plan(analysis, 2))
    assert not verdict.holds
    assert {finding.worst for finding in verdict.findings if not finding.holds} == {"roots"}
