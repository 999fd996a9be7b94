"""Writes `onnxpart/analysis/rules/MATRIX.md`: what is verified and what is refused of every operator, and why."""

import re
import sys
from collections import Counter
from collections.abc import Collection
from itertools import product
from pathlib import Path

import onnxruntime
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from scripts.machine import machine
from tests.networks.matrix import Outcome, cells, judge

PAGE = Path(onnxpart.__file__).parent / "analysis" / "rules" / "MATRIX.md"
MOST, PARTS = 4, (2, 3)
"""Test cases of an operator, and numbers of parts."""
REASONS = re.compile(r"can be divided into \d+ parts \((.*)\); try")
SMOOTHED = (
    (re.compile(r"its units move in \d+ class(es)?, too few for \d+ parts"), "too few classes"),
    (re.compile(r"[A-Za-z0-9]+ 'studied', "), "it, "),
    (re.compile(r" ?\(?[A-Za-z0-9]+ 'studied'\)?"), ""),
    (re.compile(r"'[^']*'"), "..."),
    (re.compile(r"\d+"), "n"),
)
"""What is of one network alone in a reason, and what stands for it."""
HEAD = """# What is divided of every operator

Written by `scripts/matrix`; a test that judges the same networks fails while a row is stale.

A *cell* is a small network: the node of one of ONNX's own test cases, with one of its inputs made of hidden units that
lie along one of its axes, between two linear layers. The other inputs are constants, and in cells of their own inputs
of the network. It is split in K: *verified* means that both oracles hold in ONNX Runtime and that the whole computes
the parts' mean, *refused* that it ends in a sentence, *not run* that ONNX Runtime can't run the network as it stands. A
cell that is neither is a fault, and the test fails. At most {most} test cases of an operator are taken, those of
different forms first. A unit that is refused here stays whole where other layers can be divided.

{summary} ({where})

| operator | K | verified | refused | not run | why refused |
|---|---:|---:|---:|---:|---|
"""


def row(operator: str, k: int, outcomes: Collection[Outcome]) -> str:
    """The line of an operator and a number of parts."""
    count = Counter(outcome.status for outcome in outcomes)
    reasons = Counter(reason(outcome.reason) for outcome in outcomes if outcome.status == "refused")
    why = "; ".join(f"{text} ({n})" for text, n in sorted(reasons.items(), key=lambda r: (-r[1], r[0])))
    return f"| {operator} | {k} | {count['verified']} | {count['refused']} | {count['unusable']} | {why} |"


def reason(text: str) -> str:
    """Why a network is refused, without what is its own."""
    found = REASONS.search(text)
    text = found[1] if found else text.partition(": ")[2]
    parts = [part for part in text.split("; ") if not part.startswith("it is tied to the output")] or [text]
    result = parts[0]
    for pattern, instead in SMOOTHED:
        result = pattern.sub(instead, result)
    return result.replace("|", "\\|").strip()


def main() -> None:
    """Judge every cell and write the page."""
    onnxruntime.set_default_logger_severity(4)
    by_operator: dict[tuple[str, int], list[Outcome]] = {}
    for cell, k in product(cells(MOST), PARTS):
        by_operator.setdefault((cell.op_type, k), []).append(judge(cell, k))
    found = [outcome for outcomes in by_operator.values() for outcome in outcomes]
    count = Counter(outcome.status for outcome in found)
    summary = (
        f"{len(found):,} cells of {len({name for name, _ in by_operator})} operators: {count['verified']:,} verified, "
        f"{count['refused']:,} refused, {count['unusable']:,} not run, {count['wrong']:,} wrong"
    )
    where = ", ".join(f"{key} {value}" for key, value in machine("onnx", "onnxruntime-gpu", "numpy").items())
    rows = [row(name, k, outcomes) for (name, k), outcomes in sorted(by_operator.items())]
    PAGE.write_text(HEAD.format(most=MOST, summary=summary, where=where) + "\n".join(rows) + "\n")
    raise typer.Exit(int(bool(count["wrong"])))


if __name__ == "__main__":
    typer.run(main)
