"""The README's ways to train are short, and do what they say: these very lines are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from models import BUILDERS, figure1
from tests.networks import plain
from tests.networks.command import run
from tests.networks.deep import residual_mlp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / ".github" / "docs" / "guide.md").read_text(encoding="utf-8")
LONGEST = 14
COMMANDS = ("An ONNX file and some data", "Several machines")
OWN_LOOP = "A PyTorch model and a training loop of your own"


def ways() -> dict[str, tuple[str, list[str]]]:
    """Each way under the heading Train: its first words -> the language and the lines of its block."""
    (section,) = re.findall(r"^## Train\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    found = re.findall(r"^\*\*(.+?)\.\*\*.*?^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return {title: (language, block.splitlines()) for title, language, block in found}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small network and data for it."""
    onnx.save_model(figure1(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x[:60], target=y[:60], test_x=x[60:], test_target=y[60:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_way_is_short_and_run_below() -> None:
    assert set(ways()) == {*COMMANDS, OWN_LOOP}
    assert all(0 < len(lines) <= LONGEST for _, lines in ways().values())


def test_it_is_read_in_minutes() -> None:
    assert len(README.split()) < 900


def test_the_first_lines_do_what_they_say(here: Path) -> None:
    (block,) = re.findall(r"^## First lines\n+```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for line in block.splitlines() if not line.startswith("$ #")]
    assert [line.split()[2] for line in lines] == ["inspect", "estimate", "split", "merge"]
    for line in lines:
        run(*shlex.split(line, comments=True)[2:])
    assert {"page.html", "parts", "merged.onnx"} <= {path.name for path in here.iterdir()}


def test_the_guide_splits_and_merges_in_python(here: Path) -> None:
    (block,) = re.findall(r"^The same in Python:\n+```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    onnx.save_model(BUILDERS["lenet"](), here / "model.onnx")
    onnx.save_model(residual_mlp(), here / "deep.onnx")
    known: dict[str, Any] = {}
    exec(block, known)
    assert len(known["halves"].parts) == 2
    assert not known["deep"]["down4"].any()
    assert (here / "parts" / "part3.onnx").is_file()


@pytest.mark.parametrize("way", COMMANDS)
def test_ways_from_the_command_line(here: Path, way: str) -> None:
    language, lines = ways()[way]
    assert language == "console"
    for line in lines:
        assert line.startswith("$ onnxpart ")
        run(*shlex.split(line, comments=True)[2:])
    found = {path.name for path in (here / "model_fit").iterdir()}
    assert {"curves_loss.svg", "metrics.jsonl", "parts", "report.md", "trained.onnx"} <= found


def test_a_pytorch_model_and_a_training_loop_of_your_own() -> None:
    language, lines = ways()[OWN_LOOP]
    assert language == "python"
    torch.manual_seed(0)
    build, draw = plain.NETWORKS["lenet"]
    model, images = build(), draw()
    classes = torch.arange(len(images)) % plain.CLASSES
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known = {"torch": torch, "F": F, "model": model, "images": images}
    known["loader"] = [(images, classes)] * 2
    exec("\n".join(lines), known)
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_the_guide_merges_level_by_level() -> None:
    (block,) = re.findall(r"^\*\*Levels\.\*\*.*?^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    build, draw = plain.NETWORKS["lenet"]
    known: dict[str, Any] = {"model": build(), "images": draw(), "learn": plain.learn, "draw": draw}
    for parts, optimizers, whose in (("parts", "optimizers", "the parts"), ("larger", "targets", "the larger parts")):
        train = f"[learn(part, each, draw) for part, each in zip({parts}, {optimizers})]"
        assert f"#  ... train {whose} ..." in block
        block = block.replace(f"#  ... train {whose} ...", train)
    exec(f"import torch, onnxpart.torch\n{block}", known)
    assert plain.deviation(known["model"], known["larger"], draw()) < 1e-5
    assert all(len(each.state) == 8 for each in known["targets"])
