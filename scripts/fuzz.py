"""Random networks over the whole rule table, divided and verified until the time is up; what fails is made small."""

import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import typer
from onnx import ModelProto, shape_inference
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from onnxpart.emission.part import emit_part
from onnxpart.emission.whole import emit_whole
from onnxpart.errors import PartitionError
from onnxpart.ir.protos import live
from onnxpart.planning.plan import ORDERS
from onnxpart.planning.planner import partition
from onnxpart.verification.check import DRAWS
from tests.networks.growing import Recipe
from tests.networks.index_steps import INDEXING
from tests.networks.nested_steps import STEPS as OTHERS

STEPS = (*OTHERS, *INDEXING)
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Way:
    """How a network is divided."""

    k: int
    order: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What became of a network: `kind` is divided, refused, unusable (ONNX Runtime can't run it), or what failed."""

    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is a fault of the compiler."""
        return self.kind.startswith("failed")


def drawn(seed: int) -> tuple[ModelProto, Way]:
    """The network of a seed, and how to divide it."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> int:
        return int(rng.integers(n))

    return Recipe(draw, STEPS).network(), Way(2 + draw(3), ORDERS[draw(len(ORDERS))], draw(4))


def runs(model: ModelProto) -> bool:
    """Whether ONNX Runtime runs a model on several inputs (an If in it may choose), and every output is finite."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rng, shapes = np.random.default_rng(0), {}
        for value in model.graph.input:
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [d.dim_value or 2 for d in dims], value.type.tensor_type.elem_type
        feeds = [
            {
                name: rng.integers(0, 7, shape) if e == onnx.TensorProto.INT64 else rng.normal(size=shape).astype("f4")
                for name, (shape, e) in shapes.items()
            }
            for _ in range(DRAWS)
        ]
        return all(bool(np.isfinite(y).all()) for feed in feeds for y in session.run(None, feed))
    except Exception:  # the runtime's exceptions share no base class
        return False


def divide(model: ModelProto, way: Way) -> Result:
    """Divide a network and verify what comes out."""
    stage = "analysing"
    try:
        analysis = onnxpart.analyse(onnxpart.load(model))
        stage = "planning"
        made = partition(analysis, way.k, order=way.order, seed=way.seed)
        stage = "emitting"
        parts = [emit_part(made, p) for p in range(way.k)]
        whole = emit_whole(made)
        stage = "checking"
        for emitted in (*parts, whole):
            onnx.checker.check_model(emitted, full_check=True)
        stage = "verifying"
        verdicts = []
        for seed in range(3):  # a comparison on a knife's edge (Floor, ArgMax) may fail once
            verdicts.append(onnxpart.verify(analysis, made.plan, parts=parts, whole=whole, seed=seed))
            if verdicts[-1].holds:
                return Result("divided" if seed == 0 else "divided, on second thoughts")
    except PartitionError as error:
        return Result("refused" if stage == "planning" else f"refused when {stage}", str(error))
    except Exception as error:  # whatever it is, it is a fault
        if runs(tidied(copied(model))):  # what leads to no output may hide what the checker says of the rest
            return Result(f"failed {stage}: {type(error).__name__} {anonymous(error)}", traceback.format_exc())
        return Result("unusable", str(error))
    finding = max(verdicts[-1].findings, key=lambda f: f.deviation)
    if not runs(model):
        return Result("unusable", str(finding))
    return Result(
        f"failed verifying: {finding.oracle}" if finding.compared else "failed: nothing compared", str(finding)
    )


def anonymous(error: Exception) -> str:
    """A message without names and numbers, to tell faults apart."""
    return re.sub(r"'[^']*'|\d+", "_", " ".join(str(error).split()))[:80]


def smaller(model: ModelProto) -> Iterator[ModelProto]:
    """Models with one output, or one node, less."""
    for i in range(len(model.graph.output) if len(model.graph.output) > 1 else 0):
        copy = copied(model)
        del copy.graph.output[i]
        yield tidied(copy)
    inferred = shape_inference.infer_shapes(model)
    values = {v.name: v for v in inferred.graph.value_info}
    for i in reversed(range(len(model.graph.node))):
        node = model.graph.node[i]
        if node.output[0] in values:
            copy = copied(model)
            del copy.graph.output[:]
            copy.graph.output.append(values[node.output[0]])
            yield tidied(copy)
            copy = copied(model)
            del copy.graph.node[i]
            copy.graph.input.append(values[node.output[0]])
            yield tidied(copy)
        for name in node.input:
            copy = copied(model)
            del copy.graph.node[i]
            for other in copy.graph.node:
                for j, read in enumerate(other.input):
                    if read == node.output[0]:
                        other.input[j] = name
            yield tidied(copy)


def copied(model: ModelProto) -> ModelProto:
    """A copy."""
    result = ModelProto()
    result.CopyFrom(model)
    return result


def tidied(model: ModelProto) -> ModelProto:
    """The model without what nothing reads."""
    graph = model.graph
    nodes, used = live(graph.node, [v.name for v in graph.output])
    for field, kept in (
        (graph.node, nodes),
        (graph.initializer, [t for t in graph.initializer if t.name in used]),
        (graph.input, [v for v in graph.input if v.name in used]),
    ):
        copies = [type(v).FromString(v.SerializeToString()) for v in kept]
        del field[:]
        field.extend(copies)
    return model


def shrunk(model: ModelProto, way: Way, kind: str) -> ModelProto:
    """A network with as few nodes as possible that fails in the same way."""
    found = True
    while found:
        found = False
        for candidate in smaller(model):
            if runs(candidate) and divide(candidate, way).kind == kind:
                model, found = candidate, True
                break
    return model


def main(
    minutes: Annotated[float, typer.Option(help="When to stop.", min=0)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first network; each further one has the next.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder for networks that fail.")] = Path("fuzz_output"),
) -> None:
    """Divide random networks; write each that fails, as small as can be, and end with exit code 1 if there are any."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        model, way = drawn(seed)
        result = divide(model, way)
        counts[result.kind] += 1
        if result.failed and counts[result.kind] <= 5:
            small = shrunk(model, way, result.kind)
            out.mkdir(parents=True, exist_ok=True)
            onnx.save_model(small, out / f"{seed}.onnx")
            text = f"{way}\n{result.kind}\n{divide(small, way).detail}\n{onnx.printer.to_text(small)}\n"
            (out / f"{seed}.txt").write_text(text)
            console.print(f"{out / str(seed)}.txt: {way}, {len(small.graph.node)} nodes: {result.kind}", markup=False)
        seed += 1
    for kind, count in counts.most_common():
        console.print(f"{count:6d}  {kind}", markup=False)
    raise typer.Exit(any(kind.startswith("failed") for kind in counts))


if __name__ == "__main__":
    typer.run(main)
