"""Records of runs with figures that can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MACHINE = {"cpu": "a processor", "python": "3"}


SECONDS = {"whole": 10.0, "duplicated": 8.0, "2": 3.0, "4": 1.0, "5": 1.0, "10": 0.5, "whole/3": 4.0, "2/3": 1.5}


def run(experiment: str, method: str, stages: Sequence[tuple[int, ...]], seed: int, final: float, **others: Any) -> Any:
    """A run by (k, epochs) of each stage, and blocks where it has but some."""
    epochs, merge_at = sum(n for _, n, *_ in stages), sum(n for _, n, *_ in stages[:-1])
    parts = [
        {"epoch": merge_at, "stage": 0, "part": p, "loss": 4 * final, "metric": 3 * final}
        for p in range(stages[0][0])
        if len(stages) > 1
    ]
    whole = [{"epoch": at, "stage": len(stages) - 1, "part": None, "loss": 1.0, "metric": metric}
             for at, metric in ((merge_at, 2 * final), (epochs, final))]  # fmt: skip
    return {
        "kind": "run", "experiment": experiment, "network": "a network", "data": "some data", "metric": "error",
        "method": method, "rate": "paper", "seed": seed, "epochs": epochs,
        "stages": [dict(zip(("k", "epochs", "blocks"), stage, strict=False)) for stage in stages],
        "curve": [*parts, *whole], "final": {"loss": 1.0, "metric": final}, "machine": MACHINE, **others,
    }  # fmt: skip


def times(experiment: str, **others: Any) -> dict[str, Any]:
    return {
        "kind": "times", "experiment": experiment, "network": "a network", "epoch": SECONDS,
        "together": {"2": 5.0, "4": 3.5, "5": 4.0, "10": 6.0, "2/3": 2.0},
        "parameters": {"1": 431080, "2": 109295}, "macs": {"1": 300, "2": 100}, "machine": MACHINE, **others,
    }  # fmt: skip


def written(folder: Path, records: Iterable[Any], name: str = "results.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def point(seconds: float, metric: float) -> dict[str, float]:
    return {"seconds": seconds, "train_loss": 2 * metric, "loss": metric, "metric": metric}


def fitted(folder: Path, seed: int, final: float) -> Path:
    folder.mkdir()
    data = {
        "model": "net.onnx", "data": "npz:d.npz", "metric": "error", "k": 2, "rounds": [3], "merge_at": 3, "epochs": 5,
        "settings": {"seed": seed}, "merged": {"loss": 1.0, "metric": 0.5},
        "parts": [[point(n, 0.9 - n / 10 - p / 5) for n in (1, 2, 3)] for p in range(2)],
        "whole": [point(1, 0.45), point(3, final)], "ensemble": [point(1, 0.6), point(2, 0.5)],
        "baseline": [point(2, 0.7), point(6, 0.4)],
        "as_good": {"by": "error", "wanted": 0.4, "baseline": 6.0, "seconds": 5.0, "speedup": 1.2},
        "seconds": {"parts": 2.0, "whole": 3.0}, "speedup": 1.5,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(data))
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def rows(text: str, title: str) -> dict[str, list[str]]:
    """The first table of a section, by the first cell of each row."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def table2(more: float = 0.0) -> list[Any]:
    found = [times("cifar10")]
    for seed, off in enumerate((-0.01, 0.01)):
        found += [run("cifar10", "whole", [(1, 52)], seed, 0.30 + off)]
        found += [run("cifar10", "duplicated", [(2, 52)], seed, 0.20 + off)]
        for at, error in ((0, 0.20 + more), (40, 0.205 + more), (50, 0.25 + more)):
            found += [run("cifar10", "partition", [(2, at), (1, 52 - at)], seed, error + off)]
            found += [run("cifar10", "widen", [(2, at), (1, 52 - at)], seed, error + 0.02 + off)]
    return found
