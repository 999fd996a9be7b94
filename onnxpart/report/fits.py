"""The sections on runs of `fit`, and their curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

from onnxpart.report import figures
from onnxpart.report.blocks import ERRORS, Block, Drawing, shown, table, unit
from onnxpart.report.records import PARTITION, Fitted, Records


def fits(records: Records) -> list[Block]:
    """Runs of `fit`, grouped over seeds."""
    ordered = sorted(records.fits, key=lambda fit: (_fit_way(fit), fit.seed))
    rows = []
    for (model, data, k, rounds, merge_at, epochs, metric), group in groupby(ordered, key=_fit_way):
        runs = list(group)
        cells = [
            shown(known, metric) if (known := [v for v in values if v is not None]) else ""
            for values in ([run.merged for run in runs], [run.final for run in runs])
        ]
        speedups = [run.speedup for run in runs if run.speedup is not None]
        sizes = (str(number) for number in (k, rounds, merge_at, epochs, len(runs)))
        rows.append((model, data, *sizes, unit(metric), *cells, f"{mean(run.seconds for run in runs):.1f}",
                     f"{mean(speedups):.2f}" if speedups else ""))  # fmt: skip
    columns = ("network", "data", "K", "rounds", "merged at", "epochs", "seeds", "metric", "right after merging",
               "at the end", "seconds", "speedup")  # fmt: skip
    return ["## Runs of fit", table(columns, rows, 2)] if rows else []


def each_fit(records: Records, folder: Path) -> list[Block]:
    """Each run of `fit` by its name and seed: how soon it was as good as the whole alone, and its curves.

    :param folder: of the report, from which links lead.
    """
    blocks: list[Block] = []
    for i, run in enumerate(sorted(records.fits, key=lambda fit: (fit.folder, fit.seed))):
        drawn = (fit_curve(run.report, key, name) for key, name in fit_keys(run.report).items())
        named = (replace(drawing, name=f"{drawing.name}{i}") for drawing in drawn)
        blocks += [f"## {run.folder.name}, seed {run.seed}", _soon(run, folder), *named]
    return blocks


def fit_keys(report: Mapping[str, Any]) -> dict[str, str]:
    """Which figures of a report of `fit` there are curves of, and what they are called."""
    if report["merged"] is None:
        return {"train_loss": "loss in training"}
    return {"loss": "loss in test"} | ({"metric": unit(report["metric"])} if report["metric"] else {})


def fit_curve(report: Mapping[str, Any], key: str, name: str) -> Drawing:
    """A curve of a run of `fit`, by a key and name of `fit_keys`."""
    caption = f"{report['model']} in {report['k']} parts: {name} over seconds of training"
    return Drawing(f"fit_{key}", caption, figures.fit(report, key, name))


def _soon(run: Fitted, folder: Path) -> str:
    """How long the run took, when it was as good as the whole alone, and where its partition is shown."""
    told = f"{run.model} in {run.k} parts, merged after {run.merge_at} of {run.epochs} epochs: {run.seconds:.1f} s."
    good = run.report["as_good"]
    if good is not None:
        wanted = f"the whole alone ends with after {good['baseline']:.1f} s"
        value = f"The {good['by']} of {shown([good['wanted']], good['by'])}{'%' if good['by'] in ERRORS else ''}"
        reached = f"was reached after {good['seconds']:.1f} s" if good["seconds"] is not None else "was never reached"
        told += f" {value} that {wanted} {reached}."
    page = run.folder / PARTITION
    link = quote(os.path.relpath(page, folder).replace(os.sep, "/"))
    return told + (f" [The partition]({link})." if page.is_file() else "")


def _fit_way(fit: Fitted) -> tuple[str, str, int, int, int, int, str]:
    return fit.model, fit.data, fit.k, fit.rounds, fit.merge_at, fit.epochs, fit.metric
