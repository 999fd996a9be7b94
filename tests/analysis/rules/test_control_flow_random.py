"""Random networks with If, Loop and Scan: refused by name, or divided and verified."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxpart import PartitionError, analyse, load, plan, split, verify
from onnxpart.verification.conditions import check_conditions
from tests.networks.growing import Recipe
from tests.networks.nested_steps import NESTED
from tests.networks.steps import COMMON


def grown(seed: int) -> ModelProto:
    rng = np.random.default_rng(seed)
    return Recipe(lambda n: int(rng.integers(n)), (*COMMON, *NESTED, *NESTED), 4).network()


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_divided_and_verified(first: int) -> None:
    divided = 0
    for seed in range(first, first + 10):
        model, k = grown(seed), 2 + seed % 2
        try:
            done = split(model, k, order="random", seed=seed)
        except PartitionError:
            continue
        for emitted in (*done.parts, done.whole):
            onnx.checker.check_model(emitted, full_check=True)
        assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds, seed
        assert not check_conditions(done.analysis, done.plan), seed
        divided += any(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node)
    assert divided


@pytest.mark.parametrize("seed", range(0, 60, 12))
def test_the_same_again(seed: int) -> None:
    """Neither the analysis nor the plan of a copy differs, nor does the model change by being loaded twice."""
    model = load(grown(seed))
    assert load(model.proto).digest == model.digest
    analyses = [analyse(load(grown(seed))) for _ in range(2)]
    assert analyses[0].labels.count == analyses[1].labels.count
    try:
        plans = [plan(analysis, 2) for analysis in analyses]
    except PartitionError:
        return
    assert plans[0] == plans[1]
