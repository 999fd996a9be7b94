"""Times training all parts against training the whole, by engine; one part of `bench_torch`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch
from onnx import ModelProto
from rich.table import Table
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import onnxpart
from models import cifar10_net, lenet
from models.builder import GraphBuilder
from onnxpart.errors import UsageError
from onnxpart.inspection.sizes import measure
from onnxpart.report.records import Speedups
from onnxpart.torch import import_onnx
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training.choose_engine import choose
from onnxpart.torch.training.engine import Engine, synchronize
from onnxpart.torch.training.fused import Fused
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.losses import Criterion
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.train import Settings, train

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=2, lr=1e-4, device="cpu")
BATCHES = 8
"""In an epoch of a part in a process of its own."""
SLOW = 1.3
"""Below this speedup an operator takes about as long in all parts as in the whole."""


def vgg(width: int = 64) -> ModelProto:
    """Six 3x3 convolutions, twice as wide after each pooling, and a hidden layer: x [N, 3, 32, 32] to [N, 10]."""
    g = GraphBuilder("vgg")
    h, channels = g.input("x", "N", 3, 32, 32), 3
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        for layer in range(2):
            h = g.relu(f"relu{stage}{layer}", g.conv(f"conv{stage}{layer}", h, (channels, filters)))
            channels = filters
        h = g.max_pool(f"pool{stage}", h, kernel=2, stride=2)
    h = g.node("Flatten", "flatten", h, axis=1)
    h = g.relu("relu", g.linear("hidden", h, (channels * 16, 8 * width)))
    return g.build({g.linear("logits", h, (8 * width, 10)): ("N", 10)})


@dataclass(frozen=True)
class Network:
    """A network to time: a batch of so many samples of it, the batch size, the numbers of parts, and the loss."""

    name: str
    build: Callable[[], ModelProto]
    draw: Callable[[int], Batch]
    batch: int
    parts: tuple[int, ...]
    loss: Criterion = F.cross_entropy


def images(*shape: int) -> Callable[[int], Batch]:
    """Return what draws random images [N, *shape] and classes."""
    return lambda count: ((torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)),),
                          torch.arange(count) % 10)  # fmt: skip


LENET = Network("LeNet", lenet, images(1, 28, 28), 100, (2, 5, 10))
CIFAR10 = Network("CIFAR10", cifar10_net, images(3, 24, 24), 128, (2, 4))
NETWORKS = (
    LENET,
    CIFAR10,
    Network("VGG-like", vgg, images(3, 32, 32), 64, (2, 4)),
)


@dataclass(frozen=True)
class Row(Speedups):
    """One network in K parts; `chosen` is the engine that auto takes."""

    chosen: str

    @property
    def auto(self) -> float:
        """What auto gives."""
        return self.fused if self.chosen == "fused" and self.fused is not None else self.series


def samples(network: Network, batches: int) -> TensorLoader:
    """Samples of a network, in batches."""
    inputs, target = network.draw(network.batch * batches)
    return TensorLoader(inputs, target, network.batch)


def job_of(models: Sequence[ModelProto], network: Network, batches: int, settings: Settings = SETTINGS) -> Job:
    """Models as modules, to be trained on samples of a network."""
    modules, loader = [import_onnx(model) for model in models], samples(network, batches)
    return Job(modules, tuple(range(len(modules))), loader, network.loss, settings, range(2))


def rows(
    network: Network, rounds: int, settings: Settings = SETTINGS, device: torch.device = CPU, *, processes: bool = True
) -> Iterator[Row]:
    """Time a network in each number of parts: medians over rounds, in each of which whole and engines take turns."""
    model = network.build()
    whole = Series(job_of([model], network, 1, settings), device)
    batch = next(whole.job.loader.epoch(0))
    for k in network.parts:
        split = onnxpart.split(model, k)
        parts = job_of(split.parts, network, 1, settings)
        chosen = choose(parts, device)[0].kind
        engines: dict[str, Engine] = {"whole": whole, "series": Series(parts, device)}
        with suppress(UsageError):
            engines["fused"] = Fused(job_of(split.parts, network, 1, settings), device)
        steps = [{name: _step(engine, batch, device) for name, engine in engines.items()} for _ in range(rounds + 1)]
        turns = steps[1:]  # the first warms up
        gains = {name: median(turn["whole"] / turn[name] for turn in turns) for name in engines}
        seconds = median(turn["whole"] for turn in turns)
        sizes = measure(split.analysis, split.plan)
        ideal = sizes.whole.macs / sum(part.macs for part in sizes.parts)
        apart = BATCHES * seconds / in_processes(split.parts, network, settings) if processes else None
        yield Row(network.name, k, seconds, ideal, gains["series"], gains.get("fused"), apart, chosen)


def _step(engine: Engine, batch: Batch, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    engine.step([batch], SETTINGS.lr, 0)
    synchronize(device)
    return time.perf_counter() - start


def in_processes(models: Sequence[ModelProto], network: Network, settings: Settings = SETTINGS) -> float:
    """Return the seconds of the second epoch of the slowest part, each in a process of its own."""
    job = job_of(models, network, BATCHES, settings)
    results = train(job.modules, job.loader, job.loss, settings, engine="processes")
    return max(result.curve[1].seconds - result.curve[0].seconds for result in results)


def speeds(rounds: int) -> Table:
    """Return the table of all networks."""
    table = Table(title="training all parts: how many times as fast as the whole")
    for column in ("network", "K", "whole, ms", "ideal", "series", "fused", "processes", "auto", "auto / ideal"):
        table.add_column(column)
    for network in NETWORKS:
        for r in rows(network, rounds):
            numbers = ["" if x is None else f"{x:.2f}" for x in (r.ideal, r.series, r.fused, r.processes)]
            auto = f"{r.chosen} {r.auto:.2f}"
            table.add_row(r.network, str(r.k), f"{r.seconds * 1e3:.1f}", *numbers, auto, f"{r.auto / r.ideal:.2f}")
    return table


def operators(network: Network, k: int, rounds: int) -> Table:
    """Return what each of torch's operators takes in the whole and in all parts, by turns; medians.

    Its share is that of the step of all parts.
    """
    model = network.build()
    both = [Series(job_of(models, network, 1), CPU) for models in ([model], onnxpart.split(model, k).parts)]
    batch = next(both[0].job.loader.epoch(0))
    turns = [[_profiled(engine, batch) for engine in both] for _ in range(rounds + 1)][1:]
    whole, parts = (
        {name: median(turn[i].get(name, 0.0) for turn in turns) for name in turns[0][i]} for i in range(len(both))
    )
    table = Table(title=f"{network.name}: a step of the whole, and of {k} parts in series, by operator")
    for column in ("operator", "whole, ms", "parts, ms", "share", "speedup", f"below {SLOW}"):
        table.add_column(column)
    total = sum(parts.values())
    for name in sorted(parts, key=lambda name: -parts[name])[:12]:
        speedup = whole.get(name, 0.0) / parts[name]
        scales = "" if speedup >= SLOW else "doesn't scale"
        share = f"{parts[name] / total:.0%}"
        table.add_row(name, f"{whole.get(name, 0.0):.1f}", f"{parts[name]:.1f}", share, f"{speedup:.2f}", scales)
    return table


def _profiled(engine: Engine, batch: Batch) -> dict[str, float]:
    """Return the milliseconds of each operator itself in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        engine.step([batch], SETTINGS.lr, 0)
    return {event.key: event.self_cpu_time_total / 1000 for event in found.key_averages()}
