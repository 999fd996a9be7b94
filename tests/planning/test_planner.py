"""The plan: how many units each part gets, in which order, and what numbers come of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from models import GOLDEN, cifar10_net, lenet, light
from models.builder import parameter_count
from onnxpart import MergeError, PartitionError, Plan, UsageError, analyse, arrays, load, merge, plan, split, verify
from onnxpart.planning.balance import quotas
from onnxpart.planning.plan import ORDERS, from_ranges, to_ranges
from tests.networks.net import Net

LENET = {1: 431_080, 2: 109_295, 5: 18_224, 10: 4_867}
"""Parameters of one part (section 3.1)."""


def mlp(*widths: int) -> ModelProto:
    n = Net(("x", ("N", widths[0])))
    h = "x"
    for i, o in pairwise(widths[:-1]):
        h = n.op("Relu", n.linear(h, i, o, name="fc"))
    return n.model(n.linear(h, widths[-2], widths[-1], name="y"))


def rows(planned: Plan, name: str) -> list[list[int]]:
    """Rows of a weight that each part keeps."""
    blocks = planned.by_name[name].blocks
    return [np.concatenate([from_ranges(block[0] or ()) for block in part]).tolist() for part in blocks]


@pytest.mark.parametrize(
    ("size", "shares", "expected"),
    [
        (8, (1, 1), [4, 4]),
        (7, (1, 1, 1), [3, 2, 2]),
        (2, (1, 1, 1), [1, 1, 0]),
        (8, (2, 1, 1), [4, 2, 2]),
        (9, (2, 1, 1), [5, 2, 2]),
        (10, (2, 1, 1), [5, 3, 2]),
        (3, (2, 1), [2, 1]),
        (0, (1, 1), [0, 0]),
    ],
)
def test_quotas(size: int, shares: tuple[int, ...], expected: list[int]) -> None:
    assert quotas(size, shares) == expected


def test_a_remainder_goes_to_the_least_loaded_part() -> None:
    assert quotas(7, (1, 1), load=[2.0, 1.0]) == [3, 4]
    assert quotas(4, (1, 1, 1), load=[1.0, 0.5, 0.5]) == [1, 2, 1]


@given(size=st.integers(0, 10_000), shares=st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_quotas_are_within_one_of_the_exact_share(size: int, shares: list[int]) -> None:
    counts = quotas(size, shares)
    assert sum(counts) == size
    assert all(abs(n - size * s / sum(shares)) < 1 + 1e-9 for n, s in zip(counts, shares, strict=True))


def test_remainders_of_several_layers_are_spread() -> None:
    planned = split(mlp(4, 5, 5, 5, 5, 2), 2).plan
    parts = [layer.parts for layer in planned.layers if layer.parts]
    assert sorted(parts) == [(2, 3), (2, 3), (3, 2), (3, 2)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("contiguous", [[0, 1, 2], [3, 4, 5]]), ("interleaved", [[0, 2, 4], [1, 3, 5]])],
)
def test_orders(order: str, expected: list[list[int]]) -> None:
    planned = split(mlp(4, 6, 6, 2), 2, order=order).plan
    assert rows(planned, "fc.weight") == rows(planned, "fc2.weight") == expected


def test_interleaved_with_unequal_shares() -> None:
    assert rows(split(mlp(4, 8, 2), 3, order="interleaved", shares=(2, 1, 1)).plan, "fc.weight") == [
        [0, 3, 4, 7],
        [1, 5],
        [2, 6],
    ]


def test_random_order_follows_the_seed_and_is_another_in_every_layer() -> None:
    first, again, other = (split(mlp(4, 12, 12, 2), 3, order="random", seed=s).plan for s in (1, 1, 2))
    assert first == again
    assert rows(first, "fc.weight") != rows(other, "fc.weight")
    assert rows(first, "fc.weight") != rows(first, "fc2.weight")
    for name in ("fc.weight", "fc2.weight"):
        assert sorted(chain(*rows(first, name))) == list(range(12))
        assert [len(part) for part in rows(first, name)] == [4, 4, 4]


@pytest.mark.parametrize("order", ORDERS)
def test_unequal_shares(order: str) -> None:
    planned = split(mlp(4, 8, 16, 2), 3, order=order, shares=(2, 1, 1)).plan
    assert [layer.parts for layer in planned.layers if layer.parts] == [(4, 2, 2), (8, 4, 4)]
    assert planned.by_name["fc2.weight"].part_shape(0) == (8, 4)
    assert planned.shares == (2, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "K is 0"),
        ({"k": -3}, "K is -3"),
        ({"k": 2, "order": "sorted"}, "the order 'sorted' is unknown"),
        ({"k": 2, "shares": (1, 1, 1)}, "3 shares"),
        ({"k": 2, "shares": (1, 0)}, "2 shares"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(GOLDEN["chain"](), **options)  # type: ignore[arg-type]


def test_more_parts_than_units() -> None:
    with pytest.raises(PartitionError, match=r"no layer can be divided into 7 parts \(its units move in 4 classes"):
        split(GOLDEN["chain"](), 7)
    planned = split(GOLDEN["chain"](), 5).plan
    assert [layer.parts for layer in planned.layers] == [(), (2, 1, 1, 1, 1), ()]
    assert planned.layers[0].reason == "its units move in 4 classes, too few for 5 parts"
    assert planned.replicated == ("conv1.weight", "conv1.bias")


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "unknown_op"])
def test_one_part_keeps_everything(name: str) -> None:
    analysis = analyse(load(GOLDEN[name]()))
    planned = plan(analysis, 1)
    assert planned.parameters(0) == planned.parameters()
    assert all(i.part_shape(0) == i.shape for i in planned.initializers)
    assert planned.same_graph
    own = arrays(analysis.model)
    merged = merge(planned, [own])
    assert all(np.array_equal(merged[i.name], own[i.name]) for i in planned.initializers)


@pytest.mark.parametrize("k", LENET)
@pytest.mark.parametrize("order", ["contiguous", "interleaved"])
def test_lenet_has_the_sizes_of_the_paper(k: int, order: str, tmp_path: Path) -> None:
    done = split(lenet(), k, order=order)
    assert done.plan.parameters() == LENET[1]
    done.save(tmp_path / "parts")
    files = [tmp_path / "parts" / f"part{p}.onnx" for p in range(k)]
    for p, file in enumerate(files):
        assert done.plan.parameters(p) == LENET[k]
        assert parameter_count(onnx.load(file)) == LENET[k]
    assert parameter_count(onnx.load(tmp_path / "parts" / "whole.onnx")) == LENET[1]
    assert Plan.from_json((tmp_path / "parts" / "plan.json").read_text()) == done.plan
    assert not done.plan.duplicated
    assert not done.plan.replicated


def test_lenet_weights_shrink_by_k_and_k_squared() -> None:
    planned = split(lenet(), 10).plan
    shrink = {
        i.name: int(np.prod(i.shape)) // int(np.prod(i.part_shape(0)))
        for i in planned.initializers
        if i.name.endswith(".weight")
    }
    assert shrink == {"conv1.weight": 10, "conv2.weight": 100, "fc1.weight": 100, "logits.weight": 10}


def test_the_locally_connected_network_of_the_paper_is_divided() -> None:
    planned = split(cifar10_net(), 2).plan
    assert planned.parameters() == 2_112_970
    assert planned.by_name["local3.weight"].part_shape(0)[:2] == planned.by_name["local3.weight"].shape[:2]
    assert planned.parameters() / planned.parameters(0) * 1.05 > 4


@pytest.mark.parametrize(
    ("indices", "ranges"),
    [
        ([], ()),
        ([3], ((3, 4, 1),)),
        ([0, 1, 2, 3], ((0, 4, 1),)),
        ([1, 3, 5, 7], ((1, 8, 2),)),
        ([0, 1, 4, 5], ((0, 2, 1), (4, 6, 1))),
        ([0, 4], ((0, 1, 1), (4, 5, 1))),
    ],
)
def test_ranges(indices: list[int], ranges: tuple[tuple[int, int, int], ...]) -> None:
    assert to_ranges(np.asarray(indices, np.int64)) == ranges
    assert from_ranges(ranges).tolist() == indices


@given(st.sets(st.integers(0, 60)))
def test_ranges_round_trip(indices: set[int]) -> None:
    wanted = np.asarray(sorted(indices), np.int64)
    assert np.array_equal(from_ranges(to_ranges(wanted)), wanted)


def test_a_plan_is_small() -> None:
    """Regular indices are ranges: the plan doesn't grow with the layers."""
    small, large = (split(mlp(8, w, w, 4), 4).plan.to_json() for w in (16, 512))
    assert len(large) < 1.3 * len(small)
    small, large = (str(split(mlp(8, w, w, 4), 4, order="interleaved").plan.initializers) for w in (16, 512))
    assert len(large) < 1.3 * len(small)


def test_a_plan_of_another_schema_is_refused() -> None:
    text = split(GOLDEN["chain"](), 2).plan.to_json()
    with pytest.raises(MergeError, match="schema 99"):
        Plan.from_json(text.replace('"schema":1', '"schema":99'))
    for broken in ("", "[]", "{}", text[:50], text.replace('"blocks"', '"block"')):
        with pytest.raises(MergeError, match=r"the plan .*; split the model again\."):
            Plan.from_json(broken)


def two_shuffled(width: int, group: int, second: int | None = None) -> ModelProto:
    """Two grouped convolutions with a shuffle in between, as in ShuffleNet."""
    n = Net(("x", ("N", 3, 4, 4)))
    h = n.op("Relu", n.conv("x", 3, width, name="stem"))
    h = n.op("Relu", n.conv(h, width, width, group=group, name="first"))
    h = n.op("Reshape", h, n.ints(0, group, width // group, 4, 4))
    h = n.op("Reshape", n.op("Transpose", h, perm=[0, 2, 1, 3, 4]), n.ints(0, width, 4, 4))
    h = n.op("Relu", n.conv(h, width, width, group=second or group, kernel=3, name="second"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    return n.model(n.linear(h, width, 5, name="y"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(("width", "group", "second"), [(24, 3, 3), (16, 2, 2), (32, 4, 4), (24, 3, 2), (48, 4, 3)])
def test_shuffled_groups_are_divided_evenly(width: int, group: int, second: int, k: int, order: str) -> None:
    """Every part gets the same share of every group, in front of the shuffle and behind it."""
    done = split(two_shuffled(width, group, second), k, order=order)
    for name in ("stem", "first", "second"):
        weight = done.plan.by_name[f"{name}.weight"]
        assert {weight.part_shape(p)[0] for p in range(k)} == {width // k}
    for name, groups in (("first", group), ("second", second)):
        for kept in rows(done.plan, f"{name}.weight"):
            assert np.bincount(np.asarray(kept) // (width // groups)).tolist() == [width // groups // k] * groups
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def grouped_like_alexnet(width: int = 12) -> ModelProto:
    """A plain convolution, one of two groups, a plain one again and one of two groups."""
    n = Net(("x", ("N", 3, 4, 4)))
    h = n.op("Relu", n.conv("x", 3, width, name="conv1"))
    h = n.op("Relu", n.conv(h, width, 2 * width, group=2, kernel=3, name="conv2"))
    h = n.op("Relu", n.conv(h, 2 * width, width, name="conv3"))
    h = n.op("Relu", n.conv(h, width, width, group=2, name="conv4"))
    h = n.op("Flatten", n.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    return n.model(n.linear(n.op("Relu", n.linear(h, width * 4, 10, name="fc")), 10, 5, name="y"))


@pytest.mark.parametrize("k", [2, 3])
def test_groups_like_those_of_alexnet(k: int) -> None:
    done = split(grouped_like_alexnet(), k)
    for name, axes in {"conv1": 1, "conv2": 2, "conv3": 2, "conv4": 2, "y": 1}.items():
        weight = done.plan.by_name[f"{name}.weight"]
        sizes = {int(np.prod(weight.part_shape(p))) * k**axes for p in range(k)}
        assert sizes == {int(np.prod(weight.shape))} or name == "y"
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def test_the_shufflenet_of_the_onnx_wheel_is_halved() -> None:
    planned = plan(analyse(load(light("shufflenet"))), 2)
    undivided = [layer for layer in planned.layers if not layer.parts]
    assert [layer.units for layer in undivided] == [1000]
    assert all(layer.parts[0] == layer.parts[1] for layer in planned.layers if layer.parts)


def test_groups_too_narrow_to_divide_go_as_a_whole() -> None:
    """8 groups of 2 channels in 4 parts: two groups each."""
    n = Net(("x", ("N", 3, 4, 4)))
    h = n.op("Relu", n.conv("x", 3, 16, name="stem"))
    h = n.op("Relu", n.conv(h, 16, 16, group=8, name="narrow"))
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    done = split(n.model(n.linear(h, 16, 3, name="y")), 4)
    assert rows(done.plan, "narrow.weight") == [list(range(4 * p, 4 * p + 4)) for p in range(4)]
    assert done.plan.by_name["narrow.weight"].part_shape(0) == (4, 2, 1, 1)
    group = next(a.i for node in done.parts[0].graph.node for a in node.attribute if a.name == "group" and a.i > 1)
    assert group == 2
    assert verify(done.analysis, done.plan).holds


def normalized(n: Net, h: str, groups: int, width: int) -> str:
    """A normalisation of groups by a mean, as it is written out."""
    apart = n.op("Reshape", h, n.ints(0, groups, width, 4, 4))
    mean = n.op("ReduceMean", apart, axes=[2, 3, 4], keepdims=1)
    return n.op("Reshape", n.op("Sub", apart, mean), n.ints(0, groups * width, 4, 4))


def groups_that_norms_tie(front: bool, behind: bool) -> ModelProto:
    """A convolution of 9 groups of 4, and norms that want each of these 4 together in front of it or behind it."""
    n = Net(("x", ("N", 3, 4, 4)))
    h = n.conv("x", 3, 36, name="stem")
    h = n.op("Relu", normalized(n, h, 9, 4) if front else h)
    h = n.conv(h, 36, 36, group=9, name="groups")
    h = n.op("Tanh", normalized(n, h, 9, 4) if behind else h)
    h = n.op("Flatten", n.op("GlobalAveragePool", n.conv(h, 36, 12, name="last")), axis=1)
    return n.model(n.linear(h, 12, 3, name="y"))


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("behind", [True, False])
def test_groups_that_others_tie_go_as_a_whole(behind: bool, k: int) -> None:
    """A part has the same groups in front of the convolution and behind it, whether K divides their number or not."""
    done = split(groups_that_norms_tie(True, behind), k)
    kept = rows(done.plan, "groups.weight")
    assert kept == rows(done.plan, "stem.weight")
    assert sorted(chain(*kept)) == list(range(36))
    assert {len(part) // 4 for part in kept} <= {9 // k, 9 // k + 1}
    assert done.plan.same_graph
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


@pytest.mark.parametrize("k", [2, 3, 4])
def test_whole_groups_of_shares_of_the_inputs(k: int) -> None:
    """What is tied behind the convolution alone reads its share of each group's units in front of it."""
    done = split(groups_that_norms_tie(False, True), k)
    kept, behind = rows(done.plan, "stem.weight"), rows(done.plan, "groups.weight")
    assert {tuple(np.bincount(np.asarray(part) // 4, minlength=9)) for part in kept} <= {
        (units,) * 9 for units in (4 // k, 4 // k + 1)
    }
    assert all(np.bincount(np.asarray(part) // 4)[np.unique(np.asarray(part) // 4)].min() == 4 for part in behind)
    assert sorted(chain(*behind)) == list(range(36))
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def test_groups_that_others_tie_do_not_fit_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpart.planning.assign.apart", lambda inputs, outputs: False)
    with pytest.raises(PartitionError, match="groups"):
        split(groups_that_norms_tie(front=True, behind=True), 4)


def test_what_is_cut_out_of_a_tensor_is_divided_alike() -> None:
    """Slice and Gather of golden `slice_split`: every part gets a unit of each piece, so nothing is replicated."""
    for k, order in ((2, "contiguous"), (2, "random")):
        planned = split(GOLDEN["slice_split"](), k, order=order).plan
        assert not planned.replicated
        assert planned.parameters(0) == planned.parameters(1)


def hidden_sizes(planned: Plan) -> Sequence[tuple[int, ...]]:
    return [layer.parts for layer in planned.layers if layer.parts]


def test_dividing_again_divides_further() -> None:
    """Four parts by halving twice have the sizes of four parts."""
    half = split(lenet(), 2)
    quarter = split(half.parts[0], 2)
    assert hidden_sizes(quarter.plan) == [(5, 5), (13, 12), (125, 125)]
    assert quarter.plan.parameters() == LENET[2]


def test_padding_is_dealt_out_where_the_units_beside_it_are_not() -> None:
    """Two units that all three parts have, three places of padding for them to share, and a gate that ties both."""
    n = Net(("x", ("N", 6)))
    h = n.op("Pad", n.op("Tanh", n.linear("x", 6, 2)), n.ints(0, 1, 0, 2))
    h = n.op("Mul", n.linear(h, 5, 5, name="gate"), n.op("Sigmoid", h))
    done = split(n.model(n.linear(h, 5, 2, name="y")), 3)
    assert [done.plan.by_name["gate.weight"].part_shape(p) for p in range(3)] == [(3, 3)] * 3
    assert verify(done.analysis, done.plan).holds


@pytest.mark.parametrize("k", [2, 3])
def test_what_is_mixed_from_what_every_part_has_is_in_every_part(k: int) -> None:
    """Units that are an output, their means over one axis, and other units that are added to these."""
    n = Net(("x", ("N", 5)), ("z", ("N", 5)))
    e = n.op("Reshape", n.linear("z", 5, 54, name="e"), n.ints(-1, 9, 6))
    h = n.op("Add", n.linear("x", 5, 9, name="a"), n.op("ReduceMean", e, axes=[2], keepdims=0))
    y = n.linear(n.op("Relu", n.linear(n.op("Tanh", h), 9, 6, name="b")), 6, 2, name="y")
    done = split(n.model(e, y, shape={e: ("N", 9, 6), y: ("N", 2)}), k)
    for model in (*done.parts, done.whole):
        onnx.checker.check_model(model, full_check=True)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
    assert done.plan.by_name["a.weight"].part_shape(0) == (9, 5)
    assert done.plan.by_name["b.bias"].part_shape(0) == (6 // k,)


def test_a_part_that_would_have_nothing_of_a_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ((None, None),)
    monkeypatch.setattr("onnxpart.planning.initializers._blocks", lambda *_: (whole, ()))
    with pytest.raises(PartitionError, match=r"part 1 would have nothing of 'conv1.weight'; try another order or K"):
        plan(analyse(load(lenet())), 2)
