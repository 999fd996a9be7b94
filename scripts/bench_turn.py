"""One side of `bench_before`: measures what it is asked for with the checkout that it runs in, in seconds of CPU.

Each line of input is a kind and a name, and is answered by a line of JSON: seconds by stage. Checkouts of all ages
must be able to run it, so it only uses what the benchmarks have always had.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx import ModelProto

import onnxpart
from models.builder import GraphBuilder

LIMIT = 16 << 30
"""Bytes of memory that a model may take that is measured once."""
time.perf_counter = time.process_time  # the benchmarks' clock: other work on the machine doesn't count


def compiled(path: str) -> Callable[[], dict[str, float]]:
    """Return what takes the model of a file through all stages."""
    from scripts import bench_compile

    def measure() -> dict[str, float]:
        run = bench_compile.Run(path)
        bench_compile.compile_model(Path(path), run)
        return run.seconds

    return measure


def once(path: str) -> Callable[[], dict[str, float]]:
    """Return what splits, merges and verifies the model of a file, within `LIMIT`; `peak` is the most memory, in MiB.

    Units are in random order in a model that is named so. Images and clips, which take long to run, aren't verified.
    """
    from scripts import bench_compile

    def measure() -> dict[str, float]:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        run, name = bench_compile.Run(path), Path(path).stem
        with run.stage("split"):
            done = onnxpart.split(path, 2, order="random" if name.startswith("random") else "contiguous")
            arrays = [onnxpart.arrays(part) for part in done.parts]
        with run.stage("merge"):
            onnxpart.merge(done.plan, arrays)
        if not name.startswith(("vit", "mvit")):
            with run.stage("verify"):
                onnxpart.verify(done.analysis, done.plan)
        return {**run.seconds, "peak": bench_compile.peak()}

    return measure


def imported(name: str) -> Callable[[], dict[str, float]]:
    """Return what takes a step with the imported module of a network."""
    import torch

    from scripts import bench_torch

    torch.manual_seed(0)
    build, x = bench_torch.NETWORKS[name]
    with TemporaryDirectory() as folder:
        onnxpart.torch.export(build(), x, Path(folder) / "model.onnx")
        module = onnxpart.torch.import_onnx(Path(folder) / "model.onnx")

    def measure() -> dict[str, float]:
        module.zero_grad()
        start = time.perf_counter()
        module(x).square().mean().backward()
        return {"step": time.perf_counter() - start}

    return measure


def mlp() -> ModelProto:
    """Two hidden layers of 512 units on LeNet's images."""
    g = GraphBuilder("mlp")
    h = g.node("Flatten", "flatten", g.input("x", "N", 1, 28, 28), axis=1)
    h = g.relu("relu0", g.linear("fc0", h, (784, 512)))
    h = g.relu("relu1", g.linear("fc1", h, (512, 512)))
    return g.build({g.linear("logits", h, (512, 10)): ("N", 10)})


def trained(name: str) -> Callable[[], dict[str, float]]:
    """Return what takes a step with the whole and with two parts of a network, by each engine in this process."""
    from scripts import bench_engines as bench

    known = {network.name: network for network in bench.NETWORKS}
    network = known[name] if name in known else replace(known["LeNet"], name=name, build=mlp)
    loader = bench.samples(network, 1)
    newer = "rows" in vars(bench)
    models = network.build()
    jobs = [
        bench.job_of(m, network, 1) if newer else bench.job_of(m, loader)  # type: ignore[arg-type, call-arg]
        for m in ([models], *[onnxpart.split(models, 2).parts] * 2)
    ]
    engines = (("whole", "Series"), ("series", "Series"), ("fused", "Fused"))
    ready = {name: vars(bench)[engine](job, bench.CPU) for (name, engine), job in zip(engines, jobs, strict=True)}
    batch = next(loader.epoch(0))

    def measure() -> dict[str, float]:
        seconds = {}
        for name, engine in ready.items():
            start = time.perf_counter()
            engine.step([batch], bench.SETTINGS.lr, 0)
            seconds[name] = time.perf_counter() - start
        return seconds

    return measure


@cache
def measurement(kind: str, name: str) -> Callable[[], dict[str, float]]:
    """Return what measures a model or network; the first call for it, which warms up, is made here."""
    if kind not in ("compile", "once"):
        import torch

        torch.set_num_threads(1)
    result = {"compile": compiled, "once": once, "import": imported, "train": trained}[kind](name)
    if kind != "once":
        result()
    return result


if __name__ == "__main__":
    for line in sys.stdin:
        measure = measurement(*line.rstrip("\n").split(" ", 1))
        gc.collect()
        print(json.dumps(measure()), flush=True)
