"""States that a loop hands on unchanged are read from outside."""

from __future__ import annotations

import numpy as np
import pytest

import onnxpart
from onnxpart.frontend.loop_invariants import LOOPS
from onnxpart.ir.protos import all_nodes
from tests.networks.copies import restored
from tests.networks.looping import FEATURES, SIZE, elman, length, loop, scan, zeros
from tests.networks.net import Net
from tests.networks.running import run_onnx


@pytest.mark.parametrize("form", sorted(LOOPS))
def test_a_state_that_stays_as_it_is_leaves_the_loop(form: str) -> None:
    n = Net(("x", ("T", "N", FEATURES)))
    first = [zeros(n), n.op("Add", zeros(n), n.random("kept", 1, SIZE))]

    def step(m: Net, x: str, states: list[str]) -> tuple[list[str], list[str]]:
        made = m.op("Add", elman(m, x, states[0]), states[1])
        return [made, m.op("Identity", states[1])], [m.op("Identity", made)]

    if form == "Scan":
        found = scan(n, first, step)
    else:
        found = loop(n, length(n), first, lambda m, t, s: step(m, m.op("Gather", "x", t), s))
    model = n.model(n.op("Add", n.linear(found[0], SIZE, 3), n.linear(found[1], SIZE, 3)), shape=("N", 3))
    loaded = onnxpart.load(model)
    (node,) = (node for node in all_nodes(loaded.proto.graph) if node.op_type == form)
    body = next(a.g for a in node.attribute if a.name == "body")
    assert len(body.output) == {"Scan": 2, "Loop": 3}[form]
    x = np.random.default_rng(0).normal(size=(4, 2, FEATURES)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(restored(loaded), {"x": x})[0], run_onnx(model, {"x": x})[0])
