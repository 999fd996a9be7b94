"""News of a run: bars on a terminal, lines elsewhere, a file of JSON lines, TensorBoard."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

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


def test_tensorboard_draws_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            drawn.append((name, value, step))

        def close(self) -> None:
            drawn.append(("closed", 0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with RunProgress(tmp_path, Console(file=io.StringIO())) as progress:
        told = progress.stage("parts", range(3, 6), "error rate")
        for event in EVENTS:
            told(event)
    assert ("parts/1/batch loss", 3.5, 14) in drawn
    assert ("parts/0/metric", 0.125, 4) in drawn
    assert drawn[-1] == ("closed", 0, 0)
