"""The report's figures, in matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from onnxpart.report.records import Run


def beliefs(pairs: Mapping[int, Sequence[Sequence[float]]]) -> Figure:
    """What two parts believe of each sample, for each K (Figure 2 of the paper).

    :param pairs: K -> for each sample, the probability that parts 0 and 1 give to the correct class.
    """
    figure = Figure(figsize=(3.4 * max(len(pairs), 1), 3.6), layout="constrained")
    for axes, (k, found) in zip(figure.subplots(1, max(len(pairs), 1), squeeze=False)[0], pairs.items(), strict=False):
        x, y = np.asarray(found).T
        axes.scatter(x, y, s=6, alpha=0.4, linewidths=0)
        axes.set(title=f"K = {k}", xlabel="part 0", ylabel="part 1", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    return figure


def curves(runs: Mapping[int, Iterable[Run]], name: str) -> Figure:
    """Loss and metric over epochs, means over seeds and parts (Figure 3 of the paper).

    :param runs: K -> its runs; K = 1 is the whole.
    :param name: of the metric; one that ends with % is drawn in percent.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    scale = 100.0 if name.endswith("%") else 1.0
    shown = ("loss", 1.0, "loss"), ("metric", scale, name)
    for axes, (key, factor, label) in zip(figure.subplots(1, 2), shown, strict=True):
        for k, each in sorted(runs.items()):
            epochs, values = _mean([point for run in each for point in _steps(run)], key)
            axes.plot(epochs, factor * values, color="black" if k == 1 else None, label=f"K = {k}")
        axes.set(xlabel="epoch", ylabel=label, yscale="log")
        _plain(axes.yaxis)
        axes.legend()
    return figure


def _steps(run: Run) -> list[Mapping[str, Any]]:
    """Points of a run in order: at the merge both the parts' and the whole's."""
    return [{**point, "epoch": point["epoch"] + (1e-6 if point is run.merged else 0.0)} for point in run.curve]


def _mean(points: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    epochs = sorted({point["epoch"] for point in points})
    return np.array(epochs), np.array([np.mean([p[key] for p in points if p["epoch"] == epoch]) for epoch in epochs])


def times(
    points: Sequence[tuple[float | None, float, float, float, str]], base: tuple[float, float, float], name: str
) -> Figure:
    """Final metric over seconds of training.

    :param points: seconds in series (None where one part alone is trained) and in parallel, mean, spread, method.
    :param base: seconds, mean and spread of the baseline, which is a band.
    :param name: of the metric; one that ends with % is drawn in percent.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes, scale = figure.subplots(), 100.0 if name.endswith("%") else 1.0
    seconds, mean, spread = base
    axes.axhspan(scale * (mean - spread), scale * (mean + spread), color="black", alpha=0.1)
    axes.axhline(scale * mean, color="black", linewidth=1, label="baseline")
    axes.axvline(seconds, color="black", linewidth=0.5, linestyle=":")
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(point[4] for point in points))}
    for method, colour in colours.items():
        mine = np.array([point[:4] for point in points if point[4] == method], float).T
        alone = method in ("whole", "duplicated")
        style: dict[str, Any] = {"color": colour, "capsize": 2, "linestyle": "", "markersize": 5}
        if not alone and method != "widen":
            series = f"{method}, in series"
            axes.errorbar(mine[0], scale * mine[2], scale * mine[3], marker="o", label=series, **style)
        label = method if alone else f"{method}, in parallel"
        marker = "s" if alone else "^"
        axes.errorbar(mine[1], scale * mine[2], scale * mine[3], marker=marker, label=label, alpha=0.7, **style)
    axes.set(xlabel="seconds of training", ylabel=name, xscale="log")
    _plain(axes.xaxis)
    axes.legend(fontsize="small")
    return figure


def _plain(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis without exponents."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
