"""What holds for any network: random small graphs, divided in any way, are divided rightly or refused cleanly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from onnxpart import OnnxpartError, Plan, Split, arrays, load, merge, scatter, split, verify
from onnxpart.analysis.labels import solve
from onnxpart.ir.arrays import array_of
from onnxpart.merging.merge import unmerge
from onnxpart.planning.plan import ORDERS, InitializerPlan, copy_name
from tests.networks.net import Net

Array = NDArray[np.generic]
Draw = Callable[[st.SearchStrategy[int]], int]
PLACES = 3
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "Softplus", "LeakyRelu")


@dataclass
class Growing:
    """A network in the making: `value` is ``[N, width, 3, 3]``, or ``[N, width]`` once it is `flat`."""

    net: Net
    value: str
    width: int
    flat: bool = False

    def layer(self, width: int) -> str:
        """A weighted layer behind the value."""
        if self.flat:
            return self.net.linear(self.value, self.width, width, name="fc")
        return self.net.conv(self.value, self.width, width, kernel=1, name="conv")

    def scale(self, hint: str, positive: bool = False) -> str:
        """A parameter that broadcasts over the units."""
        shape = (self.width,) if self.flat else (self.width, 1, 1)
        return self.net.positive(hint, *shape) if positive else self.net.random(hint, *shape)


def widen(g: Growing, draw: Draw) -> None:
    """A layer of another width."""
    width = draw(st.integers(1, 12))
    g.value, g.width = g.layer(width), width


def activate(g: Growing, draw: Draw) -> None:
    g.value = g.net.op(ACTIVATIONS[draw(st.integers(0, len(ACTIVATIONS) - 1))], g.value)


def residual(g: Growing, draw: Draw) -> None:
    """A block of two layers, added to what goes in."""
    inner = Growing(g.net, g.value, g.width, g.flat)
    widen(inner, draw)
    activate(inner, draw)
    g.value = g.net.op("Add", g.value, inner.layer(g.width))


def branch(g: Growing, draw: Draw) -> None:
    """Two layers beside each other, concatenated."""
    left, right = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    g.value = g.net.op("Concat", g.net.op("Relu", g.layer(left)), g.net.op("Tanh", g.layer(right)), axis=1)
    g.width = left + right


def gate(g: Growing, draw: Draw) -> None:
    """One layer of twice the width, split into values and gates."""
    width = draw(st.integers(1, 8))
    values, gates = g.net.ops("Split", g.layer(2 * width), count=2, axis=1)
    g.value, g.width = g.net.op("Mul", values, g.net.op("Sigmoid", gates)), width


def cut(g: Growing, draw: Draw) -> None:
    """A range of the units."""
    start = draw(st.integers(0, g.width - 1))
    end = draw(st.integers(start + 1, g.width))
    g.value = g.net.op("Slice", g.value, g.net.ints(start), g.net.ints(end), g.net.ints(1))
    g.width = end - start


def reverse(g: Growing, draw: Draw) -> None:
    """The units in another order, some perhaps twice."""
    twice = draw(st.integers(0, 1))
    picked = [*range(g.width)][::-1] + [0] * twice
    g.value, g.width = g.net.op("Gather", g.value, g.net.ints(*picked), axis=1), len(picked)


def grouped(g: Growing, draw: Draw) -> None:
    """A convolution of some groups, or a depthwise one."""
    if g.flat:
        return
    divisors = [n for n in range(1, g.width + 1) if g.width % n == 0]
    group = divisors[draw(st.integers(0, len(divisors) - 1))]
    width = group * draw(st.integers(1, 3))
    g.value, g.width = g.net.conv(g.value, g.width, width, kernel=3, group=group, name="grouped"), width


def shuffle(g: Growing, draw: Draw) -> None:
    """The channel shuffle of ShuffleNet."""
    divisors = [n for n in range(1, g.width + 1) if g.width % n == 0]
    group = divisors[draw(st.integers(0, len(divisors) - 1))]
    tail = [] if g.flat else [PLACES, PLACES]
    h = g.net.op("Reshape", g.value, g.net.ints(0, group, g.width // group, *tail))
    h = g.net.op("Transpose", h, perm=[0, 2, 1, *range(3, 3 + len(tail))])
    g.value = g.net.op("Reshape", h, g.net.ints(0, g.width, *tail))


def normalise(g: Growing, draw: Draw) -> None:
    """One of the normalisations."""
    n, kind = g.net, draw(st.integers(0, 3))
    if g.flat or kind == 0:
        axis = -1 if g.flat else 1
        shape = (g.width,) if g.flat else (g.width, PLACES, PLACES)
        g.value = n.op("LayerNormalization", g.value, n.positive("scale", *shape), n.random("shift", *shape), axis=axis)
    elif kind == 1:
        parameters = [n.positive("scale", g.width), n.random("shift", g.width), n.random("mean", g.width)]
        g.value = n.op("BatchNormalization", g.value, *parameters, n.positive("variance", g.width))
    elif kind == 2:
        g.value = n.op("LRN", g.value, size=3, alpha=0.5)
    else:
        g.value = n.op("InstanceNormalization", g.value, n.positive("scale", g.width), n.random("shift", g.width))


def modulate(g: Growing, draw: Draw) -> None:
    """A parameter added or multiplied."""
    if draw(st.integers(0, 1)):
        g.value = g.net.op("Add", g.value, g.scale("offset"))
    else:
        g.value = g.net.op("Mul", g.scale("factor", positive=True), g.value)


def flatten(g: Growing, _: Draw) -> None:
    """Places become units of a linear network."""
    if not g.flat:
        g.value, g.width, g.flat = g.net.op("Flatten", g.value, axis=1), g.width * PLACES**2, True
        widen(g, lambda _: 6)


STEPS = (
    widen, activate, residual, branch, gate, cut, reverse, grouped, shuffle, normalise, modulate, flatten,
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> ModelProto:
    """A network of up to 7 steps with one or two outputs."""
    g = Growing(Net(("x", ("N", 2, PLACES, PLACES))), "x", 2)
    g.value, g.width = g.layer(6), 6
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7))
    early = draw(st.integers(-1, len(steps) - 1))
    outputs = []
    for i, step in enumerate(steps):
        step(g, draw)
        if i == early and draw(st.booleans()):
            outputs.append(g.layer(2))
    if not g.flat:
        g.value = g.net.op("Flatten", g.net.op("GlobalAveragePool", g.value), axis=1)
    outputs.append(g.net.linear(g.value, g.width, draw(st.integers(1, 3)), name="y"))
    return g.net.model(*outputs)


WAYS = st.tuples(st.integers(2, 4), st.sampled_from(ORDERS), st.integers(0, 3))


def divided(model: ModelProto, k: int, **options: object) -> Split | None:
    """The network in parts; None where it is refused in a sentence that says what to do."""
    try:
        return split(model, k, **options)  # type: ignore[arg-type]
    except OnnxpartError as error:
        refusal = str(error)
    assert "; " in refusal
    assert refusal.endswith(".")
    return None


def holders(initializer: InitializerPlan, k: int) -> NDArray[np.int64]:
    """How many parts hold each element."""
    count = np.zeros(initializer.shape, np.int64)
    for p in range(k):
        for index, _ in initializer.pieces(p):
            count[index] += 1
    return count


def check_indices(plan: Plan) -> None:
    """Every element is in one part, in all, or in none; every unit is in some part."""
    for i in plan.initializers:
        count = holders(i, plan.k)
        assert set(np.unique(count)) <= {0, 1, plan.k}, i.name
        for axis in range(count.ndim):
            others = tuple(a for a in range(count.ndim) if a != axis)
            assert count.max(axis=others).min() >= 1, (i.name, axis)
        sizes = [int(np.prod(i.part_shape(p))) for p in range(plan.k)]
        assert sum(sizes) == count.sum()


def check_merge(done: Split) -> None:
    """What was split and not trained comes back: the block-masked original, shared elements as they were."""
    plan, parts = done.plan, [arrays(load(part)) for part in done.parts]
    for into in ("original", "duplicated"):
        merged = merge(plan, parts, into=into)
        for i in plan.initializers:
            source, whole = array_of(done.analysis.model, i.name), merged[i.name]
            count = holders(i, plan.k)
            summed = i.reduces and not (into == "duplicated" and i.stored == "sum")
            scale = count / plan.k if summed else count > 0
            np.testing.assert_allclose(whole, (source * scale).astype(source.dtype), rtol=1e-7, err_msg=i.name)
            assert whole.dtype == source.dtype
            for p in range(plan.k):
                name = copy_name(i.name, p)
                assert (name in merged) == (into == "duplicated" and i.stored == "apart")
                if name in merged:
                    np.testing.assert_array_equal(merged[name], parts[p][i.name])


def check_linear(plan: Plan, seed: int) -> None:
    """Momenta may be merged as weights are: the merge of a sum is the sum of the merges."""
    rng = np.random.default_rng(seed)

    def drawn() -> list[dict[str, Array]]:
        return [{i.name: rng.normal(size=i.part_shape(p)) for i in plan.initializers} for p in range(plan.k)]

    a, b = drawn(), drawn()
    both = [{name: x[name] + 2 * y[name] for name in x} for x, y in zip(a, b, strict=True)]
    one, two, three = merge(plan, a), merge(plan, b), merge(plan, both)
    for name, value in three.items():
        np.testing.assert_allclose(value, one[name] + 2 * two[name], rtol=1e-12, atol=1e-12)


def check_unmerge(plan: Plan, seed: int) -> None:
    """Divided and merged again a whole is as it was wherever an element is in a part."""
    rng = np.random.default_rng(seed)
    whole = {i.name: rng.normal(size=i.shape) for i in plan.initializers}
    parts = unmerge(plan, whole)
    assert [{n: a.shape for n, a in part.items()} for part in parts] == [
        {i.name: i.part_shape(p) for i in plan.initializers} for p in range(plan.k)
    ]
    for name, merged in merge(plan, parts, into="original").items():
        held = holders(plan.by_name[name], plan.k) > 0
        np.testing.assert_allclose(merged, whole[name] * held, rtol=1e-15, err_msg=name)


@settings(max_examples=120)
@given(model=networks(), way=WAYS)
def test_any_network_is_divided_rightly_or_refused(model: ModelProto, way: tuple[int, str, int]) -> None:
    k, order, seed = way
    done = divided(model, k, order=order, seed=seed)
    if done is None:
        return
    check_indices(done.plan)
    check_merge(done)
    check_linear(done.plan, seed)
    check_unmerge(done.plan, seed)
    assert Plan.from_json(done.plan.to_json()) == done.plan
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)


@settings(max_examples=40)
@given(model=networks(), way=WAYS)
def test_same_seed_same_plan(model: ModelProto, way: tuple[int, str, int]) -> None:
    k, order, seed = way
    first, second = (divided(model, k, order=order, seed=seed) for _ in range(2))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.plan == second.plan
        assert all(a == b for a, b in zip((*first.parts, first.whole), (*second.parts, second.whole), strict=True))


@settings(max_examples=60)
@given(
    widths=st.lists(st.integers(4, 12), min_size=1, max_size=4),
    shares=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    order=st.sampled_from(ORDERS),
)
def test_layers_are_divided_within_one_unit_of_their_share(widths: list[int], shares: list[int], order: str) -> None:
    g = Growing(Net(("x", ("N", 5))), "x", 5, flat=True)
    for width in widths:
        g.value, g.width = g.net.op("Tanh", g.layer(width)), width
    model = g.net.model(g.layer(2))
    done = divided(model, len(shares), order=order, shares=shares)
    if done is None:
        return
    hidden = [layer for layer in done.plan.layers if layer.parts]
    assert len(hidden) <= len(widths)
    for layer in hidden:
        exact = [layer.units * share / sum(shares) for share in shares]
        assert sum(layer.parts) == layer.units
        assert all(abs(n - e) < 1 for n, e in zip(layer.parts, exact, strict=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_are_kept(dtype: type) -> None:
    net = Net(("x", ("N", 5)), dtype=dtype)
    h = net.op("Tanh", net.linear("x", 5, 6))
    h = net.op("Reshape", net.op("Reshape", h, net.ints(-1, 2, 3)), net.ints(-1, 6))
    h = net.op("Gather", h, net.array("picked", np.asarray([5, 4, 3, 2, 1, 0], np.int32)), axis=1)
    done = split(net.model(net.linear(h, 6, 3, name="y")), 3)
    parts = [arrays(load(part)) for part in done.parts]
    merged = merge(done.plan, parts)
    for name, value in merged.items():
        assert value.dtype == dtype
        assert all(part[name].dtype == dtype for part in parts)
    assert {str(a.dtype) for part in parts for a in part.values()} - {"int32", "int64"} == {np.dtype(dtype).name}
    assert {i.name for i in done.plan.initializers} == merged.keys()


@given(
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    k=st.integers(2, 5),
    reduces=st.booleans(),
    seed=st.integers(0, 9),
)
def test_means_of_equal_values_are_those_values(dtype: type, k: int, reduces: bool, seed: int) -> None:
    """Shared elements are averaged, and those of a reduction: K times the same gives the same."""
    initializer = InitializerPlan("w", (3, 4), (((None, None),),) * k, reduces=reduces)
    array = np.random.default_rng(seed).normal(size=(3, 4)).astype(dtype)
    whole = scatter(initializer, [array] * k)
    assert whole.dtype == dtype
    np.testing.assert_allclose(whole, array, rtol=4 * np.finfo(dtype).eps)


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_classes_are_numbered_by_their_smallest_label(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    count, ties = drawn
    smallest = list(range(count))
    for a, b in ties:
        both = {smallest[a], smallest[b]}
        smallest = [min(both) if label in both else label for label in smallest]
    left, right = np.asarray(ties, np.int32).reshape(-1, 2).T
    numbers = {label: number for number, label in enumerate(sorted(set(smallest)))}
    np.testing.assert_array_equal(solve(count, left, right), [numbers[label] for label in smallest])
