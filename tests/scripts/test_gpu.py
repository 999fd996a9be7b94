"""`scripts/gpu` at the sizes of a CPU: that it works, and what it says when time is short."""

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from onnxpart.report.records import read
from onnxpart.torch.runs.progress import RunProgress
from onnxpart.torch.training.events import OnEvent
from onnxpart.torch.training.settings import Settings
from scripts import gpu

CPU = torch.device("cpu")
SETTINGS = Settings(1, lr=1e-4, device="cpu")


def test_all_engines_are_timed_on_each_kind_of_network(tmp_path: Path) -> None:
    timed = [replace(network, parts=(2,)) for network in gpu.networks(large=False)]
    for network in (timed[0], *timed[2:4], timed[-1]):  # that of CIFAR-10 and the wider transformer are alike to these
        told = gpu.timed(network, settings=SETTINGS, device=CPU, out=tmp_path, apart=False)
        assert told.startswith("K = 2: ideal ")
    lines = [json.loads(line) for line in (tmp_path / gpu.SPEEDS).read_text().splitlines()]
    assert [(line["k"], line["device"], line["processes"]) for line in lines] == [(2, "cpu", None)] * 4
    assert [line["network"] for line in lines][1:] == ["a small ResNet", "GPT, 2 blocks, width 32", "MLP of 64"]
    assert all(line["series"] > 0 and line["fused"] > 0 and 1 < line["ideal"] < 2 for line in lines)
    assert [found.network for found in read([tmp_path]).engines] == [line["network"] for line in lines]


def test_the_experiment_compares_the_recipe_with_the_whole(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2, optimizer="adamw", lr=1e-3)
    assert gpu.trained(gpu.SMALL, settings, tmp_path).startswith("The whole alone gets to loss ")
    report = json.loads((tmp_path / "language" / "report.json").read_text())
    assert (report["k"], len(report["baseline"]), report["as_good"]["by"]) == (4, 2, "loss")


def test_what_was_measured_is_in_the_files_when_the_time_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_at(last: str) -> None:
        def stage(run: RunProgress, name: str, epochs: range, metric: str) -> OnEvent:
            if name == last:
                raise gpu.OutOfTimeError
            return begin(run, name, epochs, metric)

        monkeypatch.setattr(RunProgress, "stage", stage)
        with pytest.raises(gpu.OutOfTimeError):
            gpu.trained(gpu.SMALL, replace(SETTINGS, epochs=2, optimizer="adamw", lr=1e-3), tmp_path)

    begin, folder = RunProgress.stage, tmp_path / "language"
    ends_at("whole")
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(stages) == {"parts"}
    assert not (folder / "report.json").exists()
    ends_at("one part")
    report = json.loads((folder / "report.json").read_text())
    assert len(report["baseline"]) == 2
    assert report["as_good"]["baseline"] > 0
    assert "copies" in report["controls"]
    assert "one part" not in report["controls"]
    assert read([folder]).fits[0].k == 4


def test_what_the_time_didnt_suffice_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as done:
        gpu.main(minutes=0, out=tmp_path, device="cpu")
    assert done.value.exit_code == 0
    told = capsys.readouterr().out
    assert "left out for want of time: tests, engines: LeNet, experiment: language, engines: " in told
    assert "processes: LeNet" in told
    assert list(tmp_path.iterdir()) == []


def test_a_limit_ends_what_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is within handles errors of its own, and where what was raised first is lost."""

    def slow() -> None:
        with suppress(gpu.OutOfTimeError):
            time.sleep(60)
        with suppress(Exception):
            time.sleep(60)

    monkeypatch.setattr(gpu, "_AGAIN", 0.01)
    with gpu.until(0.01), pytest.raises(gpu.OutOfTimeError):
        slow()
