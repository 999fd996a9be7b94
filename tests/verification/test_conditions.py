"""The five conditions of section 2.2 hold until a plan is spoilt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from models import GOLDEN
from onnxpart import Analysis, MergeError, Plan
from onnxpart.verification.conditions import check_conditions
from tests.networks.verified import planned

DIVIDED = [*(name for name in GOLDEN if name not in ("refused", "unknown_op")), "lenet", "cifar10", "figure1"]


def moved(source: Plan, labels: list[int], part: int) -> Plan:
    """The plan with other parts for some labels; its initializers stay as they are."""
    parts = source.parts_of_labels()
    parts[labels] = part
    return replace(source, units=tuple((int(p), 1) for p in parts))


def with_block(source: Plan, name: str, part: int, *block: tuple[tuple[int, int, int], ...] | None) -> Plan:
    """The plan with another block of an initializer for a part."""
    old = source.by_name[name]
    blocks = tuple((block,) if p == part else b for p, b in enumerate(old.blocks))
    new = replace(old, blocks=blocks)
    return replace(source, initializers=tuple(new if i is old else i for i in source.initializers))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", DIVIDED)
def test_conditions_hold(name: str, k: int) -> None:
    if (name, k) == ("shared_weight", 3):
        k = 4
    assert check_conditions(*planned(name, k)) == []


def labels(analysis: Analysis, name: str, axis: int) -> list[int]:
    """Labels of an initializer of `figure1` along an axis."""
    return [int(v) for v in analysis.fields(name)[axis].ravel()]


def one_unit(analysis: Analysis, made: Plan) -> Plan:
    return moved(made, labels(analysis, "L2.weight", 0)[:1], 1)


def one_layer(analysis: Analysis, made: Plan) -> Plan:
    return moved(made, [*labels(analysis, "L2.weight", 0), *labels(analysis, "y.weight", 1)], 0)


def an_output(analysis: Analysis, made: Plan) -> Plan:
    return moved(made, labels(analysis, "y.weight", 0)[:1], 0)


def an_element_twice(_: Analysis, made: Plan) -> Plan:
    return with_block(made, "L1.bias", 1, ((1, 4, 1),))


def an_element_of_no_part(_: Analysis, made: Plan) -> Plan:
    return with_block(made, "L2.weight", 0, ((0, 2, 1),), None)


def an_element_lost(_: Analysis, made: Plan) -> Plan:
    return with_block(made, "L1.weight", 1, ((3, 4, 1),), None)


def no_output_parameter(_: Analysis, made: Plan) -> Plan:
    spoilt = tuple(replace(i, after_reduction=False) for i in made.initializers)
    return replace(made, initializers=spoilt)


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (one_unit, {4}),
        (one_layer, {1, 2, 4}),
        (an_output, {3, 4}),
        (an_element_twice, {5}),
        (an_element_of_no_part, {2}),
        (an_element_lost, {4}),
        (no_output_parameter, {5}),
    ],
)
def test_a_spoilt_plan_breaks_conditions(spoil: Callable[[Analysis, Plan], Plan], broken: set[int]) -> None:
    analysis, made = planned("figure1")
    problems = check_conditions(analysis, spoil(analysis, made))
    assert {int(problem.split(":")[0].removeprefix("condition ")) for problem in problems} >= broken


def test_problems_name_what_is_wrong() -> None:
    analysis, made = planned("figure1")
    assert check_conditions(analysis, an_element_twice(analysis, made)) == [
        "condition 5: 1 elements of 'L1.bias' are in several parts"
    ]
    assert "condition 4: a unit of Gemm 'L2' is in several parts (0 and 1)" in check_conditions(
        analysis, one_unit(analysis, made)
    )
    assert "condition 1: in part 1, hidden Gemm 'L1' is on no path from input to output" in check_conditions(
        analysis, one_layer(analysis, made)
    )


def test_a_plan_of_another_model_is_refused() -> None:
    analysis, _ = planned("chain")
    _, other = planned("figure1")
    with pytest.raises(MergeError, match="the plan isn't one of chain"):
        check_conditions(analysis, other)
