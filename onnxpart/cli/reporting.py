"""The command that tells what runs found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxpart.cli import tables
from onnxpart.errors import UsageError
from onnxpart.report.records import read


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
        typer.Option("-o", "--out", metavar="FILE", help="report.html (one file) or report.md (pictures beside it)."),
    ] = Path("report.html"),
) -> None:
    """Tell what runs found: the paper's tables and figures beside ours, and times to the same error."""
    records = read(runs)
    try:
        from onnxpart.report.page import write
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a report needs the package {error.name}; install it with `pip install 'onnxpart[train]'`."
        ) from None
    for file in write(records, out):
        tables.console().print(f"wrote {file}")
