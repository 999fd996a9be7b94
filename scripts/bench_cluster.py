"""Counts what parts save on several workers, against data-parallel training of the whole and against local steps.

Each worker is a process with one thread in a network namespace of its own; the kernel counts what leaves by its link.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxpart.torch.training.data_parallel import ring
from scripts.cluster.links import LINK, address, linked
from scripts.cluster.worker import LOCAL, TASKS, Phase
from scripts.machine import machine

ROOT = Path(__file__).resolve().parents[1]
STEPS = {"transformer": 200, "ResNet-18": 10}
BEYOND = (4, 16, 100, 1_000, 10_000)
"""Numbers of workers that the cost model is asked about."""
FLOAT = 4
"""Bytes of a number that is sent."""


@dataclass(frozen=True)
class Run:
    """One way of training on so many workers: phases, bytes per worker; parameters of each part, or of the whole."""

    way: str
    k: int
    workers: int
    mbit: float | None
    phases: list[Phase]
    parameters: list[int]
    loss: float | None

    @property
    def name(self) -> str:
        """The way, with the number of parts where there are any."""
        return f"{self.k} parts" if self.way == "parts" else {"whole": "whole", "local": "local steps"}[self.way]

    @property
    def seconds(self) -> float:
        """Of all steps, parts on one worker one after the other; without what happens once, as starting and merging."""
        return sum(phase.steps * phase.step_seconds for phase in self.phases)


def predicted(run: Run, phase: Phase, whole: int) -> float:
    """Bytes of a step by the cost model. `whole`: parameters of the whole."""
    if phase.name == "merge":
        return 0.0
    if phase.name == "parts":
        return ring(max(run.workers // run.k, 1), FLOAT * max(run.parameters))
    return ring(run.workers, FLOAT * whole) / (LOCAL if run.way == "local" else 1)


def measure(task: str, way: str, k: int, workers: int, mbit: float | None, steps: int) -> Run:
    """Train by one of the ways on so many workers, each behind a link of its own."""
    with tempfile.TemporaryDirectory() as folder, linked(workers, mbit) as prefixes:
        command = [sys.executable, "-m", "scripts.cluster.worker", folder, task, way, f"-k{k}", f"--steps={steps}"]
        group = {"MASTER_ADDR": address(0), "MASTER_PORT": "29500", "WORLD_SIZE": str(workers)}
        group |= {"GLOO_SOCKET_IFNAME": LINK, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        started = [
            subprocess.Popen([*prefix, *command], env={**os.environ, **group, "RANK": str(rank)}, cwd=ROOT)
            for rank, prefix in enumerate(prefixes)
        ]
        try:
            if any(process.wait() for process in started):
                raise RuntimeError(f"a worker of {way} on {workers} failed; what it printed is above.")
        finally:
            for process in started:
                process.kill()
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(workers)]
    phases = [_mean([Phase(**one["phases"][i]) for one in found]) for i in range(len(found[0]["phases"]))]
    losses = found[0]["losses"]
    return Run(way, k, workers, mbit, phases, found[0]["parameters"], fmean(losses) if losses else None)


def _mean(found: list[Phase]) -> Phase:
    """What a worker did on the mean of all."""
    counts = ([phase.steps, phase.step_seconds, phase.step_bytes, phase.seconds, phase.bytes] for phase in found)
    steps, *rest = (fmean(column) for column in zip(*counts, strict=True))
    return Phase(found[0].name, int(steps), *rest)


def measured(runs: list[Run], whole: int) -> Table:
    """Return the table of all runs: each phase beside what the cost model says of it."""
    table = Table(title="measured, and by the cost model")
    for column in (
        "way", "workers", "link", "phase", "steps", "ms a step", "model", "kB a step", "model", "s in all", "MB in all",
        "loss",
    ):  # fmt: skip
        table.add_column(column)
    for run in runs:
        for phase in run.phases:
            size = predicted(run, phase, whole)
            free = next((r for r in runs if r.mbit is None and (r.name, r.workers) == (run.name, run.workers)), run)
            base = free.phases[run.phases.index(phase)].step_seconds
            model = "" if run.mbit is None else f"{1e3 * (base + 8 * size / (1e6 * run.mbit)):.0f}"
            numbers = [f"{1e3 * phase.step_seconds:.0f}", model, f"{phase.step_bytes / 1e3:.1f}", f"{size / 1e3:.1f}"]
            link = "free" if run.mbit is None else f"{run.mbit:g} Mbit/s"
            loss = "" if run.loss is None or phase is not run.phases[-1] else f"{run.loss:.3f}"
            numbers = numbers if phase.steps else [""] * len(numbers)
            start = [run.name, str(run.workers), link] if phase is run.phases[0] else [""] * 3
            table.add_row(
                *start,
                phase.name,
                str(phase.steps or ""),
                *numbers,
                f"{phase.seconds:.1f}",
                f"{phase.bytes / 1e6:.2f}",
                loss,
            )
    return table


def ideals(runs: list[Run]) -> Table:
    """Return the table of speedups over one worker, where the link is free: the ideal is the number of cores in use."""
    cores = os.cpu_count() or 1
    table = Table("way", "workers", "speedup", "ideal", "speedup / ideal", title=f"free links, {cores} cores")
    alone = {run.name: run.seconds for run in runs if run.workers == 1}
    for run in runs:
        if run.mbit is None and run.workers > 1 and run.name in alone:
            speedup, ideal = alone[run.name] / run.seconds, min(run.workers, cores)
            table.add_row(run.name, str(run.workers), f"{speedup:.2f}", str(ideal), f"{speedup / ideal:.2f}")
    return table


def beyond(runs: list[Run], whole: int, mbit: float) -> Table:
    """Return what the cost model says of more workers, each with a core and a batch of its own.

    A step takes what it took on one worker, and the bytes it sends over the rate of the link: no overlap, no latency.
    """
    alone = {run.name: run for run in runs if run.workers == 1}
    table = Table(title=f"cost model, {mbit:g} Mbit/s: ms a step, and which share of it is computing")
    table.add_column("workers")
    for name in alone:
        table.add_column(name)
    for workers in BEYOND:
        cells = []
        for run in alone.values():
            size = predicted(Run(run.way, run.k, workers, mbit, [], run.parameters, None), run.phases[0], whole)
            seconds, sending = run.phases[0].step_seconds, 8 * size / (1e6 * mbit)
            cells.append(f"{1e3 * (seconds + sending):.0f} ({seconds / (seconds + sending):.0%})")
        table.add_row(f"{workers:,}", *cells)
    return table


def main(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")] = "transformer",
    k: Annotated[int, typer.Option("-k", help="Parts.", min=2)] = 4,
    mbit: Annotated[float, typer.Option(help="Megabits per second of a slow link.", min=0.1)] = 100.0,
) -> None:
    """Train on 1, 2 and 4 workers over free and slow links; print what was counted and what the cost model says."""
    console, steps = Console(width=140), STEPS[task]
    runs = [measure(task, way, parts, 1, None, steps) for way, parts in (("whole", 1), ("parts", k), ("local", 1))]
    for workers in (2, 4):
        for rate in (None, mbit):
            for way, parts in (("whole", 1), ("parts", k), ("parts", 2), ("local", 1)):
                if (way, parts, workers) != ("parts", 2, 2):
                    console.print(f"{way} {parts} on {workers} workers, {rate or 'free'}")
                    runs.append(measure(task, way, parts, workers, rate, steps))
    (whole,) = runs[0].parameters
    for table in (measured(runs, whole), ideals(runs), beyond(runs, whole, mbit)):
        console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine("onnxpart", "torch").items()))


if __name__ == "__main__":
    typer.run(main)
