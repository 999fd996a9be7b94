"""Compares this checkout with an earlier one: seconds of CPU of each stage of the compiler and of steps of training.

A process in each checkout measures the same model, by turns, so that the machine's speed changes for both alike. A
ratio is the median of the ratios of neighbouring turns. Models that are large in one way are measured once, and the
most memory that they take as well.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models import light_names
from scripts.bench_compile import KINDS, apart, build, vision
from scripts.machine import machine

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"import": ("LeNet", "ResNet-18", "transformer"), "train": ("LeNet", "CIFAR10", "VGG-like", "MLP")}
NODES = 1_000
LARGE = ("gemm 50000", "random 1000000", "branches 5000", "attention 392", "attention 1568")
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""Lets glibc keep what is freed: how much of it a process gives back and must ask for again each turn is chance."""
PACKAGES = ("onnx", "numpy", "scipy", "protobuf", "torch")


@dataclass(frozen=True)
class Compared:
    """Median seconds of CPU before and after, and the median ratio of neighbouring turns, by stage and for `all`."""

    name: str
    before: dict[str, float]
    after: dict[str, float]
    ratio: dict[str, float]


@contextmanager
def side(checkout: Path, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Yield a process that measures with a checkout, with `more` in its environment."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, "-P", str(ROOT / "scripts" / "bench_turn.py")]
    with subprocess.Popen(command, cwd=checkout, env=env, stdin=-1, stdout=-1, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: "subprocess.Popen[str]", kind: str, name: str) -> dict[str, float]:
    """Seconds by stage of one turn.

    :raises ChildProcessError: when the process ends before it has them.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{kind} {name}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise ChildProcessError(f"{name} ended with an error")
    seconds: dict[str, float] = json.loads(line)
    return seconds


def compare(checkouts: tuple[Path, Path], kind: str, name: str, model: str, turns: int, pairs: int) -> Compared:
    """Measure in so many turns of each of so many pairs of processes, which take turns in going first."""
    taken = []
    for _ in range(pairs):
        with side(checkouts[0], **KEPT) as before, side(checkouts[1], **KEPT) as after:
            for turn in range(turns):
                if turn % 2:
                    new, old = ask(after, kind, model), ask(before, kind, model)
                else:
                    old, new = ask(before, kind, model), ask(after, kind, model)
                taken.append(tuple({**seconds, "all": sum(seconds.values())} for seconds in (old, new)))
    stages = list(taken[0][0])
    return Compared(
        name,
        {stage: median(old[stage] for old, _ in taken) for stage in stages},
        {stage: median(new[stage] for _, new in taken) for stage in stages},
        {stage: median(new[stage] / old[stage] for old, new in taken) for stage in stages},
    )


def once(checkout: Path, model: Path) -> dict[str, float]:
    """Seconds of CPU by stage and the peak in MiB, of a process of its own; nothing when it ends with an error."""
    with side(checkout) as process, suppress(ChildProcessError):
        return ask(process, "once", str(model))
    return {}


def large(checkouts: tuple[Path, Path], names: list[str]) -> Table:
    """Seconds and peaks of large models, before and after."""
    result = Table(title="large", caption="seconds of CPU; peaks in MiB")
    stages = ("split", "merge", "verify", "peak")
    for column in ("", *(f"{stage} {when}" for stage in stages for when in ("before", "after"))):
        result.add_column(column, justify="right" if column else "left")
    for name in names:
        with TemporaryDirectory() as folder:
            model = Path(folder) / f"{name}.onnx"
            apart(build, name, model)
            found = [once(checkout, model) for checkout in checkouts]
        cells = [
            (f"{side[stage]:,.1f}" if stage in side else "") if side else "fails" for stage in stages for side in found
        ]
        result.add_row(name, *cells)
    return result


def table(title: str, rows: list[Compared]) -> Table:
    """Milliseconds before and after, the ratio as a whole, and by stage; geometric means of the ratios below."""
    stages = [stage for stage in rows[0].ratio if stage != "all"]
    result = Table(title=title)
    for column in ("", "before, ms", "after, ms", "after / before", *stages):
        result.add_column(column, justify="right" if column else "left")
    for row in rows:
        times = (f"{seconds['all'] * 1e3:,.1f}" for seconds in (row.before, row.after))
        result.add_row(row.name, *times, *(f"{row.ratio[stage]:.3f}" for stage in ("all", *stages)))
    means = (f"{geometric_mean(row.ratio[stage] for row in rows):.3f}" for stage in ("all", *stages))
    result.add_section()
    result.add_row("geometric mean", "", "", *means)
    return result


def main(
    checkout: Annotated[Path, typer.Argument(help="A worktree of the earlier commit.", file_okay=False, exists=True)],
    only: Annotated[str, typer.Option(help="Measure only what has this in its name.")] = "",
    turns: Annotated[int, typer.Option(help="Turns of each process.", min=1)] = 7,
    pairs: Annotated[int, typer.Option(help="Pairs of processes.", min=1)] = 3,
) -> None:
    """Print a table for the compiler, imported modules and engines, and what they were taken on."""
    console = Console(width=max(Console().width, 120))
    names = [f"light_{name}" for name in light_names()] + [f"{kind} {NODES}" for kind in KINDS]
    work = {"compile": names, **NETWORKS}
    checkouts = (checkout.resolve(), ROOT)
    for kind, chosen in work.items():
        rows = []
        for name in (n for n in chosen if only in f"{kind} {n}"):
            with TemporaryDirectory() as folder, console.status(f"{kind} {name}"):
                model = str(Path(folder) / "model.onnx") if kind == "compile" else name
                if kind == "compile":
                    apart(build, name, Path(model))
                rows.append(compare(checkouts, kind, name, model, turns, pairs))
        if rows:
            console.print(table(kind, rows))
    wanted = [name for name in (*LARGE, *vision()) if only in f"large {name}"]
    if wanted:
        console.print(large(checkouts, wanted))
    console.print(", ".join(f"{key} {value}" for key, value in machine(*PACKAGES).items()))


if __name__ == "__main__":
    typer.run(main)
