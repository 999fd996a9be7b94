"""Divides and verifies the models of torchvision, timm and transformers, and writes a line for each to a table.

Each is exported to train, and in the forms that people export to run it. Every export has a process of its own with a
limit of time and one of memory, and its figures are added to `models/zoo.jsonl` at once: what has a line there is done,
and left out the next time.
"""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_memory import memory
from scripts.machine import machine
from scripts.zoo_table import table

ROOT = Path(__file__).resolve().parents[1]
ZOOS = ("torchvision", "timm", "transformers")
FIGURES, TABLE = ROOT / "models" / "zoo.jsonl", ROOT / "models" / "zoo.md"
PACKAGES = ("onnx", "onnxruntime-gpu", "numpy", "torch", "torchvision", "timm", "transformers", "torch-pruning")
PRELOADED = ["scripts.zoo_one", *(f"scripts.zoo_{zoo}" for zoo in ZOOS)]
GB, PAUSE = 1e9, 0.1


@dataclass(frozen=True)
class Export:
    """A model as `zoo/name`, and the form in which it is exported: empty to train (see `zoo_one.FORMS`)."""

    name: str
    form: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.form}".strip()


def exports() -> list[Export]:
    """All models in all forms, in a fixed order."""
    from scripts.zoo_one import FORMS

    found = [f"{zoo}/{name}" for zoo in ZOOS for name in import_module(f"scripts.zoo_{zoo}").names()]
    return [Export(name, form) for form in ("", *FORMS) for name in found]


def records() -> dict[Export, dict[str, Any]]:
    """What is known of each export: its last line."""
    lines = FIGURES.read_text().splitlines() if FIGURES.exists() else []
    return {Export(record["name"], record.get("form", "")): record for record in map(json.loads, lines)}


def measured(export: Export, folder: Path) -> None:
    """What an export's process does."""
    from scripts.zoo_one import main

    main(export.name, export.form, folder)


class Job:
    """An export in a process of its own."""

    def __init__(self, export: Export, seconds: float, limit: float) -> None:
        self.export, self.seconds, self.limit = export, seconds, limit
        self.peak, self.killed, self.started = 0, "", time.monotonic()
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process: BaseProcess = context.Process(target=measured, args=(export, Path(self._folder.name)))
        self._process.start()

    def ended(self) -> bool:
        """Whether the process is done; ends it at a limit."""
        self.peak = max(self.peak, memory(self._process.pid or 0).get("VmRSS", 0))
        if self.peak > self.limit:
            self.killed = f"more than {self.limit / GB:.0f} GB of memory"
        elif time.monotonic() - self.started > self.seconds:
            self.killed = f"more than {self.seconds:.0f} seconds"
        if self.killed:
            self._process.kill()
            self._process.join()
        return not self._process.is_alive()

    def record(self) -> dict[str, Any]:
        """What came out."""
        self._process.join()
        path = Path(self._folder.name) / "record.json"
        result: dict[str, Any] = {**asdict(self.export), "rows": [], "error": ""}
        if path.exists():
            result |= json.loads(path.read_text())
        if self.killed or self._process.exitcode:
            result["error"] = self.killed or f"its process ended with {self._process.exitcode}"
        self._folder.cleanup()
        result["seconds"] = {**result.get("seconds", {}), "all": round(time.monotonic() - self.started, 1)}
        return {**result, "peak": self.peak}


def walk(wanted: list[Export], jobs: int, seconds: float, limit: float) -> None:
    """Measure exports, and add a line for each."""
    run = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    origin = {"commit": commit, "machine": machine(*PACKAGES)}
    waiting, running = deque(wanted), list[Job]()
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress, FIGURES.open("a") as file:
        task = progress.add_task("", total=len(wanted))
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Job(waiting.popleft(), seconds, limit))
            progress.update(task, description="; ".join(str(job.export) for job in running))
            time.sleep(PAUSE)
            for job in [job for job in running if job.ended()]:
                running.remove(job)
                file.write(json.dumps({**job.record(), **origin}) + "\n")
                file.flush()
                progress.advance(task)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Only exports whose name fits, such as timm/vit_* or '* dynamo*'.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Those with a line, too.")] = False,
    jobs: Annotated[int, typer.Option(help="Models at a time.", min=1)] = 1,
    memory_limit: Annotated[float, typer.Option("--memory", help="GB that a model may take.")] = 16,
    seconds: Annotated[float, typer.Option(help="Time that a model may take.")] = 900,
    only_table: Annotated[bool, typer.Option("--table", help="Write the table, measure nothing.")] = False,
) -> None:
    """Divide, verify and write down every model of the zoo that has no line yet."""
    if not only_table:
        known = {} if again else records()
        waiting = [export for export in exports() if export not in known]
        fits = [export for export in waiting if any(fnmatch(str(export), pattern) for pattern in only or ["*"])]
        walk(fits, jobs, seconds, memory_limit * GB)
    TABLE.write_text(table(list(records().values())))


if __name__ == "__main__":
    typer.run(main)
