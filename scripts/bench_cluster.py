"""Counts what parts save on several workers, against data-parallel training of the whole and against local steps.

Each worker is a process with one thread in a network namespace of its own; the kernel counts what leaves by its link.
`links` has 1, 2 and 4 workers behind free and slow links, and a cost model; `losses` has the bytes to the same loss.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
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
STEPS, MERGE_AT = 200, 160
BEYOND = (4, 16, 100, 1_000, 10_000)
"""Numbers of workers that the cost model is asked about."""
MACHINE = ", ".join(f"{key} {value}" for key, value in machine("onnxpart", "torch").items())
FLOAT = 4
"""Bytes of a number that is sent."""


@dataclass(frozen=True)
class Run:
    """One way of training on so many workers: phases, bytes per worker; parameters of each part, or of the whole.

    `curve`: step, bytes per worker so far, and loss on the test data, for each time that the whole was tested.
    """

    way: str
    k: int
    workers: int
    mbit: float | None
    phases: list[Phase]
    parameters: list[int]
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The way, with the number of parts where there are any."""
        return f"{self.k} parts" if self.way == "parts" else {"whole": "whole", "local": "local steps"}[self.way]

    @property
    def step_bytes(self) -> str:
        """Kilobytes that a worker sends in a step, of each phase that has steps."""
        return ", then ".join(f"{phase.step_bytes / 1e3:,.0f}" for phase in self.phases if phase.steps)

    def reached(self, loss: float) -> tuple[int, float] | None:
        """Return the step and the bytes so far at which the loss was first as low as that."""
        return next(((step, sent) for step, sent, found in self.curve if found <= loss), None)

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


def predicted_seconds(run: Run, phase: Phase, whole: int, runs: list[Run]) -> float:
    """Seconds of a step by the cost model: those behind a free link, and the bytes over the rate of the link."""
    free = next((r for r in runs if r.mbit is None and (r.name, r.workers) == (run.name, run.workers)), run)
    sending = 0.0 if run.mbit is None else 8 * predicted(run, phase, whole) / (1e6 * run.mbit)
    return free.phases[run.phases.index(phase)].step_seconds + sending


def measure(task: str, way: str, k: int, workers: int, mbit: float | None, *options: str) -> Run:
    """Train by one of the ways on so many workers, each behind a link of its own; the worker's own options last."""
    with tempfile.TemporaryDirectory() as folder, linked(workers, mbit) as prefixes:
        command = [sys.executable, "-m", "scripts.cluster.worker", folder, task, way, f"-k{k}"]
        command += [f"--steps={STEPS}", f"--merge-at={MERGE_AT}", *options]
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
    curve = [
        (step, fmean(one["curve"][i][1] for one in found), loss) for i, (step, _, loss) in enumerate(found[0]["curve"])
    ]
    return Run(way, k, workers, mbit, phases, found[0]["parameters"], curve)


def _mean(found: list[Phase]) -> Phase:
    """What a worker did on the mean of all."""
    counts = ([phase.steps, phase.step_seconds, phase.step_bytes, phase.seconds, phase.bytes] for phase in found)
    steps, *rest = (fmean(column) for column in zip(*counts, strict=True))
    return Phase(found[0].name, int(steps), *rest)


def measured(runs: list[Run], whole: int) -> Table:
    """Return the table of all runs: each phase beside what the cost model says of it."""
    table = Table(title="measured, and by the cost model")
    for column in (
        "way", "workers", "link", "phase", "steps", "ms a step", "model", "kB a step", "model", "s in all", "MB in all"
    ):  # fmt: skip
        table.add_column(column)
    for run in runs:
        for phase in run.phases:
            size, seconds = predicted(run, phase, whole), predicted_seconds(run, phase, whole, runs)
            model = "" if run.mbit is None else f"{1e3 * seconds:.0f}"
            numbers = [f"{1e3 * phase.step_seconds:.0f}", model, f"{phase.step_bytes / 1e3:.1f}", f"{size / 1e3:.1f}"]
            link = "free" if run.mbit is None else f"{run.mbit:g} Mbit/s"
            numbers = numbers if phase.steps else [""] * len(numbers)
            start = [run.name, str(run.workers), link] if phase is run.phases[0] else [""] * 3
            total = [f"{phase.seconds:.1f}", f"{phase.bytes / 1e6:.2f}"]
            table.add_row(*start, phase.name, str(phase.steps or ""), *numbers, *total)
    return table


def check(runs: list[Run], whole: int) -> str:
    """Return by how much the cost model is off, of bytes where it has some, and of seconds behind a slow link."""
    steps = [(run, phase) for run in runs for phase in run.phases if phase.steps]
    sizes = [(phase.step_bytes, predicted(run, phase, whole)) for run, phase in steps]
    times = [(phase.step_seconds, predicted_seconds(run, phase, whole, runs)) for run, phase in steps if run.mbit]
    named = {"bytes": [pair for pair in sizes if pair[1]], "seconds": times}
    off = {name: [found / model - 1 for found, model in pairs] for name, pairs in named.items()}
    said = [f"{name} by {min(each):+.0%} to {max(each):+.0%}" for name, each in off.items()]
    return f"measured over the cost model, of a step: {', '.join(said)}"


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
            size = predicted(replace(run, workers=workers), run.phases[0], whole)
            seconds, sending = run.phases[0].step_seconds, 8 * size / (1e6 * mbit)
            cells.append(f"{1e3 * (seconds + sending):.0f} ({seconds / (seconds + sending):.0%})")
        table.add_row(f"{workers:,}", *cells)
    return table


def equal(runs: list[list[Run]]) -> Table:
    """Return the table of losses at equal steps and of bytes at an equal loss: that of the whole, of the same seed.

    :param runs: of each seed, the whole first.
    """
    table = Table(title=f"{len(runs)} seeds, {STEPS} steps and more")
    for column in (
        "way", "kB a step", f"loss at {STEPS}", f"MB at {STEPS}", "steps to the whole's loss", "MB to the whole's loss"
    ):  # fmt: skip
        table.add_column(column)
    for same in zip(*runs, strict=True):
        at = [next((sent, loss) for step, sent, loss in run.curve if step == STEPS) for run in same]
        reached = [run.reached(seed[0].curve[-1][2]) for run, seed in zip(same, runs, strict=True)]
        steps, sizes = zip(*(found for found in reached if found), strict=True) if any(reached) else ((), ())
        missed = f" ({reached.count(None)} never)" if None in reached else ""
        table.add_row(
            f"{same[0].name} on {same[0].workers}",
            same[0].step_bytes,
            spread([loss for _, loss in at], 1, 3),
            spread([sent for sent, _ in at], 1e6, 1),
            spread(steps, 1, 0) + missed,
            spread(sizes, 1e6, 1) + missed,
        )
    return table


def spread(values: Sequence[float], unit: float, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return "".join(f"{value / unit:.{digits}f}" for value in values)
    return f"{fmean(values) / unit:.{digits}f} ± {stdev(values) / unit:.{digits}f}"


app = typer.Typer(add_completion=False)
CONSOLE = Console(width=150)
OfTask = Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")]


@app.command()
def links(
    task: OfTask = "transformer",
    k: Annotated[int, typer.Option("-k", help="Parts.", min=2)] = 4,
    mbit: Annotated[float, typer.Option(help="Megabits per second of a slow link.", min=0.1)] = 100.0,
) -> None:
    """Train on 1, 2 and 4 workers over free and slow links; print what was counted and what the cost model says."""
    runs = [measure(task, way, parts, 1, None) for way, parts in (("whole", 1), ("parts", k), ("local", 1))]
    for workers in (2, 4):
        for rate in (None, mbit):
            for way, parts in (("whole", 1), ("parts", k), ("parts", 2), ("local", 1)):
                if (way, parts, workers) != ("parts", 2, 2):
                    CONSOLE.print(f"{way} {parts} on {workers} workers, {rate or 'free'}")
                    runs.append(measure(task, way, parts, workers, rate))
    (whole,) = runs[0].parameters
    for told in (measured(runs, whole), check(runs, whole), ideals(runs), beyond(runs, whole, mbit), MACHINE):
        CONSOLE.print(told)


@app.command()
def losses(
    task: OfTask = "transformer",
    seeds: Annotated[int, typer.Option(help="Runs of each way.", min=1)] = 3,
) -> None:
    """Train on 4 workers over free links by each way; print losses at equal steps, and bytes at an equal loss."""
    runs: list[list[Run]] = []
    for seed in range(seeds):
        runs.append([])
        for way, k in (("whole", 1), ("parts", 2), ("parts", 4), ("local", 1)):
            CONSOLE.print(f"{way} {k}, seed {seed}")
            steps = STEPS if way == "whole" else 2 * STEPS
            given = f"--steps={steps}", f"--seed={seed}", f"--test-every={LOCAL}"
            runs[-1].append(measure(task, way, k, 4, None, *given))
        CONSOLE.print(equal(runs))
    CONSOLE.print(MACHINE)


if __name__ == "__main__":
    app()
