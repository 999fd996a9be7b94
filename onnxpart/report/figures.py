"""The report's figures, in matplotlib: one plot each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onnxpart.report.records import Run
from onnxpart.report.svg import COLOURS, MARKERS, legend, plain, plot

_BINS = 25
_DENSITY = LinearSegmentedColormap.from_list("few to many", [COLOURS[1], COLOURS[0]])
"""From few to many; both are seen on light and dark."""


def beliefs(k: int, found: Sequence[Sequence[float]]) -> Figure:
    """How many samples two parts of K believe alike (Figure 2 of the paper): by colour, from few to many.

    :param found: for each sample, the probability that parts 0 and 1 give to the correct class.
    """
    figure, axes = plot(f"K = {k}")
    x, y = np.asarray(found).T
    counts, *edges = np.histogram2d(x, y, bins=_BINS, range=((0, 1), (0, 1)))
    shown = axes.pcolormesh(*edges, np.ma.masked_equal(counts.T, 0), norm="log", cmap=_DENSITY)
    figure.colorbar(shown, label="samples", format="{x:g}")
    axes.set(xlabel="part 0", ylabel="part 1", aspect="equal")
    return figure


def curves(runs: Mapping[int, Iterable[Run]], key: str, name: str) -> Figure:
    """Loss or metric over epochs, means over seeds and parts (Figure 3 of the paper).

    :param runs: K -> its runs; K = 1 is the whole. :param key: `loss` or `metric`.
    :param name: of that; one that ends with % is drawn in percent.
    """
    figure, axes = plot()
    for i, (k, each) in enumerate(sorted(runs.items())):
        epochs, values = _mean([point for run in each for point in _steps(run)], key)
        axes.plot(epochs, _scale(name) * values, color="black" if k == 1 else COLOURS[i - 1], label=f"K = {k}")
    axes.set(xlabel="epoch", ylabel=name, yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes.yaxis)
    legend(figure)
    return figure


def _scale(name: str) -> float:
    return 100.0 if name.endswith("%") else 1.0


def _steps(run: Run) -> list[Mapping[str, Any]]:
    """Points of a run in order: at the merge both the parts' and the whole's."""
    return [{**point, "epoch": point["epoch"] + (1e-6 if point is run.merged else 0.0)} for point in run.curve]


def _mean(points: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    epochs = sorted({point["epoch"] for point in points})
    return np.array(epochs), np.array([np.mean([p[key] for p in points if p["epoch"] == epoch]) for epoch in epochs])


def times(
    points: Sequence[tuple[float, float, float, str]], base: tuple[float, float, float], name: str, how: str
) -> Figure:
    """Final metric over seconds of training.

    :param points: seconds, mean, spread, method. :param base: seconds, mean and spread of the baseline: lines, a band.
    :param name: of the metric; one that ends with % is drawn in percent. :param how: the parts ran, in words.
    """
    figure, axes = plot(f"parts {how}")
    scale, (seconds, mean, spread) = _scale(name), base
    axes.axhspan(scale * (mean - spread), scale * (mean + spread), color="gray", alpha=0.2, linewidth=0)
    axes.axhline(scale * mean, color="black", linewidth=1, label="baseline")
    axes.axvline(seconds, color="black", linewidth=0.5, linestyle=":")
    for i, method in enumerate(dict.fromkeys(point[3] for point in points)):
        x, y, off = np.array([point[:3] for point in points if point[3] == method], float).T
        style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "capsize": 2, "linestyle": ""}
        axes.errorbar(x, scale * y, scale * off, markersize=4, elinewidth=0.8, label=method, **style)
    axes.set(xlabel="seconds of training", ylabel=name, xscale="log", yscale="log")
    plain(axes.xaxis)
    plain(axes.yaxis)
    legend(figure)
    return figure


def fit(data: Mapping[str, Any], key: str, name: str) -> Figure:
    """A run of `fit` over seconds of training: its parts (their mean, from the best to the worst), merge and whole.

    :param data: the report of `fit`. :param key: of its points. :param name: of that; one that ends with % is drawn in
        percent.
    """
    figure, axes = plot()
    scale, starts = _scale(name), data["seconds"]["parts"]
    parts, seconds = (np.array([[point[of] for point in curve] for curve in data["parts"]], float) for of in
                      (key, "seconds"))  # fmt: skip
    axes.fill_between(seconds.max(0), *(scale * f(parts, 0) for f in (np.min, np.max)), color=COLOURS[0], alpha=0.25)
    axes.plot(seconds.max(0), scale * parts.mean(0), ".-", color=COLOURS[0], label=f"{len(parts)} parts")
    others: Sequence[tuple[str, Any, dict[str, Any]]] = (
        ("ensemble", data["ensemble"] if key != "train_loss" else [], {"color": COLOURS[2], "linestyle": "--"}),
        ("whole alone", data["baseline"], {"color": "black", "linestyle": ":"}),
    )
    for label, points, style in others:
        if points:
            axes.plot([p["seconds"] for p in points], [scale * p[key] for p in points], label=label, **style)
    merged = [{"seconds": 0.0, **data["merged"]}] if data["merged"] and key != "train_loss" else []
    whole = [(starts + point["seconds"], scale * point[key]) for point in (*merged, *data["whole"])]
    if whole:
        axes.plot(*zip(*whole, strict=True), ".-", color=COLOURS[5], label="whole, after the merge")
    for end in sorted({*(seconds.max(0)[stop - 1] for stop in data["rounds"][:-1]), starts}):
        axes.axvline(end, color="gray", linewidth=0.8, zorder=0)
    axes.set(xlabel="seconds of training", ylabel=name)
    legend(figure)
    return figure
