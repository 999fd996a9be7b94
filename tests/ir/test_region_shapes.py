"""Shapes of what goes into If, Loop and Scan, and of what comes out."""

from __future__ import annotations

from onnxpart.frontend.load import load
from onnxpart.ir.infer import infer
from onnxpart.ir.region_shapes import grown, repeats
from onnxpart.ir.shapes import TRIALS
from tests.networks.looping import given, integer, loop, taken
from tests.networks.net import Net


def test_what_a_loop_collects_lies_along_a_new_axis() -> None:
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    last, collected = loop(n, integer(n, 7), [h], lambda m, _, s: ([m.op("Tanh", s[0])], [m.op("Relu", s[0])]))
    dims = {n.linear(last, 5, 2, name="out"): (2, 2), collected: (7, 2, 5)}
    shapes = infer(load(n.model(*dims, shape=dims)))
    assert shapes.shape[last] == (2, 5)
    assert shapes.shape[collected] == (7, 2, 5)


def test_branches_that_differ_in_size_have_a_trial_size() -> None:
    n = Net(("x", (2, 6)))
    h = n.linear("x", 6, 6)
    flag = given(n)
    (out,) = taken(n, flag, lambda m: [m.op("Relu", h)], lambda m: [m.op("Slice", h, n.ints(0), n.ints(3), n.ints(1))])
    shapes = infer(load(n.model(n.op("ReduceSum", out, n.ints(1)))))
    assert shapes.shape[out] == (2, TRIALS[0].found)


def test_nothing_has_grown_where_states_keep_their_shape() -> None:
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    (last,) = loop(n, integer(n, 3), [h], lambda m, _, s: ([m.op("Tanh", s[0])], []))
    assert grown(infer(load(n.model(n.linear(last, 5, 2, name="out"))))) == {}


def test_what_stands_in_a_loop_is_repeated() -> None:
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    (last,) = loop(n, integer(n, 9), [h], lambda m, _, s: ([m.op("Tanh", m.linear(s[0], 5, 5))], []))
    model = load(n.model(n.linear(last, 5, 2, name="out")))
    shapes = infer(model)
    times = {node.op_type: repeats(shapes, path) for node, path in zip(model.flat.nodes, model.flat.paths, strict=True)}
    assert times["Tanh"] == 9
    assert repeats(shapes, ()) == 1
