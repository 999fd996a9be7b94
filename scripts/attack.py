"""Damaged files and bombs given to the command line: each ends in a result or in one sentence, soon and in bounds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

console = Console(highlight=False, soft_wrap=True)
SECONDS, MEMORY = 60, 2 << 30
"""What a case may take: of a processor's time, or ten times as long by the clock; and bytes."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `done`, `refused`, `traceback`, `slow`, `memory` or `killed`, and where."""

    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is a fault."""
        return self.kind not in ("done", "refused")


def attempt(seed: int) -> Outcome:
    """Give the commands of a seed, in this process and a folder of their own."""
    from typer.testing import CliRunner

    from onnxpart.cli.app import app
    from tests.networks.damage import prepare

    kind = "done"
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in prepare(seed, Path(name)):
            result = CliRunner().invoke(app, command)
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                error = result.exception
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.name}"
                if isinstance(error, MemoryError):
                    return Outcome("memory", f"{command[0]} {where}")
                return Outcome("traceback", f"{command[0]}: {type(error).__name__} in {where}: {str(error)[:120]!r}")
            if result.exit_code:
                kind = "refused"
                told = result.stderr.strip()
                if "Traceback" in told or not told.splitlines()[-1:] or "\x1b" in told:
                    return Outcome("traceback", f"{command[0]} says {told[-200:]!r}")
                break
    return Outcome(kind)


def _work(pipe: Connection) -> None:
    """Attempt the seeds that come through a pipe, within the memory."""
    base = _mapped()
    resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # what libraries write past Python
    while True:
        seed = pipe.recv()
        try:
            pipe.send(attempt(seed))
        except MemoryError:
            pipe.send(Outcome("memory"))


def busy(process: int) -> float:
    """Seconds of a processor's time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mapped() -> int:
    """Bytes of address space in use."""
    import onnxpart.cli.app  # noqa: F401

    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A process that attempts one seed after another, and is replaced when one takes it down."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        self.seed: int | None = None
        self.since = self.before = 0.0

    def give(self, seed: int) -> None:
        """Let it attempt a seed."""
        self.pipe.send(seed)
        self.seed, self.since, self.before = seed, time.monotonic(), busy(self.process.pid or 0)

    def taken(self) -> Outcome | None:
        """What became of its seed; None while it is at work."""
        outcome = None
        if self.pipe.poll():
            try:
                outcome = self.pipe.recv()
            except EOFError:
                outcome = Outcome("killed")
        elif not self.process.is_alive():
            outcome = Outcome("killed", f"exit code {self.process.exitcode}")
        elif self._spent() > SECONDS:
            outcome = Outcome("slow")
        if outcome is not None and outcome.kind in ("killed", "slow"):
            self.process.kill()
            self.process.join()
            self._start()
        elif outcome is not None:
            self.seed = None
        return outcome

    def _spent(self) -> float:
        """Seconds of a processor's time, or a tenth of those by the clock, that its seed has taken."""
        return max(busy(self.process.pid or 0) - self.before, (time.monotonic() - self.since) / 10)


def main(
    cases: Annotated[int, typer.Option(help="How many seeds to attempt.")] = 10_000,
    seed: Annotated[int, typer.Option(help="The first seed; a run that was stopped goes on from where it was.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
) -> None:
    """Attempt damaged files and bombs, and count how they end."""
    found: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    pool, waiting, done = [Worker() for _ in range(workers)], iter(range(seed, seed + cases)), 0
    for worker in pool:
        worker.give(next(waiting))
    while done < cases:
        for worker in pool:
            attempted = worker.seed
            outcome = worker.taken() if attempted is not None else None
            if outcome is None:
                continue
            done += 1
            found[outcome.kind] += 1
            if outcome.failed:
                faults[f"{outcome.kind} {outcome.detail}"] += 1
                if faults[f"{outcome.kind} {outcome.detail}"] <= 3:
                    console.print(f"seed {attempted}: {outcome.kind} {outcome.detail}", markup=False)
            following = next(waiting, None)
            if following is not None:
                worker.give(following)
            if done % 1000 == 0:
                console.print(f"{done} of {cases}: {dict(found)}")
        time.sleep(0.001)
    console.print(f"{dict(found)} of {cases} cases from seed {seed} on")
    raise typer.Exit(int(bool(faults)))


if __name__ == "__main__":
    typer.run(main)
