"""Divides networks that other frameworks exported, verifies them, and writes what came out as a table."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import onnx
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from onnxpart.errors import OnnxpartError
from scripts.machine import machine

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("keras", "flax", "sklearn")


@dataclass(frozen=True)
class Outcome:
    """A network in K parts: the share of its weights that is divided, the deviation, and what stands in the way."""

    k: int
    divided: float
    deviation: float | None
    reason: str


def outcome(model: Path, k: int) -> Outcome:
    """Divide and verify a network; what has no rule, or can't be divided, is the reason."""
    try:
        split = onnxpart.split(model, k)
        verdict = onnxpart.verify(split.analysis, split.plan, parts=split.parts, whole=split.whole)
    except OnnxpartError as error:
        return Outcome(k, 0.0, None, str(error))
    sizes = [(prod(i.shape), i.part_shape(0) != i.shape) for i in split.plan.initializers if not i.constant]
    total, divided = sum(n for n, _ in sizes), sum(n for n, cut in sizes if cut)
    reasons = [*split.plan.blocked, *(f"duplicated: {title}" for title in split.plan.duplicated)]
    return Outcome(k, divided / max(1, total), verdict.deviation, "; ".join(reasons))


def rows(folder: Path, parts: tuple[int, ...]) -> Iterator[str]:
    """The table's rows, framework by framework."""
    for framework in FRAMEWORKS:
        for path in sorted(folder.glob(f"{framework}_*.onnx")):
            nodes = len(onnx.load_model(path).graph.node)
            for k in parts:
                result = outcome(path, k)
                deviation = "" if result.deviation is None else f"{result.deviation:.0e}"
                reason = result.reason if len(result.reason) < 160 else f"{result.reason[:157]}..."
                name = path.stem.partition("_")[2]
                cells = [framework, name, str(nodes), str(k), f"{result.divided:.1%}", deviation, reason]
                yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the exported networks.")],
    out: Annotated[Path, typer.Option(help="The table to write.")] = ROOT / "models" / "frameworks.md",
) -> None:
    """Write the table of all networks in a folder, each in 2 and in 3 parts."""
    versions = [(folder / f"{framework}.txt").read_text().strip() for framework in FRAMEWORKS]
    here = ", ".join(f"{key} {value}" for key, value in machine("onnx", "onnxruntime-gpu").items())
    text = "\n".join(
        [
            "# Networks from other frameworks",
            "",
            "Written by `scripts/frameworks`. Exported by:",
            "",
            *(f"* {line}" for line in versions),
            "",
            f"Divided and verified on: {here}. *divided* is the share of the trained weights of which a part holds a",
            "piece only; *deviation* is the largest of both oracles.",
            "",
            "| framework | network | nodes | K | divided | deviation | what stands in the way |",
            "|---|---|---:|---:|---:|---:|---|",
            *rows(folder, (2, 3)),
            "",
        ]
    )
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
