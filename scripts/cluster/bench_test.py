"""What the benchmark counts on two workers behind links: no more than its cost model says, and what TCP adds."""

from __future__ import annotations

import pytest

from scripts.bench_cluster import measure, predicted

SHORT = "--steps=5", "--merge-at=4", "--test-every=5"


def test_the_kernel_counts_what_the_cost_model_says() -> None:
    whole = measure("transformer", "whole", 1, 2, 20.0, *SHORT)
    (parameters,) = whole.parameters
    (phase,) = whole.phases
    size = predicted(whole, phase, parameters)
    assert phase.step_bytes == pytest.approx(size, rel=0.1)
    assert phase.step_seconds > 8 * size / 20e6, "the link has no limit"
    parts = measure("transformer", "parts", 2, 2, None, *SHORT)
    alone, merge, together = parts.phases
    assert alone.bytes < 1e5 < merge.bytes < 8 * max(parts.parameters)
    assert together.bytes > parameters
