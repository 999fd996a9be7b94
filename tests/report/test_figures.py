"""What the figures show: their axes, scales and points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxpart.report import figures
from onnxpart.report.records import read
from tests.networks.records import run, times, written


def test_beliefs_have_axes_for_each_number_of_parts() -> None:
    figure = figures.beliefs({2: [[0.1, 0.2], [0.8, 0.9]], 5: [[0.5, 0.5]]})
    assert [axes.get_title() for axes in figure.axes] == ["K = 2", "K = 5"]
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(points, [[0.1, 0.2], [0.8, 0.9]])
    assert figures.beliefs({}).axes, "an empty picture, no error"


@pytest.mark.parametrize(("name", "scale"), [("error, %", 100.0), ("bits", 1.0)])
def test_curves_are_means_over_seeds(tmp_path: Path, name: str, scale: float) -> None:
    lines = [times("mnist"), *(run("mnist", "whole", [(1, 20)], seed, final) for seed, final in enumerate((0.1, 0.3)))]
    runs = read([written(tmp_path, lines)]).runs
    loss, metric = figures.curves({1: runs}, name).axes
    (line,) = metric.lines
    assert line.get_label() == "K = 1"
    np.testing.assert_allclose(line.get_ydata(), [scale * 0.4, scale * 0.2])
    np.testing.assert_allclose(line.get_xdata(), [0, 20])
    assert (loss.get_ylabel(), metric.get_ylabel(), metric.get_yscale()) == ("loss", name, "log")


def test_times_have_a_marker_for_each_way_and_machine() -> None:
    points = [(10.0, 10.0, 0.2, 0.01, "whole"), (8.0, 4.0, 0.2, 0.0, "partition"), (None, 5.0, 0.3, 0.0, "widen")]
    (axes,) = figures.times(points, (10.0, 0.2, 0.01), "error, %").axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["baseline", "whole", "partition, in series", "partition, in parallel", "widen, in parallel"]
    assert (axes.get_ylabel(), axes.get_xscale()) == ("error, %", "log")
