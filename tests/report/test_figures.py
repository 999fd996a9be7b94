"""What the figures show: their axes, scales and points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpart.report import figures
from onnxpart.report.records import read
from tests.networks.records import fitted, run, times, written


def test_beliefs_count_the_samples_that_two_parts_believe_alike() -> None:
    axes, _ = figures.beliefs(2, [[0.1, 0.22], [0.1, 0.22], [0.8, 0.9]]).axes
    assert axes.get_title() == "K = 2"
    counts = np.ma.filled(axes.collections[0].get_array(), 0)
    assert {(int(y), int(x)): counts[y, x] for y, x in np.argwhere(counts)} == {(5, 2): 2, (22, 20): 1}


@pytest.mark.parametrize(("name", "scale"), [("error, %", 100.0), ("bits", 1.0)])
def test_curves_are_means_over_seeds(tmp_path: Path, name: str, scale: float) -> None:
    lines = [times("mnist"), *(run("mnist", "whole", [(1, 20)], seed, final) for seed, final in enumerate((0.1, 0.3)))]
    runs = read([written(tmp_path, lines)]).runs
    (metric,) = figures.curves({1: runs}, "metric", name).axes
    (line,) = metric.lines
    assert line.get_label() == "K = 1"
    np.testing.assert_allclose(line.get_ydata(), [scale * 0.4, scale * 0.2])
    np.testing.assert_allclose(line.get_xdata(), [0, 20])
    assert (metric.get_ylabel(), metric.get_yscale()) == (name, "log")


def test_times_have_a_colour_and_a_marker_for_each_method() -> None:
    points = [(10.0, 0.2, 0.01, "whole"), (8.0, 0.2, 0.0, "partition"), (5.0, 0.3, 0.0, "widen")]
    (axes,) = figures.times(points, (10.0, 0.2, 0.01), "error, %", "in series").axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["baseline", "whole", "partition", "widen"]
    assert len({(handle[0].get_color(), handle[0].get_marker()) for handle in handles[1:]}) == 3
    assert (axes.get_ylabel(), axes.get_title(), axes.get_xscale()) == ("error, %", "parts in series", "log")


def test_a_fit_has_the_parts_their_merge_and_the_whole(tmp_path: Path) -> None:
    (run,) = read([fitted(tmp_path / "run", 0, 0.2)]).fits
    (axes,) = figures.fit(run.report, "metric", "error, %").axes
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    assert list(found) == ["2 parts", "ensemble", "whole alone", "whole, after the merge"]
    np.testing.assert_allclose(found["2 parts"].get_ydata(), [70, 60, 50])
    np.testing.assert_allclose(found["whole, after the merge"].get_xdata(), [2, 3, 5])
    np.testing.assert_allclose(found["whole, after the merge"].get_ydata(), [50, 45, 20])
    (untested,) = figures.fit({**run.report, "merged": None}, "train_loss", "loss in training").axes
    assert "ensemble" not in untested.get_legend_handles_labels()[1]
