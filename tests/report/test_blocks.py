"""Tables and numbers as the report writes them."""

from __future__ import annotations

import pytest

from onnxpart.report.blocks import shown, table, unit


def test_a_table_has_its_numbers_on_the_right_and_bars_escaped() -> None:
    assert table(("name", "n"), [("a|b", "1")]) == "| name | n |\n| --- | ---: |\n| a\\|b | 1 |"


@pytest.mark.parametrize(
    ("values", "metric", "expected"),
    [
        ([0.1, 0.3], "error", "20.00 ± 14.14"),
        ([0.25], "error rate", "25.00"),
        ([2.5], "bits", "2.5"),
    ],
)
def test_shares_are_in_percent(values: list[float], metric: str, expected: str) -> None:
    assert shown(values, metric) == expected
    assert unit(metric).endswith(", %") is metric.startswith("error")
