"""Seconds from a network in memory to its unit classes: onnxpart's plan against Torch-Pruning's groups.

Ours infers the shapes of a model in memory, analyses it and plans two parts. Theirs traces the network by a forward
pass, builds its dependency graph and enumerates the groups of all layers. The export to ONNX is outside, as building
the torch module is; so is the loading, which checks and copies the model, in a column of its own. The two take turns,
and a first turn isn't measured.
"""

import gc
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, TypeVar

import onnx
import torch
import torch_pruning
import torchvision
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from scripts.machine import machine

NETWORKS = (
    "resnet50",
    "densenet121",
    "mobilenet_v3_large",
    "vit_b_16",
    "convnext_tiny",
    "efficientnet_b0",
    "inception_v3",
)
T = TypeVar("T")
PARTS = 2
SIZE = 224
PACKAGES = ("onnxpart", "onnx", "numpy", "scipy", "protobuf", "torch", "torchvision", "torch-pruning")


@dataclass
class Run:
    """One network: nodes of its graph, groups that the peer finds, and seconds of every turn of each."""

    name: str
    nodes: int
    groups: int
    load: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def ratio(self, typical: Callable[[list[float]], float]) -> float:
        """How many times as long the peer takes."""
        return typical(self.theirs) / typical(self.ours)


def module(name: str) -> torch.nn.Module:
    """A network of torchvision with random weights, ready for inference."""
    extra = {"init_weights": False} if name == "inception_v3" else {}  # its own way to draw them takes a minute
    network: torch.nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    return network.eval()


def export(network: torch.nn.Module, image: torch.Tensor) -> onnx.ModelProto:
    """The network as an ONNX model, by the TorchScript exporter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(network, (image,), path, dynamo=False)
        return onnx.load_model(path)


def plan(model: onnxpart.Model) -> onnxpart.Plan:
    """What onnxpart does with a model that is loaded."""
    return onnxpart.plan(onnxpart.analyse(model), PARTS)


def groups(network: torch.nn.Module, image: torch.Tensor) -> int:
    """What Torch-Pruning does; returns the number of groups."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=image)
    return sum(1 for _ in graph.get_all_groups())


def timed(turns: list[float], call: Callable[..., T], *args: object) -> T:
    """The result of a call, whose seconds join `turns`; nothing is left over from an earlier one."""
    gc.collect()
    start = time.perf_counter()
    result = call(*args)
    turns.append(time.perf_counter() - start)
    return result


def measure(name: str, repeat: int) -> Run:
    """Both on one network, turn by turn."""
    torch.manual_seed(0)
    network, image = module(name), torch.zeros(1, 3, SIZE, SIZE)
    model = export(network, image)
    plan(onnxpart.load(model))
    run = Run(name, len(model.graph.node), groups(network, image))
    for _ in range(repeat):
        loaded = timed(run.load, onnxpart.load, model)
        timed(run.ours, plan, loaded)
        timed(run.theirs, groups, network, image)
    return run


def table(runs: list[Run]) -> Table:
    """Milliseconds of both, and how many times as long the peer takes."""
    result = Table(title="Planning: onnxpart against Torch-Pruning", caption="ms; beside each best its median")
    result.add_column("network")
    for title in ("nodes", "load", "", "ours", "", "theirs", "", "ratio", ""):
        result.add_column(title, justify="right")
    for run in runs:
        times = [
            f"{typical(turns) * 1e3:,.0f}" for turns in (run.load, run.ours, run.theirs) for typical in (min, median)
        ]
        ratios = [f"{run.ratio(typical):.1f}" for typical in (min, median)]
        result.add_row(run.name, f"{run.nodes:,}", *times, *ratios)
    result.add_section()
    means = [f"{math.prod(run.ratio(typical) for run in runs) ** (1 / len(runs)):.1f}" for typical in (min, median)]
    result.add_row("geometric mean", *[""] * 7, *means)
    return result


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    only: Annotated[str, typer.Option(help="Measure only what has this in its name.")] = "",
    repeat: Annotated[int, typer.Option(help="Turns of each on every network.", min=1)] = 5,
) -> None:
    """Measure both on seven networks of torchvision, in one process."""
    names = [name for name in NETWORKS if only in name]
    if not names:
        raise typer.BadParameter(f"no network has {only!r} in its name; there are {', '.join(NETWORKS)}")
    console, where = Console(), machine(*PACKAGES)
    warnings.simplefilter("ignore")  # what the exporter and the peer say of their own code
    runs = []
    for name in names:
        with console.status(name):
            runs.append(measure(name, repeat))
    console.print(table(runs))
    console.print(", ".join(f"{key} {value}" for key, value in where.items()))
    if json_file is not None:
        figures = {"machine": where, "parts": PARTS, "runs": [asdict(run) for run in runs]}
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
