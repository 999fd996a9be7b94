"""Scaling the output by 1/K in place of its weights gives the same whole."""

import numpy as np
import onnx
import pytest
from looping import given, recurrent, taken
from networks import Net
from onnx import ModelProto

from models import BUILDERS
from models.builder import GraphBuilder
from onnxpart import Split, arrays, merge, split
from onnxpart.emit import layout_of
from onnxpart.fresh import draw
from onnxpart.model import with_arrays
from onnxpart.normalize import scale_output
from onnxpart.verify import Session, inputs, tap


def trained(done: Split) -> list[ModelProto]:
    """The parts with weights of their own, biases among them."""
    rng = np.random.default_rng(0)
    layout = layout_of(done.analysis, done.plan)
    return [with_arrays(part, draw(done.analysis, done.plan, layout, p, rng)) for p, part in enumerate(done.parts)]


def assert_ensemble(done: Split) -> None:
    feed = inputs(done.analysis, 0, np.random.default_rng(1))
    names = done.plan.mean
    parts = trained(done)
    merged = merge(done.plan, [arrays(part) for part in parts], normalize="output")
    whole = scale_output(with_arrays(done.whole, merged), done.plan)
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
