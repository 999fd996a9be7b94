"""The tutorials do what they say: their blocks are run in order. Errors that are explained are those there are."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from onnxpart.analysis.rules.table import TABLE
from tests.networks.command import run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".github" / "docs"
BLOCK = re.compile(r"^```(python|console|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BEFORE = {"machines.md": ["onnx_file.md"]}
"""Tutorials that take files from others, of which the first block makes them."""
ELSEWHERE = ["trainer.md"]
"""Tutorials that need more than this project; scripts/test-trainers runs them."""


def follow(page: Path, only: int | None = None) -> int:
    """Run the blocks of a page, in order, in the current folder; what the last command printed has the lines shown."""
    blocks, known, printed = BLOCK.findall(page.read_text(encoding="utf-8"))[:only], {"__name__": "tutorial"}, ""
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(page), "exec"), known)
        elif language == "console":
            for line in block.splitlines():
                assert line.startswith("$ onnxpart ")
                printed = run(*shlex.split(line, comments=True)[2:]).output
        else:
            assert [line for line in block.splitlines() if plain(line) not in plain(printed)] == []
    return len(blocks)


def plain(text: str) -> str:
    """The words, however they are spaced and broken into lines."""
    return " ".join(text.split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, in which rules that are registered don't outlast the test."""
    before = dict(TABLE)
    monkeypatch.chdir(tmp_path)
    yield
    TABLE.clear()
    TABLE.update(before)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", sorted(page.name for page in (DOCS / "tutorials").glob("*.md")))
def test_a_tutorial_runs_as_it_stands(name: str) -> None:
    if name in ELSEWHERE:
        pytest.skip("scripts/test-trainers runs it")
    for other in BEFORE.get(name, []):
        follow(DOCS / "tutorials" / other, 1)
    assert follow(DOCS / "tutorials" / name)


@pytest.mark.usefixtures("here")
def test_the_notebook_runs_as_it_stands() -> None:
    cells = json.loads((ROOT / "scripts" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    known: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), known)
    assert torch.allclose(known["merged"], known["mean"], atol=1e-4)
    assert known["curves"]["whole, merged"][-1] < min(known["curves"]["part 0"])


@pytest.mark.usefixtures("here")
def test_what_a_command_does_not_print_is_noticed() -> None:
    page = Path("page.md")
    page.write_text("```console\n$ onnxpart --version\n```\n```text\nanother version\n```\n")
    with pytest.raises(AssertionError, match="another version"):
        follow(page)


def test_errors_that_are_explained_are_those_there_are() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "onnxpart").rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)
    headings = re.findall(r"^### (.+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    said = [piece for heading in headings for piece in re.findall("`(.+?)`", heading)]
    assert len(said) >= len(headings) > 8
    assert [piece for piece in said if piece not in source] == []
