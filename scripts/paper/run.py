"""Runs an experiment for some seeds, and adds a line for each run to its file of results.

A run that has a line is done, and left out the next time.
"""

import fcntl
import json
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from onnxpart.torch.data.batch import Loader
from scripts.machine import machine
from scripts.paper.method import Experiment, Run, Stage, Task
from scripts.paper.tasks import PLANS, Plan

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("onnx", "torch", "numpy")
WITH_DATA = ("mnist", "cifar10", "resnet", "vit")
"""Experiments that take their data from a folder where a user has them."""
SHOWN = 500
"""Test samples whose probabilities are kept, of the first seed."""


def records(path: Path) -> list[dict[str, Any]]:
    """What a file of results holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file that other processes add to as well."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({**record, "machine": machine(*PACKAGES)}) + "\n")


def is_of(record: dict[str, Any], header: dict[str, Any]) -> bool:
    """Whether a record is of this run."""
    return all(record.get(key) == header.get(key) for key in ("edges", "lr")) and header.items() <= record.items()


def beliefs(experiment: Experiment, k: int, epoch: int) -> NDArray[np.float64]:
    """The probability [part, test sample] that parts give to the correct class."""
    run = Run("partition", (Stage(k, epoch), Stage(1, experiment.task.settings.epochs - epoch)), "paper")
    modules, test = experiment.parts(run).modules, experiment.task.test
    with torch.no_grad():
        return np.stack([np.concatenate(list(_beliefs(module, test))) for module in modules]).astype(np.float64)


def _beliefs(module: torch.nn.Module, test: Loader) -> Iterator[NDArray[np.float32]]:
    for inputs, classes in test.epoch(0):
        yield module(*inputs).softmax(1).gather(1, classes[:, None])[:, 0].numpy()


def diversity(experiment: Experiment, k: int, epoch: int) -> dict[str, Any]:
    """How alike parts believe: the mean over all pairs of Pearson's correlation."""
    found = beliefs(experiment, k, epoch)
    pairs = [float(np.corrcoef(found[i], found[j])[0, 1]) for i, j in combinations(range(k), 2)]
    shown = found[:2, :SHOWN].T.round(3).tolist() if experiment.seed == 0 else []
    header = {"kind": "diversity", "experiment": experiment.task.experiment, "k": k, "seed": experiment.seed}
    return {**header, "epoch": epoch, "correlation": round(float(np.mean(pairs)), 4), "pairs": shown}


def one_seed(plan: Plan, task: Task, seed: int, path: Path, console: Console) -> None:
    """Do what isn't done yet."""
    experiment, known = Experiment(task, seed), records(path)
    for run in plan.runs:
        if any(is_of(record, run.header(task, seed)) for record in known):
            continue
        record = experiment.run(run)
        add(path, record)
        stages = " + ".join(f"{stage.epochs} of {stage.k}" for stage in run.stages)
        console.print(f"seed {seed}: {run.method}, {run.rate}, {stages}: {task.metric} {record['final']['metric']:.4f}")
    for k in plan.diversity[0]:
        header = {"kind": "diversity", "k": k, "seed": seed}
        if not any(header.items() <= record.items() for record in known):
            add(path, diversity(experiment, k, plan.diversity[1]))


def main(
    name: Annotated[str, typer.Argument(metavar="|".join(PLANS), help="The experiment.")],
    seeds: Annotated[list[int], typer.Argument(help="Of first weights and order of samples.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="MNIST's four files, or CIFAR-10's binary version; what is at hand if omitted."
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of the files of results.")] = RESULTS,
) -> None:
    """Run an experiment for some seeds."""
    if name not in PLANS:
        raise typer.BadParameter(f"{name!r} isn't known; choose one of {', '.join(PLANS)}.")
    torch.set_num_threads(1)
    if data is not None and name not in WITH_DATA:
        raise typer.BadParameter(f"{name} has no data but its own; leave out --data.")
    plan, console = PLANS[name], Console()
    for seed in seeds:
        one_seed(plan, plan.task(seed, data), seed, results / f"{name}.jsonl", console)


if __name__ == "__main__":
    typer.run(main)
