"""PyTorch's loops and branches as its exporters write them: divided, verified, no sequence left."""

from __future__ import annotations

import pytest

from onnxpart import split, verify
from tests.networks.exported_control import FEATURES, SCRIPTED, SIZE, TRACED, export

CASES = [(name, opset) for name in SCRIPTED for opset in (13, 17)] + [(name, 20) for name in TRACED]


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_exported_network_splits_and_verifies(name: str, opset: int) -> None:
    done = split(export(name, opset), 2)
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    assert not done.plan.blocked
    between = [i for i in done.plan.initializers if SIZE in i.shape[-1:] and i.shape[0] in (SIZE, 4 * SIZE)]
    assert between
    for i in between:
        assert i.part_shape(0) == tuple(n // 2 for n in i.shape), i.name
    assert any(FEATURES in i.part_shape(0) for i in done.plan.initializers)
    assert done.plan.same_graph is (name != "until")
