"""What the page shows is what was planned: every unit, parameter and multiply-accumulate once, and the true reasons."""

from __future__ import annotations

from collections import Counter

import pytest
from onnx import ModelProto

from models import BUILDERS
from onnxpart import analyse, load, split
from onnxpart.analysis.repeats import Block
from onnxpart.inspection.sizes import measure
from onnxpart.page.content import MOST_RUNS, Card, Content, content, tree
from onnxpart.planning.planner import partition
from tests.networks.light import HEAVY
from tests.networks.net import Net


def shown(model: ModelProto, k: int = 2, **options: object) -> Content:
    made = partition(analyse(load(model)), k, **options)  # type: ignore[arg-type]
    return content(made, measure(made.analysis, made.plan))


def card(found: Content, title: str) -> Card:
    return next(c for c in found.cards if c.title == title and c.op not in ("Input", "Output"))


def test_lenet() -> None:
    found = shown(BUILDERS["lenet"]())
    assert [c.title for c in found.cards] == ["x", "conv1", "conv2", "fc1", "logits", "logits"]
    assert [c.what for c in found.cards] == ["input", "divided", "divided", "divided", "meeting", "output"]
    assert [c.reads for c in found.cards] == [(), (0,), (1,), (2,), (3,), (4,)]
    fc1 = found.cards[3]
    assert (fc1.units, fc1.runs, fc1.in_order) == (500, ((0, 250), (1, 250)), True)
    assert fc1.parameters == (400_500, 100_250, 100_250)
    assert fc1.macs == (400_000, 100_000, 100_000)
    assert [row["name"] for row in fc1.initializers] == ["fc1.weight", "fc1.bias"]
    assert fc1.shape == "[?, 500]"
    assert found.cards[4].cause == "logits: it is tied to the output 'logits'"
    assert found.cards[4].held == 5
    assert found.items == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {f"light_{name}" for name in HEAVY}))
def test_every_operator_is_shown(name: str) -> None:
    analysis = analyse(load(BUILDERS[name]()))
    made = partition(analysis, 1)
    shown = Counter((o.op, o.outputs) for c in content(made, measure(analysis, made.plan)).cards for o in c.operators)
    assert shown == Counter((op.op_type, tuple(name for name in op.outputs if name)) for op in analysis.ops)


@pytest.mark.parametrize("name", ["lenet", "cifar10", "residual", "qkv", "grouped", "shared_weight", "light_resnet50"])
@pytest.mark.parametrize("k", [2, 3])
def test_sizes_of_cards_add_up_to_those_of_the_networks(name: str, k: int) -> None:
    made = partition(analyse(load(BUILDERS[name]())), k)
    sizes = measure(made.analysis, made.plan)
    cards = content(made, sizes).cards
    for kind in ("parameters", "macs"):
        every = [getattr(size, kind) for size in (sizes.whole, *sizes.parts)]
        held = [getattr(card, kind) for card in cards if getattr(card, kind)]
        assert [sum(values) for values in zip(*held, strict=True)] == every
    names = Counter(row["name"] for c in cards for row in c.initializers)
    assert names == Counter(i.name for i in made.plan.initializers if not i.constant)


def test_units_lie_as_the_order_deals_them() -> None:
    model = BUILDERS["chain"]()
    alternating = shown(model, order="interleaved").cards[1]
    assert [part for part, _ in alternating.runs] == [0, 1] * (alternating.units // 2)
    uneven = shown(model, shares=(3, 1)).cards[1]
    assert dict(uneven.runs)[0] == 3 * dict(uneven.runs)[1]


def test_units_in_too_many_runs_are_sorted_and_that_is_said() -> None:
    wide = card(shown(BUILDERS["lenet"](), order="interleaved"), "fc1")
    assert wide.units > MOST_RUNS
    assert (wide.runs, wide.in_order) == (((0, 250), (1, 250)), False)


def test_concatenated_units_are_shown_where_they_are() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.op("Concat", n.conv("x", 2, 4, name="a"), n.conv("x", 2, 8, name="b"), axis=1, name="both")
    assert card(shown(n.model(n.conv(h, 12, 3, name="y"))), "both").runs == ((0, 2), (1, 2), (0, 4), (1, 4))


def residual() -> ModelProto:
    """A stream of sums, of which each block makes the next; the channels of the stream move together."""
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.conv("x", 2, 6, name="stem")
    for block in range(3):
        inner = n.op("Relu", n.conv(h, 6, 8, name=f"up{block}"), name=f"relu{block}")
        h = n.op("Add", h, n.conv(inner, 8, 6, name=f"down{block}"), name=f"add{block}")
    return n.model(n.conv(h, 6, 3, name="y"))


def test_what_moves_together_has_one_home() -> None:
    found = shown(residual())
    stem = next(n for n, c in enumerate(found.cards) if c.title == "stem")
    together = [c.title for c in found.cards if c.home == stem]
    assert together == ["stem", "down0", "add0", "down1", "add1", "down2", "add2"]


def test_blocks_that_repeat_are_folded() -> None:
    assert tree(shown(residual()).items) == [
        0, 1, {"start": 2, "period": 3, "count": 3, "items": [2, 3, 4]}, 11, 12,
    ]  # fmt: skip


def test_repeated_residual_blocks_of_resnet50() -> None:
    blocks = [item for item in shown(BUILDERS["light_resnet50"]()).items if isinstance(item, Block)]
    assert [(b.period, b.count) for b in blocks] == [(4, 2), (4, 3), (4, 5), (4, 2)]


def test_a_chain_leads_to_what_holds_the_units() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    wide = n.op("Relu", n.conv("x", 2, 6, name="wide"), name="relu")
    beside = n.conv(n.conv("x", 2, 8, name="inner"), 8, 6, name="beside")
    odd = n.op("Det", n.op("Mul", wide, beside, name="product"), name="odd")
    found = shown(n.model(odd, shape=("N", 6)))
    first = card(found, "wide")
    assert first.what == "replicated"
    assert first.cause.startswith("Det 'odd': the operator Det has no rule")
    assert found.cards[first.held].title == "odd"
    assert all(0 <= step["card"] < len(found.cards) for step in first.chain)
    assert card(found, "odd").reason.startswith("the operator Det has no rule")


def test_a_mix_says_why_it_is_duplicated() -> None:
    norm = card(shown(BUILDERS["lrn"]()), "norm")
    assert (norm.what, norm.reason) == ("duplicated", "normalises over neighbouring channels")


def test_a_layer_too_narrow_says_so() -> None:
    n = Net(("x", ("N", 2, 4, 4)))
    thin = n.conv(n.conv("x", 2, 6, name="wide"), 6, 2, name="thin")
    found = shown(n.model(n.conv(n.conv(thin, 2, 6, name="again"), 6, 3, name="y")), 3)
    assert card(found, "thin").cause == "Conv 'thin': its units move in 2 classes, too few for 3 parts"


def test_a_split_shows_its_own_shares() -> None:
    done = split(BUILDERS["lenet"](), 2, shares=[4, 1])
    found = content(done.partition, measure(done.analysis, done.plan))
    assert (found.k, found.shares) == (2, (4, 1))
    assert card(found, "fc1").runs == ((0, 400), (1, 100))
