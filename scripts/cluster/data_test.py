"""Data of Ray Data: the same weights by one process and by tasks on a cluster, each of which reads the data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models import BUILDERS

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import numpy as np
import ray

ray.data.DataContext.get_current().enable_progress_bars = False
ray.data.DataContext.get_current().execution_options.preserve_order = True

def samples():
    draw = np.random.default_rng(0)
    items = [{"x": draw.random((2, 4, 4), np.float32), "target": i % 2} for i in range(60)]
    return ray.data.from_items(items)
"""


def test_a_dataset_of_ray_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    onnx.save_model(BUILDERS["chain"](), tmp_path / "chain.onnx")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    found = []
    for engine in ("series", "ray"):
        given = ("--data", "mine:samples", "--steps-per-epoch", 4, "--batch-size", 10, "--epochs", 4, "--merge-at", 2,
                 "--optimizer", "sgd", "--recipe", "paper", "--device", "cpu", "--cpus-per-part", 0.4)  # fmt: skip
        command = [sys.executable, "-m", "onnxpart", "fit", "chain.onnx", *map(str, given), "--engine", engine]
        done = subprocess.run([*command, "-o", engine], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "the data end after 6 batches, and are then read from their beginning" in done.stderr
        graph = onnx.load(tmp_path / engine / "trained.onnx").graph
        found.append({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-4, atol=1e-5, err_msg=name)
