"""Steps with graphs inside: If, Loop and Scan over what other steps make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from onnx import GraphProto

from tests.networks import steps
from tests.networks.growing import Dim, Growing, Value
from tests.networks.looping import graph
from tests.networks.steps import COMMON


def within(
    g: Growing,
    build: Callable[[Growing], Sequence[str]],
    inputs: Mapping[str, str],
    dims: Sequence[Dim] | None = None,
    **found: Value,
) -> GraphProto:
    """A graph inside a node; `found` are values that only it sees."""
    before = g.values
    g.values = [*before, *found.values()]
    result = graph(g.net, g.net.name("graph"), inputs, lambda _: build(g), dims)
    g.values = before
    return result


def some_steps(g: Growing, v: Value, dims: Sequence[Dim]) -> str:
    """A few steps from `v` on, and a layer that gives a value of the sizes `dims`."""
    for _ in range(g.draw(3)):
        g.of(COMMON)(g)
    u = g.pick(lambda u: u.dims[:-1] == tuple(dims)[:-1] and u.fixed(-1)) or v
    made = g.dense(u, prod(map(int, dims[-1:])))
    return g.net.op(g.of(("Tanh", "Sigmoid", "Softsign")), made.name)


def branch(g: Growing) -> None:
    """An If: what decides is an input or units; a branch computes something or hands it on."""
    v = g.pick(lambda v: v.fixed(-1))
    if v is None:
        return
    net, what = g.net, "x" if g.draw(3) else v.name
    condition = net.op("Greater", net.op("ReduceSum", what, keepdims=0), net.number(0))
    dims = v.dims if g.draw(2) else (*v.dims[:-1], g.width())

    def either(inner: Growing) -> list[str]:
        if dims == v.dims and inner.chance(3):
            return [inner.net.op("Identity", v.name)]
        return [some_steps(inner, v, dims)]

    then, otherwise = within(g, either, {}), within(g, either, {})
    g.put(net.op("If", condition, then_branch=then, else_branch=otherwise), dims)


def repeat(g: Growing) -> None:
    """A Loop of two iterations with one or two states, the second of which counts or is the first one's last value."""
    v = g.pick(lambda v: v.fixed(-1))
    if v is None:
        return
    net, kind = g.net, g.draw(3)
    s, t, going, other = (net.name(hint) for hint in ("state", "t", "going", "other"))
    net.reserved.update((s, t, going, other))
    states = [v.name, *([v.name] if kind == 1 else [net.number(0)] if kind == 2 else [])]

    def body(inner: Growing) -> list[str]:
        after = some_steps(inner, inner.values[-1], v.dims)
        if kind == 2:
            after = inner.net.op("Add", after, other)
        second = [s] if kind == 1 else [inner.net.op("Add", other, inner.net.number(0.1))] if kind == 2 else []
        second = [inner.net.op("Identity", name) for name in second]
        return [inner.net.op("Identity", going), after, *second, inner.net.op("Neg", after)]

    inputs = {t: "count", going: "going", s: "state", **({other: "state"} if kind else {})}
    made = within(g, body, inputs, state=Value(s, v.dims))
    trips = net.array("trips", np.asarray(2, np.int64))
    found = net.ops("Loop", trips, "", *states, count=len(states) + 1, body=made)
    g.put(found[0], v.dims)
    if kind == 1:
        g.put(found[1], v.dims)
    if g.draw(2):
        g.put(g.reduce("ReduceMean", found[-1], [0], 0), v.dims)


def run_along(g: Growing) -> None:
    """A Scan along an axis, from any end, whose results lie along another one."""
    v = g.pick(lambda v: v.rank > 1 and v.fixed(-1) and bool(v.axes(2)))
    if v is None or g.opset < 9:
        return
    net, axis = g.net, g.of(v.axes(2))
    dims = tuple(d for a, d in enumerate(v.dims) if a != axis)
    if not isinstance(dims[-1], int):
        return
    first = g.reduce(g.of(("ReduceMean", "ReduceMax")), v.name, [axis], 0)
    s, part = net.name("state"), net.name("part")
    net.reserved.update((s, part))

    def body(inner: Growing) -> list[str]:
        after = some_steps(inner, inner.values[-1], dims)
        both = inner.net.op("Add", after, inner.dense(Value(part, dims), prod(map(int, dims[-1:]))).name)
        after = inner.net.op("Tanh", both)
        return [after, inner.net.op("Neg", after)]

    made = within(g, body, {s: "state", part: "each"}, dims, part=Value(part, dims), state=Value(s, dims))
    put, ways = g.draw(v.rank), [[g.draw(2)], [g.draw(2)]]
    last, each = net.ops(
        "Scan", first, v.name, count=2, body=made, num_scan_inputs=1, scan_input_axes=[axis], scan_output_axes=[put],
        scan_input_directions=ways[0], scan_output_directions=ways[1],
    )  # fmt: skip
    g.put(last, dims)
    g.put(each, [*dims[:put], v.dims[axis], *dims[put:]])


NESTED: tuple[Callable[[Growing], None], ...] = (branch, repeat, run_along)
STEPS = (*steps.STEPS, *NESTED)
