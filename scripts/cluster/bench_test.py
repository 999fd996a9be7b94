"""What the benchmark counts on two workers behind links: no more than its cost model says, and what TCP adds."""

from __future__ import annotations

import pytest

from scripts.bench_cluster import Run, check, measure, predicted
from scripts.cluster.worker import Phase

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


def test_what_is_measured_is_compared_with_the_model_and_the_loss() -> None:
    free = Run("whole", 1, 2, None, [Phase("whole", 5, 0.1, 4_000)], [1_000])
    slow = Run("whole", 1, 2, 0.032, [Phase("whole", 5, 2.2, 4_400)], [1_000], [(20, 8e4, 2.0), (40, 16e4, 1.0)])
    assert check([free, slow], 1_000).endswith("bytes by +0% to +10%, seconds by +100% to +100%")
    assert [slow.reached(loss) for loss in (2.5, 1.5, 0.5)] == [(20, 8e4), (40, 16e4), None]
