"""The command that reports on runs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpart.cli import tables
from onnxpart.errors import needs
from onnxpart.report.records import read


def pages() -> Any:
    """Return `onnxpart.report.page`, which needs matplotlib.

    :raises UsageError: when a package that it needs isn't installed.
    """
    with needs("a report", "report"):
        return import_module("onnxpart.report.page")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Folders that fit wrote, and files (or folders of files) of the paper's experiments.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="The page to write: one file of HTML, or Markdown with its pictures beside it.",
        ),
    ] = Path("report.html"),
) -> None:
    """Make a page that compares runs: curves, and time to an error.

    For the experiments of the paper it has the paper's figures, too.
    """
    records = read(runs)
    for file in pages().write(records, out):
        tables.show(f"wrote {file}")
