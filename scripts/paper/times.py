"""Times a step of each experiment's networks side by side: the whole, the duplicated whole, one part of K."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from onnx import ModelProto
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnxpart
from onnxpart.inspection.sizes import measure
from onnxpart.torch import import_onnx
from onnxpart.torch.training.choose_engine import choose
from onnxpart.torch.training.engine import Engine
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.series import Series
from scripts.paper.method import Task
from scripts.paper.run import RESULTS, add
from scripts.paper.tasks import PLANS, Plan

CPU = torch.device("cpu")


def job_of(models: Sequence[ModelProto], task: Task) -> Job:
    """Networks to be trained side by side."""
    modules = [import_onnx(model) for model in models]
    return Job(modules, tuple(range(len(modules))), task.learn, task.loss, task.settings, range(1))


def measured(plan: Plan, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch of each network, medians over rounds in which they take turns, and their sizes."""
    task = plan.task(0, None)
    model = task.model(0)
    shallow = {"": model, **{f"/{blocks}": onnxpart.shallow(model, blocks) for blocks in plan.blocks}}
    splits = {f"{k}{of}": onnxpart.split(each, k) for of, each in shallow.items() for k in plan.parts}
    networks: dict[str, ModelProto] = {f"whole{of}": each for of, each in shallow.items()}
    if any(split.plan.duplicated_nodes for split in splits.values()):
        networks["duplicated"] = splits[str(plan.parts[0])].whole
    networks |= {name: split.parts[0] for name, split in splits.items()}
    engines: dict[str, Engine] = {name: Series(job_of([each], task), CPU) for name, each in networks.items()}
    for name, split in splits.items():
        job = job_of(split.parts, task)
        engines[f"all {name}"] = choose(job, CPU)[0](job, CPU)
    batches = list(task.learn.epoch(0))[:4]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 2):
        for name, engine in engines.items():
            start = perf_counter()
            for batch in batches:
                engine.step([batch], task.settings.lr / 1000, 0)
            if turn > 1:  # the first ones set torch up
                seconds[name].append((perf_counter() - start) / len(batches))
    epoch = {name: round(len(task.learn) * median(found), 4) for name, found in seconds.items()}
    sizes = {name: measure(split.analysis, split.plan) for name, split in splits.items()}
    each = {f"1{of}": sizes[f"{plan.parts[0]}{of}"].whole for of in shallow}
    each |= {name: size.parts[0] for name, size in sizes.items()}
    return {
        "kind": "times", "experiment": task.experiment, "network": task.network,
        "epoch": {name: epoch[name] for name in networks},
        "together": {name: epoch[f"all {name}"] for name in splits},
        "parameters": {name: size.parameters for name, size in each.items()},
        "macs": {name: size.macs for name, size in each.items()},
    }  # fmt: skip


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar=f"[{'|'.join(PLANS)}]..", help="All if omitted.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="In each of which the networks take turns.")] = 15,
    results: Annotated[Path, typer.Option(help="Folder of the files of results.")] = RESULTS,
) -> None:
    """Time the networks of experiments, with one thread; add a line to each one's file of results."""
    torch.set_num_threads(1)
    for name in names or list(PLANS):
        found = measured(PLANS[name], rounds)
        add(results / f"{name}.jsonl", found)
        whole = found["epoch"]["whole"]
        part, together = (
            ", ".join(f"{key} {whole / value:.2f}" for key, value in found[kind].items() if key != "whole")
            for kind in ("epoch", "together")
        )
        Console().print(f"{name}: an epoch of the whole takes {whole:.2f} s; so many times as fast: {part}")
        Console().print(f"  all parts together: {together}")


if __name__ == "__main__":
    typer.run(main)
