"""Divides and verifies the models of torchvision, timm and transformers, and writes a line for each to a table.

Every model has a process of its own with a limit of time and one of memory, and its figures are added to
`models/zoo.jsonl` at once: what has a line there is done, and left out the next time.
"""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import deque
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


def names() -> list[str]:
    """All models as `zoo/name`, in a fixed order."""
    return [f"{zoo}/{name}" for zoo in ZOOS for name in import_module(f"scripts.zoo_{zoo}").names()]


def records() -> dict[str, dict[str, Any]]:
    """What is known of each model: its last line."""
    lines = FIGURES.read_text().splitlines() if FIGURES.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def measured(name: str, folder: Path) -> None:
    """What a model's process does."""
    from scripts.zoo_one import main

    main(name, folder)


class Job:
    """A model in a process of its own."""

    def __init__(self, name: str, seconds: float, limit: float) -> None:
        self.name, self.seconds, self.limit = name, seconds, limit
        self.peak, self.killed, self.started = 0, "", time.monotonic()
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process: BaseProcess = context.Process(target=measured, args=(name, Path(self._folder.name)))
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
        result: dict[str, Any] = {"name": self.name, "rows": [], "error": ""}
        if path.exists():
            result |= json.loads(path.read_text())
        if self.killed or self._process.exitcode:
            result["error"] = self.killed or f"its process ended with {self._process.exitcode}"
        self._folder.cleanup()
        result["seconds"] = {**result.get("seconds", {}), "all": round(time.monotonic() - self.started, 1)}
        return {**result, "peak": self.peak}


def walk(wanted: list[str], jobs: int, seconds: float, limit: float) -> None:
    """Measure models, and add a line for each."""
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
            progress.update(task, description=" ".join(job.name for job in running))
            time.sleep(PAUSE)
            for job in [job for job in running if job.ended()]:
                running.remove(job)
                file.write(json.dumps({**job.record(), **origin}) + "\n")
                file.flush()
                progress.advance(task)


def main(
    only: Annotated[list[str] | None, typer.Option(help="Only models whose name fits, such as timm/vit_*.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Those with a line, too.")] = False,
    jobs: Annotated[int, typer.Option(help="Models at a time.", min=1)] = 1,
    memory_limit: Annotated[float, typer.Option("--memory", help="GB that a model may take.")] = 16,
    seconds: Annotated[float, typer.Option(help="Time that a model may take.")] = 900,
    only_table: Annotated[bool, typer.Option("--table", help="Write the table, measure nothing.")] = False,
) -> None:
    """Divide, verify and write down every model of the zoo that has no line yet."""
    if not only_table:
        known = {} if again else records()
        fits = [n for n in names() if n not in known and any(fnmatch(n, pattern) for pattern in only or ["*"])]
        walk(fits, jobs, seconds, memory_limit * GB)
    TABLE.write_text(table(list(records().values())))


if __name__ == "__main__":
    typer.run(main)
