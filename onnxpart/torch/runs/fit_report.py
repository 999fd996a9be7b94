"""What `fit` found, as JSON and as a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import torch

from onnxpart import __version__
from onnxpart.merging.cross_weights import Edges
from onnxpart.storage.atomic import replacing_files, write_bytes
from onnxpart.torch.runs.fit import CHECKPOINTS
from onnxpart.torch.runs.outcome import COPIES, ONE_PART, SHORTER, Fit
from onnxpart.torch.runs.recipe import Recipe
from onnxpart.torch.runs.task import RunOptions
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.patience import Patience

REPORT, PAGE = "report.json", "report.md"
_CONTROLS = {
    SHORTER: "the whole alone, in the method's time",
    ONE_PART: "one part alone, {k} times as long",
    COPIES: "copies of one part, trained on",
}


def report(found: Fit, options: RunOptions, source: str, recipe: Recipe, edges: Edges) -> dict[str, Any]:
    """Return all figures for JSON; `rounds`: the epochs after which the parts were merged.

    :param source: the network as it was given. :param recipe: see `fit.fit`. :param edges: see `fit.fit`.
    """
    times = found.times
    rates = {"parts": recipe.parts(options.settings, found.plan.k, found.merge_at).lr, "whole": options.settings.lr}
    return {
        "model": source,
        "trained": str(found.file),
        "k": found.plan.k,
        "grow": found.grow,
        "blocks": found.blocks,
        "epochs": found.merge_at + len(found.whole),
        "merge_at": found.merge_at,
        "recipe": {**asdict(recipe), "rates": rates},
        "edges": edges.spread,
        "kept": list(found.kept),
        "rounds": [span.stop for span in found.rounds],
        "data": options.data,
        "loss": options.loss,
        "metric": found.metric.name or None,
        "engine": options.engine,
        "batch_size": options.batch_size,
        "settings": asdict(options.settings),
        "sizes": asdict(found.sizes),
        "parts": [_points(curve, 0) for curve in found.parts],
        "ensemble": [asdict(check) for check in found.ensemble],
        "merged": None if found.merged is None else {"loss": found.merged[0], "metric": found.merged[1]},
        "whole": _points(found.whole, found.merge_at),
        "baseline": _points(found.baseline, 0),
        "controls": {
            name: _points(curve, found.merge_at if name == COPIES else 0) for name, curve in found.controls.items()
        },
        "seconds": {"parts": times.parts, "whole": times.whole, "whole_epoch": times.epoch,
                    "alone": times.alone(found.alone)},
        "speedup": times.speedup(found.alone),
        "traffic": traffic(found),
        "as_good": as_good(found, options.patience_by(found.metric)),
        "patience": _patience(found, options.patience_by(found.metric)),
        "goal": asdict(found.goal),
        "target": target(found),
        "gpu_memory": None if found.gpu_memory[0] is None else {"parts": found.gpu_memory[0],
                                                                 "whole": found.gpu_memory[1]},
        "deviation": found.deviation,
        "versions": {"onnxpart": __version__, "torch": torch.__version__},
    }  # fmt: skip


def _patience(found: Fit, patience: Patience | None) -> dict[str, Any] | None:
    """Return the patience with the whole, after which epoch and why that ended it, if it did, and which epochs' weights
    were kept of it and of its baseline.
    """
    if patience is None:
        return None
    end = found.merge_at + len(found.whole) if patience.spent(found.whole) else None
    kept = {"whole": found.merge_at + patience.kept(found.whole) + 1, "baseline": patience.kept(found.baseline) + 1}
    return {"epochs": patience.epochs, "ended": end, "why": f"{found.metric.judge} {patience}", "kept": kept}


def as_good(found: Fit, patience: Patience | None = None) -> dict[str, Any] | None:
    """Return after how many seconds the method was as good as the baseline at its end; None if never.

    With patience the baseline counts up to its best epoch. Both are compared by the metric on the test data, or else by
    the loss; being as good as a target is enough. `baseline`: the baseline's own seconds.
    """
    if not found.baseline or found.merged is None:
        return None
    last = found.baseline[-1 if patience is None else patience.kept(found.baseline)]
    wanted = getattr(last, found.metric.key)
    wanted = wanted if found.goal.target is None else found.metric.worst([wanted, found.goal.target])
    seconds = _reached(found, wanted)
    return {
        "by": found.metric.judge,
        "wanted": wanted,
        "baseline": last.seconds,
        "seconds": seconds,
        "speedup": None if seconds is None else last.seconds / seconds,
    }


def traffic(found: Fit) -> dict[str, float] | None:
    """Return the bytes of gradients, and of sharded weights, that workers sent, for a batch and in all; None if none.

    `data_parallel`: the bytes in all if they had trained the whole from the start.
    """
    sent = found.traffic
    if sent is None:
        return None
    parts, whole = found.merge_at, len(found.whole)
    return {
        "parts_batch": sent.parts,
        "whole_batch": sent.whole,
        "all": sent.batches * (parts * sent.parts + whole * sent.whole),
        "data_parallel_batch": sent.data_parallel,
        "data_parallel": sent.batches * (parts + whole) * sent.data_parallel,
    }


def target(found: Fit) -> dict[str, Any] | None:
    """Return after how many seconds the target was reached (None if never), and the best value of the whole."""
    wanted = found.goal.target
    if wanted is None:
        return None
    best = found.metric.best(getattr(point, found.metric.key) for point in _judged(found))
    return {"by": found.metric.judge, "wanted": wanted, "seconds": _reached(found, wanted), "best": best}


def _judged(found: Fit) -> list[Epoch]:
    """The whole right after merging, and after each of its epochs."""
    assert found.merged is not None
    return [Epoch(0.0, nan, *found.merged), *found.whole]


def _reached(found: Fit, wanted: float) -> float | None:
    """After how many seconds of parts and whole the whole was as good as a value."""
    metric = found.metric
    points = (point.seconds for point in _judged(found) if metric.as_good(getattr(point, metric.key), wanted))
    reached = next(points, None)
    return None if reached is None else found.times.parts + reached


def _points(curve: Sequence[Epoch], first: int) -> list[dict[str, Any]]:
    return [{"epoch": number, **asdict(epoch)} for number, epoch in enumerate(curve, first + 1)]


def save(data: dict[str, Any], folder: Path, beside: Mapping[str, bytes]) -> None:
    """Write the figures and the page into the folder of a run, and remove its checkpoints.

    :param beside: names and contents of further files that the report links: pictures (.svg) and pages (.html).
    :raises ModelError: when they can't be written.
    """
    with replacing_files(folder / PAGE) as fresh:
        write_bytes(fresh / REPORT, (json.dumps(data, indent=1) + "\n").encode())
        for name, content in beside.items():
            write_bytes(fresh / name, content)
        links = [f"{'!' * name.endswith('.svg')}[{Path(name).stem}]({name})" for name in beside]
        write_bytes(fresh / PAGE, ("\n\n".join(["\n".join(page(data)), *links]) + "\n").encode())
    checkpoint.remove(folder / CHECKPOINTS)


def page(data: dict[str, Any]) -> list[str]:
    """Return the report as lines of Markdown."""
    k, seconds, metric = data["k"], data["seconds"], data["metric"]
    sizes = [("whole", data["sizes"]["whole"]), *((f"part {p}", part) for p, part in enumerate(data["sizes"]["parts"]))]
    last = [(f"part {p}", curve[-1]) for p, curve in enumerate(data["parts"])]
    last += [("merged", {**data["merged"], "epoch": data["merge_at"]})] if data["merged"] else []
    last += [("whole, trained on", _end(data, "whole"))] if data["whole"] else []
    rounds = f" (the last of {len(data['rounds'])} rounds)" if len(data["rounds"]) > 1 else ""
    last += [("the whole alone", _end(data, "baseline"))] if data["baseline"] else []
    last += [(_CONTROLS[name].format(k=k), curve[-1]) for name, curve in data["controls"].items()]
    rates = data["recipe"]["rates"]
    lines = [
        f"# {data['model']} in {k} parts",
        "",
        f"{data['epochs']} epochs, merged after {data['merge_at']}{rounds}, on {data['data']} with {data['loss']}.",
        "",
        f"Recipe {data['recipe']['kind']}: rates {rates['parts']:g} for the parts, {rates['whole']:g} for the whole.",
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
    if data["as_good"] is not None:
        lines.append(compared(data["as_good"]))
    elif data["speedup"] is not None:
        alone, speedup = seconds["alone"], data["speedup"]
        lines.append(
            f"At its median epoch the whole alone would take {alone:.1f}: {speedup:.2f} times as long. Whether it "
            "would be as good, --baseline says."
        )
    if data["traffic"] is not None:
        lines.append(exchanged(data["traffic"]))
    if data["target"] is not None:
        lines.append(aimed(data["target"]))
    if data["patience"] is not None and data["whole"]:
        lines.append(ended(data["patience"]))
    if data["gpu_memory"] is not None:
        lines += [taken(memory, who) for who, memory in data["gpu_memory"].items() if memory is not None]
    if data["grow"] == "widen":
        lines.append("One part was trained, and the whole began as copies of it.")
    if data["blocks"] is not None:
        lines.append(f"Blocks of each stack that the parts had until they merged: {data['blocks']}.")
    if data["kept"]:
        lines.append(f"Weights between parts stayed as they were in {', '.join(data['kept'])}.")
    return [
        *lines,
        f"ONNX Runtime differs from the trained module by {data['deviation']:.1e} of the output's standard deviation.",
    ]


def _end(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The point of a curve whose weights were kept."""
    points: list[dict[str, Any]] = data[name]
    if data["patience"] is None:
        return points[-1]
    return next(point for point in points if point["epoch"] == data["patience"]["kept"][name])


def ended(found: dict[str, Any]) -> str:
    """Return as a sentence what patience did to the whole."""
    kept = f"it has its weights after epoch {found['kept']['whole']}, the best"
    if found["ended"] is None:
        return f"The whole trained for all epochs; {kept}."
    return f"The whole ends after epoch {found['ended']}: {found['why']}; {kept}."


def compared(found: dict[str, Any]) -> str:
    """Return the comparison with the baseline as a sentence."""
    end = f"The whole alone gets to {found['by']} {found['wanted']:.4g} after {found['baseline']:.1f} seconds;"
    if found["seconds"] is None:
        return f"{end} the method never got there."
    return f"{end} the method was there after {found['seconds']:.1f}: {found['speedup']:.2f} times as fast."


def exchanged(sent: dict[str, float]) -> str:
    """Return as a sentence what workers sent."""
    parts, whole, every, alone, all_alone = (
        f"{sent[key] / 1e6:,.3g} MB"
        for key in ("parts_batch", "whole_batch", "all", "data_parallel_batch", "data_parallel")
    )
    return (
        f"Workers sent each other {parts} for a batch of the parts, {whole} for one of the whole, {every} in all; "
        f"data-parallel training of the whole sends {alone} for a batch, {all_alone} in all."
    )


def taken(memory: int, who: str) -> str:
    """Return what was taken of a GPU's memory, in bytes, as a sentence. :param who: what trained."""
    return f"Tensors of a process took {memory / 1e9:.2f} GB of its GPU's memory at most, training the {who}."


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def aimed(found: dict[str, Any]) -> str:
    """Return as a sentence what became of the target."""
    aim = f"The target, {found['by']} {found['wanted']:.4g},"
    if found["seconds"] is None:
        return f"{aim} was not reached: the best was {found['best']:.4g}. More epochs or a larger budget may help."
    return f"{aim} was reached after {found['seconds']:.1f} seconds."
