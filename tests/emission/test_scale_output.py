"""Scaling the output by 1/K in place of its weights gives the same whole."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from models import BUILDERS
from models.builder import GraphBuilder
from onnxpart import MergeError, Split, arrays, merge, merge_to, split, verify
from onnxpart.emission.scale_output import scale_output
from onnxpart.merging.merge import Into, Normalize
from onnxpart.verification.feeds import inputs
from onnxpart.verification.oracles import tap
from onnxpart.verification.runtime import Session
from onnxpart.verification.weights import draw
from tests.networks.copies import restored, with_arrays
from tests.networks.looping import given, recurrent, scan, taken, zeros
from tests.networks.net import Net


def trained(done: Split) -> list[ModelProto]:
    """The parts with weights of their own, biases among them."""
    rng = np.random.default_rng(0)
    return [with_arrays(part, draw(done.partition, p, rng)) for p, part in enumerate(done.parts)]


def assert_ensemble(done: Split, into: Into = "duplicated") -> None:
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    names = done.plan.mean
    parts = trained(done)
    merged = merge(done.plan, [arrays(part) for part in parts], normalize="output", into=into)
    graph = done.whole if into == "duplicated" else restored(done.analysis.model)
    whole = scale_output(with_arrays(graph, merged), done.plan)
    onnx.checker.check_model(whole, full_check=True)
    found = Session(tap(whole, names, done.analysis)).run(feed)
    each = [Session(tap(part, names, done.analysis)).run(feed) for part in parts]
    for name in names:
        mean = np.mean([values[name] for values in each], axis=0)
        np.testing.assert_allclose(found[name], mean, atol=1e-5 * float(mean.std()))


@pytest.mark.parametrize("name", ["lenet", "regression_mlp", "lrn", "groupnorm", "cifar10"])
@pytest.mark.parametrize("k", [1, 2])
def test_ensemble_identity(name: str, k: int) -> None:
    assert_ensemble(split(BUILDERS[name](), k))


def test_the_input_and_what_it_says_of_itself_stay() -> None:
    done = split(BUILDERS["lrn"](), 2)
    done.whole.doc_string = "a note"
    before = done.whole.SerializeToString(deterministic=True)
    after = scale_output(done.whole, done.plan)
    assert done.whole.SerializeToString(deterministic=True) == before
    assert after.doc_string == "a note"
    assert after.metadata_props == done.whole.metadata_props
    assert after.opset_import == done.whole.opset_import


def test_an_output_function_gets_what_is_scaled() -> None:
    g = GraphBuilder("classifier")
    h = g.relu("relu", g.linear("fc", g.input("x", "N", 5), (5, 6)))
    y = g.node("Softmax", "y", g.linear("logits", h, (6, 3)), axis=-1)
    done = split(g.build({y: ("N", 3)}), 2)
    assert done.plan.mean == ("logits",)
    assert_ensemble(done)


def test_a_mean_behind_a_mean_is_scaled_once() -> None:
    g = GraphBuilder("two_means")
    h = g.relu("relu", g.linear("fc", g.input("x", "N", 5), (5, 6)))
    logits = g.linear("logits", h, (6, 3))
    cold = g.node("Mul", "cold", logits, g.constant("temperature", np.array(0.5, np.float32)))
    done = split(g.build({logits: ("N", 3), cold: ("N", 3)}), 2)
    assert set(done.plan.mean) == {logits, cold}
    assert_ensemble(done)


def test_a_mean_behind_a_mean_and_a_branch_is_scaled_once() -> None:
    n = Net(("x", ("N", 5)))
    logits = n.linear(n.op("Relu", n.linear("x", 5, 6)), 6, 3, name="logits")
    bias = n.random("shift", 3)
    (y,) = taken(n, given(n), lambda m: [m.op("Add", logits, bias)], lambda m: [m.op("Neg", logits)])
    done = split(n.model(logits, y, shape=("N", 3)), 2)
    assert set(done.plan.mean) == {logits, y}
    assert_ensemble(done)


def test_contributions_that_meet_in_a_loop_are_scaled_behind_it() -> None:
    done = split(recurrent("elman", "Scan", each_inside=True), 2)
    assert len(done.plan.mean) == 2
    assert_ensemble(done)


@pytest.mark.parametrize("otherwise", ["Add", "Identity"])
def test_what_a_branch_adds_to_the_sum_is_refused(otherwise: str) -> None:
    n = Net(("x", ("N", 5)))
    logits = n.linear(n.op("Relu", n.linear("x", 5, 6)), 6, 5, name="logits")
    added = {"Add": lambda m: [m.op("Add", logits, "x")], "Identity": lambda m: [m.op("Identity", "x")]}[otherwise]
    (y,) = taken(n, given(n), lambda m: [m.op("Neg", logits)], added)
    done = split(n.model(y, shape=("N", 5)), 2)
    assert y in done.plan.mean
    assert verify(done.analysis, done.plan).holds
    with pytest.raises(
        MergeError, match=r"If 'if' adds something to the sum of the parts that belongs to no part; merge with"
    ):
        assert_ensemble(done)


def test_what_a_loop_adds_to_the_sum_is_refused() -> None:
    n = Net(("x", ("T", "N", 5)))

    def step(m: Net, x: str, states: list[str]) -> tuple[list[str], list[str]]:
        state = m.op("Tanh", m.op("Add", m.op("MatMul", x, m.random("w", 5, 6)), states[0]))
        return [state], [m.op("Add", m.op("MatMul", state, m.random("out", 6, 5)), x)]

    state, each = scan(n, [zeros(n, 6)], step)
    done = split(n.model(each, n.linear(state, 6, 2, name="y"), shape={each: ("T", "N", 5), "y": ("N", 2)}), 2)
    assert each in done.plan.mean
    assert verify(done.analysis, done.plan).holds
    with pytest.raises(MergeError, match="Scan 'scan' adds something to the sum of the parts"):
        assert_ensemble(done)


def hidden() -> tuple[Net, str]:
    """A network in the making, and its last hidden layer."""
    net = Net(("x", ("N", 5)))
    return net, net.op("Relu", net.linear("x", 5, 6, name="fc"))


ADDED: dict[str, Callable[[Net, str], str]] = {
    "an input": lambda n, y: n.op("Add", y, "x"),
    "in front": lambda n, y: n.op("Sub", "x", y),
    "beside": lambda n, y: n.op("Concat", y, "x", axis=1),
    "what is made of an input": lambda n, y: n.op("Sum", n.op("Tanh", "x"), y, n.op("Neg", "x")),
    "and a bias behind": lambda n, y: n.op("Add", n.op("Add", y, "x"), n.random("late", 5)),
    "times an input": lambda n, y: n.op("Add", n.op("Mul", y, "x"), "x"),
    "a number": lambda n, y: n.op("Add", y, n.number(3.0)),
    "a number of its shape": lambda n, y: n.op("Add", y, n.op("Expand", n.number(3.0), n.op("Shape", y))),
    "a number made of numbers": lambda n, y: n.op("Add", y, n.op("Exp", n.op("Mul", n.number(2.0), n.number(0.5)))),
    "a bias times a number": lambda n, y: n.op("Add", y, n.op("Mul", n.random("late", 5), n.number(3.0))),
    "an exponential bias": lambda n, y: n.op("Add", y, n.op("Exp", n.random("late", 5))),
    "a product of biases": lambda n, y: n.op("Add", y, n.op("Mul", n.random("late", 5), n.random("later", 5))),
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("function", ["", "Softmax"])
def test_what_is_added_behind_the_meeting_point(added: str, function: str) -> None:
    net, h = hidden()
    y = ADDED[added](net, net.linear(h, 6, 5, name="y"))
    done = split(net.model(net.op(function, y) if function else y), 2)
    assert done.plan.mean[-1] == y
    assert verify(done.analysis, done.plan).holds
    assert_ensemble(done)
    if done.plan.same_graph:
        assert_ensemble(done, "original")


def test_a_mean_and_what_is_added_to_it_are_both_outputs() -> None:
    net, h = hidden()
    y = net.linear(h, 6, 5, name="y")
    done = split(net.model(y, net.op("Add", y, "x")), 3)
    assert len(done.plan.mean) == 2
    assert_ensemble(done)


def tied(bias: bool) -> ModelProto:
    """A language model in small, with one matrix for the embedding and the output."""
    net = Net(("ids", ("N", 4)))
    net.inputs[0].type.tensor_type.elem_type = TensorProto.INT64
    table = net.random("table", 9, 6)
    h = net.op("Tanh", net.op("MatMul", net.op("Gather", table, "ids", axis=0), net.random("w", 6, 6)))
    y = net.op("MatMul", h, net.op("Transpose", table, perm=[1, 0]))
    return net.model(net.op("Add", y, net.random("b", 9)) if bias else y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("k", [2, 3])
def test_a_tied_embedding_is_exact_in_the_original_graph(bias: bool, k: int) -> None:
    """Its weight can't be divided by K, as the embedding reads it too: here the alternative matters."""
    done = split(tied(bias), k)
    assert not done.plan.same_graph
    assert_ensemble(done)
    assert_ensemble(done, "original")
    parts = trained(done)
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    (name,) = done.plan.mean
    plain = with_arrays(restored(done.analysis.model), merge(done.plan, [arrays(p) for p in parts], into="original"))
    mean = np.mean([Session(tap(part, [name], done.analysis)).run(feed)[name] for part in parts], axis=0)
    assert np.abs(Session(plain).run(feed)[name] - mean).max() > mean.std() / 2


@pytest.mark.parametrize("name", ["lrn", "layernorm", "lenet"])
def test_parts_that_were_merged_from_others(name: str) -> None:
    done = split(BUILDERS[name](), 4)
    assert_ensemble(merge_to(done, [arrays(part) for part in done.parts], 2))


def test_averages_and_biases_behind_them() -> None:
    """Contributions that exist once per part meet in a mean, to which a bias is added; for levels too."""
    net, h = hidden()
    y = net.op("ReduceSum", net.op("Mul", h, net.op("Tanh", net.linear("x", 5, 6))), net.ints(1), keepdims=1)
    done = split(net.model(net.op("Add", net.op("Add", y, "x"), net.random("late", 5))), 2)
    assert not done.plan.same_graph
    assert_ensemble(done)


@pytest.mark.parametrize("normalize", ["weights", "output"])
def test_fresh_parts_merge_before_any_training(normalize: Normalize) -> None:
    """The comparison of section 3.2: a merge at epoch 0."""
    done = split(BUILDERS["lenet"](), 2, init="he")
    values = [arrays(part) for part in done.parts]
    merged = merge(done.plan, values, normalize=normalize)
    assert all(np.count_nonzero(values[0][name]) for name in ("conv1.weight", "fc1.weight", "logits.weight"))
    assert np.count_nonzero(merged["fc1.weight"]) <= merged["fc1.weight"].size / 2
    whole = with_arrays(done.whole, merged)
    whole = scale_output(whole, done.plan) if normalize == "output" else whole
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    mean = np.mean([Session(part).run(feed)["logits"] for part in done.parts], axis=0)
    np.testing.assert_allclose(Session(whole).run(feed)["logits"], mean, atol=1e-5 * float(mean.std()))
