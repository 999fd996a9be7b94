"""News of a run: bars on a terminal, lines elsewhere, a file of JSON lines, a tracker."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onnxpart.torch.runs import trackers
from onnxpart.torch.runs.progress import RunProgress
from onnxpart.torch.training.events import Epoch, EpochEnd, Note, Steps

EVENTS = [
    Note("engine fused"),
    Steps((0, 1), 3, 2, 4, 20, [[1.0, 3.0], [2.0, 4.0]], 0.5),
    EpochEnd(0, 3, Epoch(0.5, 1.5, 1.25, 0.125)),
    Steps((0, 1), 4, 2, 4, 20, [[1.0, 3.0]], 1.0),
]


def test_a_terminal_shows_bars(tmp_path: Path) -> None:
    screen = io.StringIO()
    with RunProgress(tmp_path, Console(file=screen, force_terminal=True, width=200)) as progress:
        told = progress.stage("parts", range(3, 6), "error rate")
        for event in EVENTS:
            told(event)
        (bar,) = progress.progress.tasks
        assert (bar.completed, bar.total) == (6, 12)
        assert bar.description == "epoch 5/6, parts: loss 1, 3; error rate 0.125; 40 samples/s"
        assert bar.time_remaining is None or bar.time_remaining >= 0
    assert "note: engine fused" in screen.getvalue()


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_shows_bar_and_time_left_and_cuts_the_text(tmp_path: Path, width: int) -> None:
    screen = io.StringIO()
    parts = tuple(range(32))
    with RunProgress(tmp_path, Console(file=screen, force_terminal=True, no_color=True, width=width)) as progress:
        told = progress.stage("parts", range(3, 6), "error rate")
        told(Steps(parts, 3, 2, 4, 20, [[float(part) for part in parts]], 0.5))
    shown = Console(file=io.StringIO(), width=width)
    with shown.capture() as captured:
        shown.print(progress.progress.get_renderable())
    (plain,) = captured.get().splitlines()
    assert re.match(r"━+ +(-:--:--|\d:\d\d:\d\d) epoch 4/6", plain)
    assert len(plain) <= width
    assert plain.endswith("…")


def test_news_are_lines_elsewhere_and_in_a_file(tmp_path: Path) -> None:
    for resume in (False, False, True):
        text = io.StringIO()
        with RunProgress(tmp_path, Console(file=text, width=200), resume=resume) as progress:
            told = progress.stage("parts", range(3, 6), "error rate")
            for event in EVENTS:
                told(event)
        expected = "epoch 4/6, part 0: loss in training 1.5, loss in test 1.25, error rate 0.125"
        assert text.getvalue().splitlines() == ["note: engine fused", expected]
        recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert len(recorded) == (6 if resume else 3)
    assert recorded[0] == {"stage": "parts", "epoch": 3, "batch": 2, "parts": [0, 1], "loss": [1.5, 3.5],
                           "samples_per_second": 40.0, "seconds": 0.5}  # fmt: skip


class Recorder:
    """A tracker that keeps what it is given, and takes no more than three points."""

    def __init__(self, run: str | None) -> None:
        self.run = run or "one"
        self.points: list[tuple[str, dict[str, float], str, int]] = []
        self.ended: list[bool] = []

    def draw(self, network: str, values: Mapping[str, float], axis: str, step: int) -> None:
        if len(self.points) == 3:
            raise ConnectionError("the server is gone")
        self.points.append((network, dict(values), axis, step))

    def close(self, failed: bool) -> None:
        self.ended.append(failed)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Those that were started."""
    found: list[Recorder] = []

    def started(kind: str, folder: Path, options: Mapping[str, Any], run: str | None) -> Recorder:
        assert (kind, folder.is_dir(), options) == ("wandb", True, {"lr": 0.1})
        found.append(Recorder(run))
        return found[-1]

    monkeypatch.setattr(trackers, "check", lambda _: None)
    monkeypatch.setattr(trackers, "started", started)
    return found


def test_curves_of_each_network_are_drawn_over_its_own_steps(tmp_path: Path, recorders: list[Recorder]) -> None:
    for resume in (False, True):
        text, tracked = io.StringIO(), {"resume": resume, "log_to": "wandb", "options": {"lr": 0.1}}
        with RunProgress(tmp_path, Console(file=text, width=200), **tracked) as progress:
            for name, events in (("parts", EVENTS[:3]), ("whole", EVENTS[2:])):
                told = progress.stage(name, range(3, 6), "error rate")
                for event in events:
                    told(event)
        assert "note: wandb takes no more news (the server is gone); the run goes on without it" in text.getvalue()
    first, again = recorders
    assert (first.run, again.run) == ("one", "one")  # a resumed run goes on with it
    figures = {"loss in training": 1.5, "loss in test": 1.25, "error rate": 0.125}
    assert first.points == again.points == [
        ("part 0", {"loss of batches": 1.5}, "batch", 14),
        ("part 1", {"loss of batches": 3.5}, "batch", 14),
        ("part 0", figures, "epoch", 4),
    ]  # fmt: skip
    assert (tmp_path / "metrics.jsonl").read_text().count("tracker") == 1


@pytest.mark.parametrize("failed", [False, True])
def test_a_tracker_is_told_how_the_run_ended(tmp_path: Path, recorders: list[Recorder], failed: bool) -> None:
    with suppress(ValueError), RunProgress(tmp_path, Console(quiet=True), log_to="wandb", options={"lr": 0.1}) as run:
        run.stage("whole", range(3, 6), "error rate")(EVENTS[2])
        if failed:
            raise ValueError
    (recorder,) = recorders
    assert recorder.points[0][0] == "whole"
    assert recorder.ended == [failed]
