"""A run's options: which ones must be the same where it goes on from a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import regression_mlp
from onnxpart.errors import CheckpointError
from onnxpart.torch.data.images import Normalize
from onnxpart.torch.runs.task import RunOptions, learn, prepare
from onnxpart.torch.training.events import ignore
from onnxpart.torch.training.settings import Settings


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "bce"}, "loss was 'mse' there and is 'bce' here"),
        ({"metric": "auroc"}, "metric was None there and is 'auroc' here"),
        ({"label_smoothing": 0.1}, "label_smoothing was 0.0 there and is 0.1 here"),
        ({"class_weights": (1.0, 2.0)}, r"class_weights was \[\] there and is \[1.0, 2.0\] here"),
        ({"batch_size": 11}, "batch_size was 10 there and is 11 here"),
        ({"normalize": Normalize((0.4,), (0.2,))}, r"mean was \[0.5\] there and is \[0.4\] here"),
        ({"normalize": Normalize((0.5,), (0.3,))}, r"std was \[0.2\] there and is \[0.3\] here"),
        ({"normalize": None}, r"mean was \[0.5\] there and is None here"),
    ],
)
def test_a_run_goes_on_with_the_options_that_it_began_with(
    changed: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    np.savez("data.npz", x=values, target=values[:, :1])
    options = RunOptions("npz:data.npz", "mse", Settings(1, device="cpu"), "series", batch_size=10)
    task = prepare([regression_mlp(0, inputs=3, hidden=(4,))], options)
    begun = replace(options, normalize=Normalize((0.5,), (0.2,)))
    learn(task, begun, range(1), tmp_path / "kept", ignore)
    with pytest.raises(CheckpointError, match=f"is of another run: {said}"):
        learn(task, replace(begun, resume=True, **changed), range(1), tmp_path / "kept", ignore)
    learn(task, replace(begun, resume=True), range(1), tmp_path / "kept", ignore)
