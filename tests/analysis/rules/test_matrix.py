"""Every operator of the table, each input made of hidden units along each axis: verified or refused, never wrong."""

from __future__ import annotations

import onnxruntime
import pytest

from scripts.matrix import MOST, PAGE, PARTS, row
from tests.networks.matrix import cells, judge

CELLS = cells(MOST)


@pytest.mark.parametrize("operator", sorted({cell.op_type for cell in CELLS}))
def test_never_wrong(operator: str) -> None:
    """And the page says so: a row that differs is stale, and `scripts/matrix` writes it."""
    onnxruntime.set_default_logger_severity(4)
    for k in PARTS:
        found = {cell.title: judge(cell, k) for cell in CELLS if cell.op_type == operator}
        wrong = {title: outcome.reason for title, outcome in found.items() if outcome.status == "wrong"}
        assert not wrong
        assert row(operator, k, found.values()) in PAGE.read_text().splitlines()


def test_the_page_has_no_other_rows() -> None:
    rows = {tuple(line.split(" | ")[:2]) for line in PAGE.read_text().splitlines() if line.startswith("| ")}
    operators = {(f"| {cell.op_type}", str(k)) for cell in CELLS for k in PARTS}
    assert rows - {("| operator", "K")} == operators


@pytest.mark.usefixtures("unguarded")
def test_an_input_that_a_rule_forgets_is_in_every_part() -> None:
    """Without that, the matrix has wrong cells: what tests it can fail."""
    forgotten = [cell for cell in CELLS if cell.op_type in ("Gather", "ReverseSequence") and cell.slot == 1]
    assert "wrong" in {judge(cell, 2).status for cell in forgotten}
