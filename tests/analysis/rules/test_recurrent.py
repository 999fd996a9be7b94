"""LSTM, GRU and RNN in every form: the oracles hold, and parts are as narrow as they should be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpart import Plan, load, merge, split, verify
from onnxpart.emission.initial import fans, initial
from onnxpart.emission.scale_output import scale_output
from onnxpart.emission.split import Split
from onnxpart.frontend.load import arrays
from onnxpart.inspection.sizes import measure
from onnxpart.verification.conditions import check_conditions
from onnxpart.verification.runtime import Session
from onnxpart.verification.unit_graph import unit_graph
from onnxpart.verification.weights import draw
from tests.networks.copies import with_arrays
from tests.networks.net import Attribute, Net
from tests.networks.recurrent import BATCH, FEATURES, GATES, SIZE, Form, forms, network, recur, time_first


def check(done: Split, *, divided: bool = True) -> None:
    """Both oracles and the conditions of section 2.2 hold, and nothing but the output is undivided."""
    for model in (*done.parts, done.whole):
        onnx.checker.check_model(model, full_check=True)
    parts, whole = [time_first(p) for p in done.parts], time_first(done.whole)
    verdict = verify(done.analysis, done.plan, parts=parts, whole=whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    assert not check_conditions(done.analysis, done.plan)
    if divided:
        assert done.plan.same_graph
        assert not done.plan.blocked
        assert {layer.node for layer in done.plan.layers if not layer.parts} == {"Gemm 'logits'"}


def check_sizes(plan: Plan, form: Form, k: int) -> None:
    """Each part has 1/K of the rows of W, R and B, and 1/K of the columns of W and R."""
    rows, d = GATES[form.op_type] * SIZE // k, form.directions
    found = {name: plan.by_name[name].part_shape(0) for name in plan.by_name}
    assert found["cell.w"] == (d, rows, FEATURES // k)
    assert found["cell.r"] == (d, rows, SIZE // k)
    if form.bias:
        assert found["cell.b"] == (d, 2 * rows)
    if form.peepholes:
        assert found["cell.p"] == (d, 3 * SIZE // k)


@settings(max_examples=120)
@given(drawn=forms(), k=st.sampled_from((2, 3)), order=st.sampled_from(("contiguous", "interleaved", "random")))
def test_every_form(drawn: tuple[Form, int], k: int, order: str) -> None:
    form, opset = drawn
    done = split(network(form, opset), k, order=order, seed=1)
    check(done)
    check_sizes(done.plan, form, k)
    cells = [node for part in done.parts for node in part.graph.node if node.op_type == form.op_type]
    assert {a.i for node in cells for a in node.attribute if a.name == "hidden_size"} == {SIZE // k}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("op_type", GATES)
def test_stacked_layers(op_type: str, k: int) -> None:
    form = Form(op_type, "bidirectional", "yh", h="activation")
    done = split(network(form, cells=3), k)
    check(done)
    rows, columns = GATES[op_type] * SIZE // k, 2 * SIZE // k
    for i in (1, 2):
        assert done.plan.by_name[f"cell{i}.w"].part_shape(0) == (2, rows, columns)
        assert done.plan.by_name[f"cell{i}.r"].part_shape(0) == (2, rows, SIZE // k)


@pytest.mark.parametrize(("direction", "units"), [("reverse", SIZE), ("bidirectional", 2 * SIZE)])
def test_the_report_counts_hidden_units(direction: str, units: int) -> None:
    done = split(network(Form("LSTM", direction)), 3)
    (layer,) = [layer for layer in done.plan.layers if layer.node == "LSTM 'cell'"]
    assert (layer.units, layer.classes, layer.parts) == (units, SIZE, (units // 3,) * 3)


def decoder(n: Net, form: Form) -> str:
    """A second sequence decoded from the last states that the first one leaves: y ``[T, N, D * SIZE]``."""
    outputs = "hc" if form.op_type == "LSTM" else "h"
    encoder = Form(form.op_type, form.direction, outputs)
    last = recur(n, encoder, "x", 3, {}, name="encoder")
    states = dict(zip(outputs, last, strict=True))
    (y,) = recur(n, form, "z", 3, states, name="decoder")
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, form.directions * SIZE))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_encoder_and_decoder(op_type: str, direction: str, k: int) -> None:
    n = Net(("x", ("S", "N", 3)), ("z", ("T", "N", 3)))
    form = Form(op_type, direction)
    y = decoder(n, form)
    logits = n.op("MatMul", y, n.random("logits.weight", form.directions * SIZE, 4))
    done = split(n.model(logits, shape=("T", "N", 4)), k)
    check(done, divided=False)
    assert done.plan.same_graph
    assert {layer.units for layer in done.plan.layers if layer.parts} == {form.directions * SIZE}
    for name in ("encoder", "decoder"):
        assert done.plan.by_name[f"{name}.r"].part_shape(0)[1:] == (GATES[op_type] * SIZE // k, SIZE // k)


def stateful(outputs: str, embedded: bool = False) -> onnx.ModelProto:
    """An LSTM whose last states are outputs of the network; x is read by a linear layer first if `embedded`."""
    n = Net(("x", ("T", BATCH, 3)))
    x = n.op("Tanh", n.op("MatMul", "x", n.random("before", 3, FEATURES))) if embedded else "x"
    found = recur(n, Form("LSTM", outputs="yhc"), x, FEATURES if embedded else 3, {})
    n.nodes[-1].output[1:] = ["hn", "cn"]
    y = n.op("Squeeze", found[0], n.ints(1))
    y, *_ = recur(n, Form("LSTM"), y, SIZE, {}, name="second")
    logits = n.op("MatMul", n.op("Squeeze", y, n.ints(1)), n.random("logits.weight", SIZE, 4))
    return n.model(logits, *({"h": "hn", "c": "cn"}[o] for o in outputs))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("outputs", ["h", "c", "hc"])
def test_a_last_state_that_is_an_output_keeps_its_layer_whole(outputs: str, k: int) -> None:
    done = split(stateful(outputs), k)
    check(done, divided=False)
    reasons = {layer.node: layer.reason for layer in done.plan.layers if not layer.parts}
    assert reasons["LSTM 'cell'"] == f"it is tied to the output '{outputs[0]}n'"
    assert done.plan.by_name["cell.r"].part_shape(0) == (1, 4 * SIZE, SIZE)
    assert done.plan.by_name["second.r"].part_shape(0) == (1, 4 * SIZE // k, SIZE // k)
    assert {"cell.w", "cell.r", "cell.b"} <= set(done.plan.replicated)


@pytest.mark.parametrize("k", [2, 3])
def test_divided_features_meet_in_an_undivided_layer(k: int) -> None:
    done = split(stateful("h", embedded=True), k)
    check(done, divided=False)
    w = done.plan.by_name["cell.w"]
    assert w.part_shape(0) == (1, 4 * SIZE, FEATURES // k)
    assert w.reduces
    assert not done.plan.by_name["cell.r"].reduces


def test_a_first_state_from_an_input_is_cut() -> None:
    done = split(network(Form("LSTM", h="input", c="input", outputs="h")), 2)
    check(done)
    cut = [node for node in done.parts[1].graph.node if node.op_type == "Slice"]
    assert {node.input[0] for node in cut} == {"h0", "c0"}
    assert [v.name for v in done.parts[1].graph.input] == ["x", "h0", "c0"]


def test_too_few_units() -> None:
    done = split(network(Form("GRU", h="learned"), cells=2), FEATURES)
    assert {layer.parts for layer in done.plan.layers if layer.parts} == {(1,) * FEATURES}
    n = Net(("x", ("T", BATCH, 3)))
    y, *_ = recur(n, Form("RNN"), "x", 3, {})
    wide = n.op("Tanh", n.op("MatMul", y, n.random("wide", SIZE, 16)))
    done = split(n.model(n.op("MatMul", wide, n.random("logits.weight", 16, 4))), 8)
    check(done, divided=False)
    (layer,) = [layer for layer in done.plan.layers if layer.node == "RNN 'cell'"]
    assert (layer.parts, layer.reason) == ((), "its units move in 6 classes, too few for 8 parts")


@pytest.mark.parametrize(("features", "size"), [(1, 6), (6, 1), (1, 1)])
def test_single_features_and_units(features: int, size: int) -> None:
    n = Net(("x", ("T", "N", 3)))
    x = n.op("Tanh", n.op("MatMul", "x", n.random("before", 3, features)))
    y = n.op("GRU", x, n.random("w", 1, 3 * size, features), n.random("r", 1, 3 * size, size), hidden_size=size)
    wide = n.op("Tanh", n.op("MatMul", n.op("Squeeze", y, n.ints(1)), n.random("wide", size, 6)))
    done = split(n.model(n.op("MatMul", wide, n.random("logits.weight", 6, 4))), 2)
    check(done, divided=False)
    assert done.plan.by_name["w"].part_shape(0) == (1, 3 * max(1, size // 2), max(1, features // 2))


def test_a_time_axis_that_is_divided_is_undivided_in_front() -> None:
    """Channels that become time steps can't be divided, the hidden units can."""
    n = Net(("x", ("N", 2, 4, 4)))
    steps = n.op("Transpose", n.op("Reshape", n.conv("x", 2, 6, name="before"), n.ints(0, 6, 16)), perm=[1, 0, 2])
    (h,) = recur(n, Form("LSTM", outputs="h"), steps, 16, {})
    done = split(n.model(n.linear(n.op("Squeeze", h, n.ints(0)), SIZE, 4, name="logits"), shape=("N", 4)), 2)
    check(done, divided=False)
    reasons = {layer.node: layer.reason for layer in done.plan.layers if not layer.parts}
    assert reasons["Conv 'before'"] == "its sequences are divided along another axis than the features"
    assert done.plan.by_name["cell.r"].part_shape(0) == (1, 12, 3)


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        ((), {"activations": ["Softmax"]}, "the activation Softmax has no rule"),
        (("computed",), {}, "its weights are computed from activations"),
    ],
)
def test_barriers(inputs: tuple[str, ...], attributes: Mapping[str, Attribute], reason: str) -> None:
    n = Net(("x", (5, BATCH, 3)))
    h = n.op("Tanh", n.op("MatMul", "x", n.random("before", 3, 6)))
    weight = n.random("w", 1, 6, 6)
    if inputs:
        weight = n.op("Add", weight, n.op("ReduceMean", h, axes=[0, 1], keepdims=1))
    y = n.op("RNN", h, weight, n.random("r", 1, 6, 6), name="cell", hidden_size=6, **attributes)
    wide = n.op("Tanh", n.op("MatMul", n.op("Squeeze", y, n.ints(1)), n.random("wide", 6, 6)))
    done = split(n.model(n.op("MatMul", wide, n.random("logits.weight", 6, 4))), 2)
    assert done.plan.blocked == (f"RNN 'cell': {reason}",)


@pytest.mark.parametrize("k", [2, 3])
def test_last_states_of_several_layers_in_one_tensor(k: int) -> None:
    """Layers in one tensor are divided alike, and not one to a part."""
    n = Net(("x", ("S", "N", 3)), ("z", ("T", "N", 3)))
    h, features, last = "x", 3, []
    for i in range(2):
        h, state = recur(n, Form("GRU", outputs="yh"), h, features, {}, name=f"encoder{i}")
        h, features = n.op("Squeeze", h, n.ints(1)), SIZE
        last.append(state)
    states = n.op("Tanh", n.op("Concat", *last, axis=0))
    h, features = "z", 3
    for i in range(2):
        first = n.op("Slice", states, n.ints(i), n.ints(i + 1), n.ints(0))
        (h,) = recur(n, Form("GRU"), h, features, {"h": first}, name=f"decoder{i}")
        h, features = n.op("Squeeze", h, n.ints(1)), SIZE
    done = split(n.model(n.op("MatMul", h, n.random("logits.weight", SIZE, 4)), shape=("T", "N", 4)), k)
    check(done, divided=False)
    assert done.plan.same_graph
    for name in ("encoder0", "encoder1", "decoder0", "decoder1"):
        assert done.plan.by_name[f"{name}.r"].part_shape(0) == (1, 3 * SIZE // k, SIZE // k)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("weight_first", [False, True])
def test_a_loop_of_linear_layers_from_zeros(weight_first: bool, k: int) -> None:
    """The first state is a constant, which each part cuts to its units."""
    n = Net(("x", (3, "N")))
    weight, enter = n.random("weight", SIZE, SIZE), n.random("enter", SIZE, 3)
    h = n.op("Constant", value=onnx.numpy_helper.from_array(np.full((SIZE, 1), 0.5, np.float32)))
    for _ in range(3):
        if weight_first:
            again = n.op("MatMul", weight, h)
        else:
            again = n.op("Transpose", n.op("MatMul", n.op("Transpose", h, perm=[1, 0]), weight), perm=[1, 0])
        h = n.op("Tanh", n.op("Add", again, n.op("MatMul", enter, "x")))
    done = split(n.model(n.op("MatMul", n.random("logits.weight", 4, SIZE), h), shape=(4, "N")), k)
    check(done, divided=False)
    assert done.plan.same_graph
    assert done.plan.by_name["weight"].part_shape(0) == (SIZE // k, SIZE // k)


def test_fresh_weights_feed_back_what_they_are_given() -> None:
    """What leads from a state to the next has variance 1 over fan-in: a long sequence neither grows nor dies."""
    done = split(network(Form("RNN", attributes={"activations": ["Relu"]}), cells=4), 2)
    for fresh in (
        lambda seed: draw(done.partition, 0, np.random.default_rng(seed)),
        lambda seed: {n: s.array() for n, s in initial(done.partition, 0, "he", seed).items()},
    ):
        drawn = [fresh(seed)[f"cell{cell}.r"] for seed in range(25) for cell in range(4)]
        assert 0.8 < np.var(drawn) * drawn[0].shape[2] < 1.2


def test_fan_in_of_a_part() -> None:
    done = split(network(Form("LSTM", "bidirectional")), 2)
    assert fans(done.partition, "cell.w", 0)[0] == FEATURES // 2
    assert fans(done.partition, "cell.r", 0)[0] == SIZE // 2
    assert "cell.b" in done.analysis.state.biases


def test_multiply_accumulates() -> None:
    done = split(network(Form("GRU", "bidirectional")), 2)
    sizes = measure(done.analysis, done.plan)
    (found,) = [o for o in sizes.operators if o.node == "GRU 'cell'"]
    steps = 2 * 2 * BATCH  # directions, the trial length of a first axis, sequences
    assert found.whole * 2 == steps * 3 * SIZE * (FEATURES + SIZE)  # per trial element of the symbolic first axis
    assert found.parts == (found.whole // 4,) * 2


def test_the_output_can_be_scaled_instead() -> None:
    done = split(network(Form("LSTM", outputs="yh")), 2)
    parts = [arrays(load(part)) for part in done.parts]
    summed = merge(done.plan, parts, into="original", normalize="output")
    scaled = scale_output(with_arrays(network(Form("LSTM", outputs="yh")), summed), done.plan)
    x = {"x": np.random.default_rng(0).standard_normal((5, BATCH, 3), np.float32)}
    mean = np.mean([Session(part).run(x)["logits"] for part in done.parts], axis=0)
    np.testing.assert_allclose(Session(scaled).run(x)["logits"], mean, atol=1e-5)


def gates(n: Net, name: str, *order: int) -> str:
    """A parameter that is turned into the form of an operator: gates in another order, and an axis in front."""
    pieces = [n.op("Slice", name, n.ints(i * SIZE), n.ints((i + 1) * SIZE), n.ints(0)) for i in order]
    return n.op("Unsqueeze", n.op("Concat", *pieces, axis=0), n.ints(0))


@pytest.mark.parametrize("k", [2, 3])
def test_weights_put_together_in_the_graph(k: int) -> None:
    """Gates in the order of another framework, one initializer per direction."""
    n = Net(("x", ("T", "N", 3)))
    h = n.op("Tanh", n.op("MatMul", "x", n.random("before", 3, FEATURES)))
    rows, names = 4 * SIZE, []
    for what, columns in (("w", FEATURES), ("r", SIZE)):
        raw = [n.random(f"{what}.{d}", rows, columns, spread=0.4) for d in ("forward", "backward")]
        names.append(n.op("Concat", *[gates(n, name, 0, 3, 1, 2) for name in raw], axis=0))
    biases = [[n.random(f"b{i}.{d}", rows) for i in (0, 1)] for d in ("forward", "backward")]
    joined = [n.op("Concat", *[gates(n, name, 0, 3, 1, 2) for name in pair], axis=1) for pair in biases]
    names.append(n.op("Concat", *joined, axis=0))
    y = n.op("LSTM", h, *names, name="cell", hidden_size=SIZE, direction="bidirectional")
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, 2 * SIZE))
    model = n.model(n.op("MatMul", y, n.random("logits.weight", 2 * SIZE, 4)), shape=("T", "N", 4))
    done = split(model, k, init="he")
    check(done, divided=False)
    assert done.plan.same_graph
    part = arrays(load(done.parts[0]))
    for d in ("forward", "backward"):
        assert part[f"w.{d}"].shape == (rows // k, FEATURES // k)
        assert part[f"r.{d}"].shape == (rows // k, SIZE // k)
        assert np.std(part[f"r.{d}"]) == pytest.approx((k / SIZE) ** 0.5, rel=0.35)
        assert not part[f"b0.{d}"].any()


def test_lengths_are_no_neurons() -> None:
    done = split(network(Form("GRU", lengths="input", h="input")), 2)
    graph = unit_graph(done.analysis, done.plan, "class")
    inputs = [layer for _, layer in graph.nodes(data="layer") if layer in done.analysis.model.inputs]
    assert {name: inputs.count(name) for name in inputs} == {"x": 3, "h0": SIZE, "lengths": 1}
