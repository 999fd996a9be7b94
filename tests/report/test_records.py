"""What runs left behind is read whole, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxpart.errors import ModelError, OnnxpartError
from onnxpart.report.records import read
from tests.networks.records import run, times, written


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("nothing\n", "bad.jsonl, line 1, isn't a record of a run"),
        ('{"kind": "else"}\n', "bad.jsonl, line 1, isn't a record of a run"),
        ("[]\n", "bad.jsonl, line 1, isn't a record of a run"),
        ('{"kind": "times", "experiment": "mnist"}\n', "bad.jsonl, line 1, has no 'network'"),
    ],
)
def test_bad_lines(tmp_path: Path, lines: str, expected: str) -> None:
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(ModelError, match=re.escape(expected)):
        read([tmp_path])


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="doesn't exist; name a folder"):
        read([tmp_path / "none"])
    with pytest.raises(ModelError, match=r"contains neither report.json nor a \*.jsonl file"):
        read([tmp_path])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ModelError, match="isn't a report of fit"):
        read([tmp_path])
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"bad.jsonl can't be read"):
        read([tmp_path / "bad.jsonl"])


def timed(tmp_path: Path, method: str, stages: list[tuple[int, ...]]) -> tuple[float | None, float]:
    """Seconds of a run with the times of `records.times`."""
    found = read([written(tmp_path, [times("language"), run("language", method, stages, 0, 0.1)])])
    last = found.timed("language")
    assert last is not None
    return last.of(found.runs[0])


@pytest.mark.parametrize(
    ("method", "stages", "seconds"),
    [
        ("whole", [(1, 4)], (40.0, 40.0)),
        ("duplicated", [(2, 4)], (32.0, 32.0)),
        ("partition", [(2, 4), (1, 2)], (4 * 5.0 + 2 * 8.0, 4 * 3.0 + 2 * 8.0)),
        ("levels", [(4, 1), (2, 1), (1, 1)], (3.5 + 5.0 + 8.0, 1.0 + 3.0 + 8.0)),
        ("widen", [(2, 4), (1, 2)], (None, 4 * 3.0 + 2 * 8.0)),
        ("deepen", [(1, 4, 3), (1, 2)], (4 * 4.0 + 2 * 10.0,) * 2),
        ("deepen", [(2, 4, 3), (2, 1), (1, 2)], (4 * 2.0 + 5.0 + 2 * 8.0, 4 * 1.5 + 3.0 + 2 * 8.0)),
    ],
)
def test_seconds_of_a_run(
    tmp_path: Path, method: str, stages: list[tuple[int, ...]], seconds: tuple[float | None, float]
) -> None:
    assert timed(tmp_path, method, stages) == seconds


def test_a_run_whose_networks_were_not_timed(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match="language: parts of K=3 weren't timed; run scripts/paper/times language"):
        timed(tmp_path, "partition", [(3, 1), (1, 1)])
    with pytest.raises(OnnxpartError, match="language: parts of K=2/5 weren't timed"):
        timed(tmp_path, "deepen", [(2, 1, 5), (1, 1)])


def test_a_run_has_a_way_a_merge_and_a_point_there(tmp_path: Path) -> None:
    lines = [times("language")]
    lines += [run("language", "partition", [(2, 4), (1, 2)], seed, 0.1) for seed in (0, 1)]
    lines += [run("language", "whole", [(1, 6)], 0, 0.1)]
    one, other, whole = read([written(tmp_path, lines)]).runs
    assert one.way == other.way != whole.way
    assert (one.merge_at, whole.merge_at) == (4, 0)
    assert one.merged is not None
    assert (one.merged["epoch"], one.merged["part"]) == (4, None)
    assert whole.merged is None


def test_networks_that_were_not_timed(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match="language: its networks weren't timed; run scripts/paper/times language"):
        read([written(tmp_path, [run("language", "whole", [(1, 2)], 0, 0.1)])])
