"""What a section is made of: text, tables and drawings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure, by the name of its file, and what it shows."""

    name: str
    caption: str
    figure: Figure


Block = str | Drawing
ERRORS = "error", "error rate"
"""Metrics that are shares, and shown in percent."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown.

    :param columns: their titles.
    :param rows: cells, as many as columns.
    :param left: how many of the first columns are aligned left; numbers are aligned right.
    """
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *escaped))


def shown(values: Sequence[float], metric: str) -> str:
    """Mean and standard deviation of a metric, in percent for an error; for one value no deviation."""
    scale, text, precise = (100.0, "{:.2f}", "{:.2f}") if metric in ERRORS else (1.0, "{:.4g}", "{:.2g}")
    spread = f" ± {precise.format(scale * stdev(values))}" if len(values) > 1 else ""
    return text.format(scale * mean(values)) + spread


def unit(metric: str) -> str:
    """The metric's name as a column has it."""
    return f"{metric}, %" if metric in ERRORS else metric
