"""A partition that is made from a plan is the one that the planner made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import BUILDERS
from onnxpart import MergeError, Plan, analyse, load, split
from onnxpart.planning.partition import Partition, partition_of
from onnxpart.planning.plan import ORDERS
from onnxpart.planning.planner import partition


def alike(one: Partition, other: Partition) -> bool:
    """Whether two partitions of a model say the same of every operator and tensor."""
    mine, theirs = one.placement, other.placement
    return (
        np.array_equal(one.division.parts, other.division.parts)
        and one.division.duplicated == other.division.duplicated
        and (mine.modes, mine.reductions, mine.unscaled, mine.mean)
        == (theirs.modes, theirs.reductions, theirs.unscaled, theirs.mean)
        and mine.scaling.scaled == theirs.scaling.scaled
        and mine.scaling.factors == theirs.scaling.factors
    )


@given(
    st.sampled_from(["residual", "layernorm", "shuffle", "recurrent", "squeeze_excite", "shared_weight"]),
    st.integers(1, 4),
    st.sampled_from(ORDERS),
)
@settings(max_examples=25, deadline=None)
def test_a_plan_in_json_holds_the_whole_partition(name: str, k: int, order: str) -> None:
    made = partition(analyse(load(BUILDERS[name]())), k, order=order, seed=3)
    plan = Plan.from_json(made.plan.to_json())
    again = partition_of(analyse(load(BUILDERS[name]())), plan)
    assert again.plan is plan
    assert alike(made, again)


def test_a_plan_of_another_model_is_refused() -> None:
    made = partition(analyse(load(BUILDERS["chain"]())), 2)
    with pytest.raises(MergeError, match="the plan isn't one of residual"):
        partition_of(analyse(load(BUILDERS["residual"]())), made.plan)


def test_a_split_holds_its_partition() -> None:
    done = split(BUILDERS["residual"](), 2)
    assert done.partition.plan is done.plan
    assert done.partition.analysis is done.analysis
    assert done.partition.division.analysis is done.analysis
    assert alike(done.partition, partition_of(done.analysis, done.plan))
