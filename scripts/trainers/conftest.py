"""What the tests here share: a small network and samples in the current folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models import BUILDERS

torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: chain.onnx, of 3 classes, and data.npz, 45 samples to learn and 15 to test."""
    monkeypatch.chdir(tmp_path)
    onnx.save_model(BUILDERS["chain"](), "chain.onnx")
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    x = rng.normal(0, 0.2, (60, 2, 4, 4)).astype(np.float32)
    x[np.arange(60), 0, y] += 1
    np.savez("data.npz", x=x[:45], target=y[:45], test_x=x[45:], test_target=y[45:])
    return tmp_path
