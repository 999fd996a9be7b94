"""The nine real graphs that the onnx wheel carries, with random weights: divided, checked, verified."""

from __future__ import annotations

import math

import onnx
import pytest

import onnxpart
from models import light_names
from tests.networks.light import grouped, light

CASES = [*grouped(light_names(), 2), *grouped(["bvlc_alexnet", "shufflenet"], 4)]
DEPTHWISE = {"shufflenet": 16}
"""Weights that connect each unit with itself only: these shrink by 1/K."""


@pytest.mark.parametrize(("name", "k"), CASES)
def test_light_model(name: str, k: int) -> None:
    result = onnxpart.split(light(name), k)
    plan = result.plan
    assert not plan.replicated
    assert not plan.blocked
    for model in (*result.parts, result.whole):
        if model.ByteSize() < 2**30:
            onnx.checker.check_model(model, full_check=True)
    _check_sizes(result, name, k)
    verdict = onnxpart.verify(result.analysis, plan, parts=result.parts, whole=result.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)


def _check_sizes(result: onnxpart.Split, name: str, k: int) -> None:
    """Weights between hidden layers shrink by K², those of input and output by K; exactly where widths allow."""
    plan = result.plan
    weights = [plan.by_name[n] for n in result.analysis.state.weights]
    shares = [[math.prod(w.part_shape(p)) / math.prod(w.shape) for p in range(k)] for w in weights]
    outer = 2 + DEPTHWISE.get(name, 0)
    if (name, k) == ("shufflenet", 4):  # its groups are 34 wide, which 4 doesn't divide
        means = [sum(share) / k for share in shares]
        assert all(mean == pytest.approx(1 / k**2, rel=0.05) or mean == pytest.approx(1 / k) for mean in means)
        return
    assert sum(share == [1 / k**2] * k for share in shares) == len(weights) - outer
    assert sum(share == [1 / k] * k for share in shares) == outer
