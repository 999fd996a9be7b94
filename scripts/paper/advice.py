"""Asks `estimate` what it advises for each experiment's network, and adds that to its file of results."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnxpart
from onnxpart.torch.runs.estimate import PAYS, estimate
from scripts.paper.run import RESULTS, add
from scripts.paper.tasks import PLANS, Plan


def advised(plan: Plan) -> tuple[dict[str, Any], str]:
    """Return what is advised for the first seed's network and data, as a record and as a sentence."""
    task = plan.task(0, None)
    found = estimate(onnxpart.load(task.model(0)), task.options, plan.parts, task.samples)
    rows = [{"k": row.k, "width": row.width, "series": row.series, "parallel": row.parallel} for row in found.rows]
    best = None if found.best is None else found.best.k
    record = {"kind": "advice", "experiment": task.experiment, "k": best}
    return {**record, "pays": PAYS, "rows": rows}, found.advice


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar=f"[{'|'.join(PLANS)}]..", help="All if omitted.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the files of results.")] = RESULTS,
) -> None:
    """Ask for advice on the networks of experiments, with one thread."""
    torch.set_num_threads(1)
    for name in names or list(PLANS):
        found, advice = advised(PLANS[name])
        add(results / f"{name}.jsonl", found)
        Console().print(f"{name}: {advice}")


if __name__ == "__main__":
    typer.run(main)
