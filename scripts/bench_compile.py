"""Seconds and memory of each stage of the compiler: the light models, and graphs that are large in one way each.

The cost of a node of a chain, and of a branch of a Concat, must stay flat, as that of a unit in random order. That of
attention must not grow with the pairs of positions, and that of a decoder not with the bytes of its weights, which are
in external data. ViT and MViT at their real size are measured where torchvision is installed (scripts/setup-zoo).
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, TypeVar

import onnx
import typer
from onnx import ModelProto
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from models import BUILDERS, figure1, light_names
from models.builder import GraphBuilder
from onnxpart.emission.part import draft_part
from onnxpart.emission.whole import draft_whole
from onnxpart.planning.partition import Partition
from onnxpart.planning.planner import partition
from onnxpart.verification.oracles import verify
from scripts import decoder
from scripts.machine import machine

PARTS = 2
STAGES = ("load", "analyse", "plan", "emit", "merge", "verify")
VERIFIED = ("gemm", "random", "branches")
"""What is run in ONNX Runtime as well."""
KINDS = ("gemm", "conv", "residual")
WIDTH = 8
POSITIONS = (392, 1_568, 6_272)
"""Patches of 16 frames of 56, 112 and 224 pixels."""
UNITS = (10_000, 100_000, 1_000_000)
"""Of a hidden layer, in random order."""
BRANCHES = (500, 5_000)
HEADS, EACH = 2, 96
VISION = {"vit_b_16": (1, 3, 224, 224), "mvit_v1_b": (1, 3, 16, 224, 224)}
"""Networks of torchvision, and the shape of what they take."""
ENOUGH_SECONDS = 10.0
IMPORTS = 9
PACKAGES = ("onnxpart", "onnx", "numpy", "scipy", "protobuf")
Result = TypeVar("Result")


@dataclass
class Run:
    """One model: seconds of each stage (the fastest run's), and peak memory in MiB when it ends (the first run's).

    `emit` makes all parts and the whole. `start` is the peak before the first stage, libraries loaded.
    """

    name: str
    nodes: int = 0
    start: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = min(time.perf_counter() - start, self.seconds.get(name, float("inf")))
        self.peak.setdefault(name, peak())


def peak() -> float:
    """Peak memory of this process so far, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def chain(kind: str, nodes: int) -> ModelProto:
    """A chain of about `nodes` nodes, `WIDTH` units wide: Gemm or Conv with ReLU, or residual blocks of Gemms."""
    g = GraphBuilder(f"{kind}_{nodes}")
    shape = ("N", WIDTH, 2, 2) if kind == "conv" else ("N", WIDTH)
    units = (WIDTH, WIDTH)
    h = g.linear("stem", g.input("x", *shape), units) if kind == "residual" else g.input("x", *shape)
    for i in range(nodes // (4 if kind == "residual" else 2)):
        if kind == "conv":
            h = g.relu(f"relu{i}", g.conv(f"conv{i}", h, units, kernel=1))
            continue
        inner = g.relu(f"relu{i}", g.linear(f"fc{i}", h, units))
        h = g.node("Add", f"sum{i}", h, g.linear(f"out{i}", inner, units)) if kind == "residual" else inner
    y = g.conv("y", h, units, kernel=1) if kind == "conv" else g.linear("y", h, units)
    return g.build({y: shape})


def attention(positions: int) -> ModelProto:
    """Attention as in MViT: positions convolved beside a class token, then normalised within each head."""
    g = GraphBuilder(f"attention_{positions}")
    width, split = HEADS * EACH, g.integers("heads", [1, -1, HEADS, EACH])
    x = g.linear("embed", g.input("x", positions, WIDTH), (WIDTH, width))
    heads = []
    for name in ("query", "key", "value"):
        h = g.node("Reshape", f"{name}.heads", g.linear(name, x, (width, width)), split)
        h = g.node("Transpose", f"{name}.first", h, perm=[0, 2, 3, 1])
        ends = [g.integers(f"{name}.{end}", [n]) for end, n in (("start", 0), ("end", 1), ("axis", 3))]
        token, weight = g.node("Slice", f"{name}.one", h, *ends), g.weight(f"{name}.pool", EACH, 1, 3, fan_in=3)
        h = g.node("Reshape", f"{name}.folded", h, g.integers(f"{name}.folds", [HEADS, EACH, -1]))
        h = g.node("Conv", f"{name}.pooled", h, weight, kernel_shape=[3], pads=[1, 1], group=EACH)
        h = g.node("Reshape", f"{name}.unfolded", h, g.integers(f"{name}.unfolds", [1, HEADS, EACH, -1]))
        h = g.node("Transpose", f"{name}.all", g.node("Concat", f"{name}.token", token, h, axis=3), perm=[0, 1, 3, 2])
        parameters = [g.values(f"{name}.norm.{p}", EACH, center=c) for p, c in (("scale", 1.0), ("bias", 0.0))]
        heads.append(g.node("LayerNormalization", f"{name}.norm", h, *parameters))
    turned = g.node("Transpose", "turned", heads[1], perm=[0, 1, 3, 2])
    scores = g.node("Softmax", "softmax", g.node("MatMul", "scores", heads[0], turned))
    seen = g.node("Transpose", "last", g.node("MatMul", "seen", scores, heads[2]), perm=[0, 2, 1, 3])
    joined = g.node("Reshape", "joined", seen, g.integers("all", [-1, width]))
    return g.build({g.linear("y", joined, (width, WIDTH)): (positions + 1, WIDTH)})


def random(units: int) -> ModelProto:
    """A hidden layer of so many units between two inputs and two outputs."""
    g = GraphBuilder(f"random_{units}")
    h = g.relu("relu", g.linear("hidden", g.input("x", "N", 2), (2, units)))
    return g.build({g.linear("y", h, (units, 2)): ("N", 2)})


def branches(count: int) -> ModelProto:
    """So many layers of `WIDTH` units beside each other, joined by one Concat."""
    g = GraphBuilder(f"branches_{count}")
    x = g.input("x", "N", WIDTH)
    heads = [g.relu(f"relu{i}", g.linear(f"fc{i}", x, (WIDTH, WIDTH))) for i in range(count)]
    return g.build({g.linear("y", g.node("Concat", "joined", *heads, axis=1), (WIDTH * count, WIDTH)): ("N", WIDTH)})


MADE: dict[str, Callable[[int], ModelProto]] = {
    "attention": attention,
    "random": random,
    "branches": branches,
    **{kind: partial(chain, kind) for kind in KINDS},
}
"""What models of a size are made by: `<name> <size>`."""


def vision() -> list[str]:
    """The networks of torchvision that can be exported here."""
    return list(VISION) if find_spec("torchvision") is not None else []


def export(name: str, path: Path) -> None:
    """Export a network of torchvision, with random weights and a fixed batch of one."""
    import torch
    from torchvision import models

    network = models.get_model(name, weights=None).eval()
    torch.onnx.export(network, (torch.zeros(VISION[name]),), path, dynamo=False)


def build(name: str, path: Path) -> None:
    """Write the model of a name: the registry's, made here, torchvision's, or `decoder <size>` of `scripts.decoder`."""
    kind, _, size = name.partition(" ")
    if kind == "decoder":
        decoder.build(size, path)
    elif kind in VISION:
        export(name, path)
    else:
        onnx.save_model(MADE[kind](int(size)) if size else BUILDERS[name](), path)


def measure(name: str, path: Path, repeat: int) -> Run:
    """Compile the model of a file `repeat` times, less often where that takes long."""
    compile_model(figure1(), Run("warm"))  # unmeasured: the first model loads libraries
    run = Run(name, start=peak())
    began = time.perf_counter()
    for _ in range(repeat):
        made = compile_model(path, run)
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
    run.nodes = len(made.analysis.ops)
    if name.partition(" ")[0] in VERIFIED:
        with run.stage("verify"):
            verify(made.analysis, made.plan)
    return run


def compile_model(source: ModelProto | Path, run: Run) -> Partition:
    """Take a model through all stages; where weights are external no array is made, and so none is merged."""
    with run.stage("load"):
        model = onnxpart.load(source)
    with run.stage("analyse"):
        analysis = onnxpart.analyse(model)
    with run.stage("plan"):
        made = partition(analysis, PARTS, order="random" if run.name.startswith("random ") else "contiguous")
    with run.stage("emit"):
        drafts = [draft_part(made, p) for p in range(PARTS)]
        whole = draft_whole(made)
        if any(map(model.external, model.initializers)):
            return made
        parts = [draft.model() for draft in drafts]
        whole.model()
    arrays = [onnxpart.arrays(part) for part in parts]
    with run.stage("merge"):
        onnxpart.merge(made.plan, arrays)
    return made


def apart(call: Callable[..., Result], *args: object) -> Result:
    """The result of a call in a process of its own, so that peaks of memory don't mix."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def import_seconds() -> float:
    """Seconds that `import onnxpart` takes in a fresh interpreter: the median of several."""
    code = "import time; start = time.perf_counter(); import onnxpart; print(time.perf_counter() - start)"
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    return statistics.median(
        float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
        for _ in range(IMPORTS)
    )


def table(runs: list[Run]) -> Table:
    """Seconds by stage, time per node, and peaks."""
    result = Table(
        title=f"Compiling into {PARTS} parts", caption="peaks in MiB: libraries alone, then after planning, at the end"
    )
    result.add_column("model")
    for title in ("nodes", *(f"{stage} s" for stage in STAGES), "µs a node", "start", "plan", "end"):
        result.add_column(title, justify="right")
    for run in runs:
        seconds = [f"{run.seconds[stage]:.3f}" if stage in run.seconds else "" for stage in STAGES]
        each = f"{sum(run.seconds.values()) / run.nodes * 1e6:,.0f}"
        peaks = [f"{value:,.0f}" for value in (run.start, run.peak["plan"], max(run.peak.values()))]
        result.add_row(run.name, f"{run.nodes:,}", *seconds, each, *peaks)
    return result


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    nodes: Annotated[list[int] | None, typer.Option(help="Lengths of the chains [1000, 10000, 100000].")] = None,
    only: Annotated[str, typer.Option(help="Measure only what has this in its name.")] = "",
    repeat: Annotated[int, typer.Option(help="Runs of each model; the fastest counts.", min=1)] = 3,
) -> None:
    """Measure load, analyse, plan, emit and merge, each model in a process of its own."""
    console = Console(width=max(Console().width, 150))
    where = machine(*PACKAGES)
    lengths = nodes or [1_000, 10_000, 100_000]
    names = [f"light_{name}" for name in light_names()] + [f"{kind} {n}" for kind in KINDS for n in lengths]
    made = {"attention": POSITIONS, "random": UNITS, "branches": BRANCHES, "decoder": decoder.SIZES}
    names += [f"{kind} {size}" for kind, sizes in made.items() for size in sizes] + vision()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (n for n in names if only in n):
            path = Path(folder) / "model.onnx"
            with console.status(name):
                apart(build, name, path)
                runs.append(apart(measure, name, path, repeat))
    console.print(table(runs))
    importing = import_seconds()
    console.print(f"import onnxpart: {importing:.3f} s (median of {IMPORTS} processes)")
    console.print(", ".join(f"{key} {value}" for key, value in where.items()))
    if json_file is not None:
        figures = {"machine": where, "parts": PARTS, "import": importing, "runs": [asdict(run) for run in runs]}
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
