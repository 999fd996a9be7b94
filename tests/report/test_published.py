"""The paper's figures hang together as its text says."""

from __future__ import annotations

import itertools

from onnxpart.report import published


def test_parts_get_smaller_and_faster() -> None:
    rows = list(published.TABLE1.values())
    assert all(a.parameters > b.parameters and a.speedup < b.speedup for a, b in itertools.pairwise(rows))


def test_later_merges_are_faster() -> None:
    rows = [published.TABLE2[at] for at in sorted(published.TABLE2)]
    assert all(a.series < b.series and a.parallel < b.parallel for a, b in itertools.pairwise(rows))
    assert all(row.parallel >= row.series for row in rows)


def test_the_latest_merges_with_the_same_error_are_those_of_the_text() -> None:
    assert max(at for at, row in published.TABLE2.items() if row.partitioned <= published.LIMIT) == published.LATEST
    early = [at for at, row in published.TABLE2.items() if row.widened <= published.LIMIT]
    assert max(early) == published.LATEST_WIDENED
