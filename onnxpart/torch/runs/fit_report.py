"""What `fit` found, as JSON, as a page of Markdown, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from onnxpart import __version__
from onnxpart.storage.atomic import write_bytes
from onnxpart.torch.runs.fit import CHECKPOINTS, Fit
from onnxpart.torch.runs.task import RunOptions
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.events import Epoch

REPORT, PAGE, CURVES = "report.json", "report.md", "curves.png"


def report(found: Fit, options: RunOptions, source: str, restart: float | None, edges: float) -> dict[str, Any]:
    """Return all figures, for JSON; `rounds` are the epochs after which the parts were merged.

    :param source: the network that was trained, as given. :param restart: see `fit.fit`, :param edges: too.
    """
    times, epochs = found.times, options.settings.epochs
    return {
        "model": source,
        "trained": str(found.file),
        "k": found.plan.k,
        "epochs": epochs,
        "merge_at": found.merge_at,
        "restart": restart,
        "edges": edges,
        "rounds": [span.stop for span in found.rounds],
        "data": options.data,
        "loss": options.loss,
        "metric": found.metric or None,
        "engine": options.engine,
        "batch_size": options.batch_size,
        "settings": asdict(options.settings),
        "sizes": asdict(found.sizes),
        "parts": [_points(curve, 0) for curve in found.parts],
        "merged": None if found.merged is None else {"loss": found.merged[0], "metric": found.merged[1]},
        "whole": _points(found.whole, found.merge_at),
        "seconds": {"parts": times.parts, "whole": times.whole, "whole_epoch": times.epoch,
                    "alone": times.alone(epochs)},
        "speedup": times.speedup(epochs),
        "deviation": found.deviation,
        "versions": {"onnxpart": __version__, "torch": torch.__version__},
    }  # fmt: skip


def _points(curve: Sequence[Epoch], first: int) -> list[dict[str, Any]]:
    return [{"epoch": number, **asdict(epoch)} for number, epoch in enumerate(curve, first + 1)]


def save(data: dict[str, Any], found: Fit, folder: Path) -> None:
    """Write the figures, the page and the picture into the folder of a run, and remove its checkpoints.

    :raises ModelError: when they can't be written.
    """
    write_bytes(folder / REPORT, (json.dumps(data, indent=1) + "\n").encode())
    write_bytes(folder / PAGE, ("\n".join(page(data)) + "\n").encode())
    _plot(data, found, folder / CURVES)
    checkpoint.remove(folder / CHECKPOINTS)


def page(data: dict[str, Any]) -> list[str]:
    """Return the report as lines of Markdown."""
    k, seconds, metric = data["k"], data["seconds"], data["metric"]
    sizes = [("whole", data["sizes"]["whole"]), *((f"part {p}", part) for p, part in enumerate(data["sizes"]["parts"]))]
    last = [(f"part {p}", curve[-1]) for p, curve in enumerate(data["parts"])]
    last += [("merged", {**data["merged"], "epoch": data["merge_at"]})] if data["merged"] else []
    last += [("whole, trained on", data["whole"][-1])] if data["whole"] else []
    rounds = f" (the last of {len(data['rounds'])} rounds)" if len(data["rounds"]) > 1 else ""
    restart = f", the rate restarting at {data['restart']:g}" if data["restart"] else ""
    lines = [
        f"# {data['model']} in {k} parts",
        "",
        f"{data['epochs']} epochs, merged after {data['merge_at']}{rounds}{restart}, on {data['data']} "
        f"with {data['loss']}.",
        "",
        "| network | parameters | of the whole |",
        "|---|---:|---:|",
        *(f"| {name} | {s['parameters']:,} | {s['parameters'] / sizes[0][1]['parameters']:.1%} |" for name, s in sizes),
        "",
        f"| after training | epoch | loss in training | loss in test | {metric or 'metric'} |",
        "|---|---:|---:|---:|---:|",
        *(f"| {name} | {e['epoch']} | {_shown(e.get('train_loss'))} | {_shown(e['loss'])} | {_shown(e['metric'])} |"
          for name, e in last),
        "",
        f"Seconds of training: {seconds['parts']:.1f} of the parts, {seconds['whole']:.1f} of the whole after them.",
    ]  # fmt: skip
    if data["speedup"] is not None:
        alone, speedup = seconds["alone"], data["speedup"]
        lines.append(f"At its median epoch the whole alone would take {alone:.1f}: a speedup of {speedup:.2f}.")
    return [
        *lines,
        f"ONNX Runtime is off the trained module by {data['deviation']:.1e} of the output's spread.",
        "",
        f"![curves]({CURVES})",
    ]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _plot(data: dict[str, Any], found: Fit, path: Path) -> None:
    """Draw loss, and the metric if there is one, over seconds of training."""
    from matplotlib.figure import Figure

    tested = found.merged is not None
    names = {"loss" if tested else "train_loss": "loss" if tested else "loss in training"}
    names |= {"metric": found.metric} if found.metric and tested else {}
    figure = Figure(figsize=(6 * len(names), 4), layout="constrained")
    for axes, (key, name) in zip(figure.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
        for p, curve in enumerate(data["parts"]):
            axes.plot([e["seconds"] for e in curve], [e[key] for e in curve], ".-", label=f"part {p}")
        for stop in data["rounds"][:-1]:
            ends = max(curve[stop - 1]["seconds"] for curve in data["parts"])
            axes.axvline(ends, color="lightgray", zorder=0, label="merged" if stop == data["rounds"][0] else None)
        whole = [{"seconds": 0.0, **data["merged"]}] if tested else []
        whole += data["whole"]
        starts = found.times.parts
        axes.plot([starts + e["seconds"] for e in whole], [e[key] for e in whole], ".-", color="black", label="whole")
        axes.set(xlabel="seconds of training", ylabel=name)
        axes.legend()
    with path.open("wb") as file:
        figure.savefig(file, dpi=120)
