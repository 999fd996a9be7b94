"""The tutorials do what they say: their blocks are run in order. Errors that are explained are those there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.networks.command import run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".github" / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BEFORE = {"machines.md": ["onnx_file.md"]}
"""Tutorials that take files from others, of which the first block makes them."""


def follow(page: Path, only: int | None = None) -> int:
    """Run the blocks of a page, in order, in the current folder; return how many."""
    blocks, known = BLOCK.findall(page.read_text(encoding="utf-8"))[:only], {"__name__": "tutorial"}
    for language, block in blocks:
        if language == "python":
            exec(block, known)
        else:
            for line in block.splitlines():
                assert line.startswith("$ onnxpart ")
                run(*shlex.split(line, comments=True)[2:])
    return len(blocks)


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: str(page.stem))
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in BEFORE.get(page.name, []):
        follow(page.with_name(name), 1)
    assert follow(page)


def test_errors_that_are_explained_are_those_there_are() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "onnxpart").rglob("*.py"))
    source = re.sub(r'"\s+f?"', "", source)
    rows = re.findall(r"^\| `([^|]+?)`", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 8
    assert [row for row in rows if row not in source] == []
