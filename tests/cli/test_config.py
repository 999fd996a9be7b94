"""Options as a YAML file: read by name, refused where they are none. `test_training` does a run again by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.networks.command import run


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "run.yaml can't be read (No such file or directory); check the path."),
        ("a: [", "run.yaml isn't YAML; write lines such as `epochs: 20`."),
        ("- epochs", "run.yaml contains no options; write lines such as `epochs: 20`."),
        ("epoch: 3", "run.yaml has 'epoch', which isn't an option of a run; choose from model, k, recipe, "),
        ("config: run.yaml", "run.yaml has 'config', which isn't an option of a run; "),
        ("lr: {parts: 1}", "run.yaml has a mapping as the value of 'lr'; give one value, or a list."),
        ("{model: m.onnx, data: d, epochs: many}", "invalid value for '--epochs': "),
        (
            "{model: m.onnx, data: d, epochs: 1, optimizer: lion}",
            "invalid value for '--optimizer': 'lion' is not one of ",
        ),
        ("epochs: 3", "missing argument 'MODEL'; "),
    ],
)
def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("run.yaml").write_text(content)
    told = run("fit", "--config", "run.yaml", code=2).stderr
    assert told.startswith(f"error: {sentence}")
    assert told.count("\n") == 1
    assert told.endswith(".\n")
