"""What is told of runs of `fit`: of all seeds together, and of each by its name and seed."""

from __future__ import annotations

from pathlib import Path

from onnxpart.report.page import write
from onnxpart.report.records import read
from tests.networks.records import fitted, rows


def test_runs_of_fit_are_grouped_over_seeds(tmp_path: Path) -> None:
    folders = [fitted(tmp_path / f"seed{seed}", seed, final) for seed, final in enumerate((0.1, 0.3))]
    write(read(folders), tmp_path / "out.md")
    found = rows((tmp_path / "out.md").read_text(), "Runs of fit")
    assert found["net.onnx"] == ["npz:d.npz", "2", "1", "3", "5", "2", "error, %", "50.00 ± 0.00", "20.00 ± 14.14",
                                 "5.0", "1.50"]  # fmt: skip


def test_each_run_is_told_by_its_name_and_seed(tmp_path: Path) -> None:
    folders = [fitted(tmp_path / f"a run {seed}", seed, 0.2) for seed in range(2)]
    (folders[1] / "partition.html").touch()
    (tmp_path / "reports").mkdir()
    write(read(folders), tmp_path / "reports" / "out.md")
    text = (tmp_path / "reports" / "out.md").read_text()
    first, second = text.split("## a run ")[1:]
    assert first.startswith("0, seed 0")
    assert second.startswith("1, seed 1")
    told = "merged after 3 of 5 epochs: 5.0 s. The error of 40.00% that the whole alone ends with after 6.0 s was"
    assert f"net.onnx in 2 parts, {told} reached after 5.0 s." in first
    assert "The partition" not in first
    assert "[The partition](../a%20run%201/partition.html)" in second
    assert "out_fit_loss0.svg" in first
    assert "out_fit_metric1.svg" in second
