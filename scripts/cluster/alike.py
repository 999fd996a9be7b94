"""Whether a run on a cluster gave what the same run in one process did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

LOSSES = "train_loss", "loss"


def check_alike(alone: Path, many: Path, rtol: float, atol: float) -> dict[str, Any]:
    """Check curves, and weights to these tolerances, and that no checkpoints are left; return the report of `many`."""
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (alone, many))
    for curve, expected in zip([*other["parts"], other["whole"]], [*one["parts"], one["whole"]], strict=True):
        for epoch, wanted in zip(curve, expected, strict=True):
            assert [epoch[key] for key in LOSSES] == pytest.approx([wanted[key] for key in LOSSES], rel=1e-4)
    trained, same = (onnx.load(folder / "trained.onnx").graph.initializer for folder in (alone, many))
    for tensor, wanted in zip(same, trained, strict=True):
        arrays = numpy_helper.to_array(tensor), numpy_helper.to_array(wanted)
        np.testing.assert_allclose(*arrays, rtol=rtol, atol=atol, err_msg=tensor.name)
    assert not (many / "checkpoints").exists()
    return dict(other)
