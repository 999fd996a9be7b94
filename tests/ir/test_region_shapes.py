"""Shapes of what goes into If, Loop and Scan, and of what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxpart.errors import ModelError
from onnxpart.frontend.load import load
from onnxpart.ir.flatten import ENTER, Role, role_of
from onnxpart.ir.infer import infer, infer_at, light_of
from onnxpart.ir.region_shapes import grown, repeats
from onnxpart.ir.shapes import TRIALS, Shapes
from tests.networks.looping import given, graph, integer, loop, taken
from tests.networks.net import Net


def collecting(trips: int, going: str = "true", *, dynamic: bool = False) -> tuple[Shapes, str, str]:
    """A loop over `[2, 5]` that collects what it makes; its shapes, and the names of its results."""
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    count = n.op("Cast", n.op("ReduceSum", "x", keepdims=0), to=TensorProto.INT64) if dynamic else integer(n, trips)
    on = given(n) if going == "input" else n.array("on", np.asarray(going == "true"))
    last, collected = loop(n, count, [h], lambda m, _, s: ([m.op("Tanh", s[0])], [m.op("Relu", s[0])]), lambda m: on)
    dims: dict[str, Sequence[int | str]] = {n.linear(last, 5, 2, name="out"): (2, 2), collected: ("T", 2, 5)}
    return infer(load(n.model(*dims, shape=dims))), last, collected


def test_what_a_loop_collects_lies_along_a_new_axis() -> None:
    shapes, last, collected = collecting(7)
    assert shapes.shape[last] == (2, 5)
    assert shapes.shape[collected] == (7, 2, 5)


@pytest.mark.parametrize(
    ("going", "dynamic"), [("input", False), ("false", False), ("true", True)], ids=["input", "ended", "count of data"]
)
def test_a_loop_of_unknown_length_has_a_trial_length(going: str, dynamic: bool) -> None:
    shapes, _, collected = collecting(7, going, dynamic=dynamic)
    assert shapes.shape[collected] == (TRIALS[0].iterations, 2, 5)
    assert shapes.other is not None
    assert shapes.other.shape[collected] == (TRIALS[1].iterations, 2, 5)


def test_what_a_body_is_told_is_a_guess_unless_it_holds_for_every_iteration() -> None:
    shapes, _, _ = collecting(7)
    told = {role_of(m): m.output[0] for m in shapes.model.flat.nodes if m.domain == ENTER and m.output and m.output[0]}
    count, going = told[Role.COUNT], told[Role.GOING]
    assert shapes.shape[count] == shapes.shape[going] == ()
    assert (shapes.dtype[count], shapes.dtype[going]) == (TensorProto.INT64, TensorProto.BOOL)
    assert shapes.guessed[count] == TRIALS[0].iteration
    assert shapes.value(count) is None
    assert shapes.value(going) == np.asarray(True)


def test_branches_that_differ_in_size_have_a_trial_size() -> None:
    n = Net(("x", (2, 6)))
    h = n.linear("x", 6, 6)
    flag = given(n)
    (out,) = taken(n, flag, lambda m: [m.op("Relu", h)], lambda m: [m.op("Slice", h, n.ints(0), n.ints(3), n.ints(1))])
    shapes = infer(load(n.model(n.op("ReduceSum", out, n.ints(1)))))
    assert shapes.shape[out] == (2, TRIALS[0].found)


def test_branches_of_different_ranks_have_no_shape() -> None:
    n = Net(("x", (2, 6)))
    h = n.linear("x", 6, 6)
    (out,) = taken(n, given(n), lambda m: [m.op("Relu", h)], lambda m: [m.op("Unsqueeze", h, n.ints(0))])
    n.op("ReduceSum", out, keepdims=0, name="sum")
    assert out not in infer(load(n.model("sum", shape=()))).shape


def scanning(x: Mapping[str, Sequence[int]], axes: Sequence[int] = (0, 0), to: int = 0) -> onnx.ModelProto:
    """A Scan over inputs of four axes and `[.., 5]`, one of which is scaled; its results lie along an axis."""
    n = Net(*x.items())
    names = list(x)
    scaled = n.op("Mul", names[0], n.random("scale", 5))

    def body(m: Net) -> list[str]:
        return [m.op("Tanh", "state"), m.op("Add", *(f"{name}_t" for name in names))]

    inner = graph(n, "body", {"state": "state", **{f"{name}_t": "each" for name in names}}, body)
    first = n.array("first", np.zeros(5, np.float32))
    last, made = n.ops(
        "Scan", first, scaled, *names[1:], count=2, name="scan", body=inner, num_scan_inputs=len(names),
        scan_input_axes=list(axes), scan_output_axes=[to],
    )  # fmt: skip
    return n.model(last, made)


def test_a_scans_results_lie_along_the_axis_that_it_names() -> None:
    model = load(scanning({"x": (7, 2, 5), "y": (2, 7, 5)}, axes=[0, 1], to=-2))
    shapes = infer(model)
    assert shapes.shape["scan.1"] == (2, 7, 5)
    (tanh,) = (i for i, node in enumerate(model.flat.nodes) if node.op_type == "Tanh")
    assert repeats(shapes, model.flat.paths[tanh]) == 7


def test_sequences_of_different_lengths_are_refused() -> None:
    model = scanning({"x": (7, 2, 5), "y": (7, 2, 5)})
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 9
    with pytest.raises(ModelError, match=r"'scan' runs along sequences of lengths 7, 9; fix the export"):
        infer(load(model))


def test_an_axis_that_a_tensor_has_not_is_refused() -> None:
    model = scanning({"x": (7, 2, 5), "y": (7, 2, 5)})
    (node,) = (node for node in model.graph.node if node.op_type == "Scan")
    (axes,) = (a for a in node.attribute if a.name == "scan_output_axes")
    axes.ints[:] = [3]
    with pytest.raises(ModelError, match=r"'scan' runs along axis 3 of a tensor that has 3 axes"):
        infer(load(model))


def growing(step: str) -> Shapes:
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    kinds = {
        "same": lambda m, s: m.op("Tanh", s),
        "longer": lambda m, s: m.op("Concat", s, s, axis=0),
        "deeper": lambda m, s: m.op("Unsqueeze", s, n.ints(0)),
    }
    (last,) = loop(n, integer(n, 3), [h], lambda m, _, s: ([kinds[step](m, s[0])], []))
    n.op("ReduceSum", last, keepdims=0, name="sum")
    model = load(n.model("sum", shape=()))
    return infer_at(model, light_of(model), TRIALS[0])


@pytest.mark.parametrize(("step", "after"), [("same", []), ("longer", [(4, 5)]), ("deeper", [None])])
def test_what_a_state_becomes(step: str, after: list[tuple[int, ...] | None]) -> None:
    assert list(grown(growing(step)).values()) == after


def test_a_scan_whose_state_grows_is_refused() -> None:
    n = Net(("x", (7, 5)))
    scaled, first = n.op("Mul", "x", n.random("scale", 5)), n.array("first", np.zeros(5, np.float32))
    inner = graph(n, "body", {"state": "state", "t": "each"}, lambda m: [m.op("Concat", "state", "t", axis=0)])
    last = n.op("Scan", first, scaled, name="scan", body=inner, num_scan_inputs=1)
    n.op("ReduceSum", last, keepdims=0, name="sum")
    with pytest.raises(ModelError, match=r"the body of Scan 'scan' turns a state of shape \(5,\) into one of \(10,\)"):
        infer(load(n.model("sum", shape=())))


def test_what_stands_in_a_loop_is_repeated() -> None:
    n = Net(("x", (2, 5)))
    h = n.linear("x", 5, 5)
    (last,) = loop(n, integer(n, 9), [h], lambda m, _, s: ([m.op("Tanh", m.linear(s[0], 5, 5))], []))
    model = load(n.model(n.linear(last, 5, 2, name="out")))
    shapes = infer(model)
    times = {node.op_type: repeats(shapes, path) for node, path in zip(model.flat.nodes, model.flat.paths, strict=True)}
    assert times["Tanh"] == 9
    assert repeats(shapes, ()) == 1
