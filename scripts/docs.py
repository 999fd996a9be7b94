"""Gathers what the documentation is built from: the repository's pages, and two that are written from the program."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import typer

import onnxpart
import onnxpart.torch
from onnxpart.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = Path(".github", "docs")
TARGET = ROOT / ".venv-docs" / "source"
WIDTH = 80
_LINK = re.compile(r"(?<=\]\()[^)\s:#]+")
_TRAINERS = ("onnxpart.torch.hf.PartitionedTrainer", "onnxpart.torch.lightning.PartitionedTrainer")


def gather(target: Path) -> None:
    """Fill a folder with all pages and what they show or lead to, each where it is in the repository."""
    shutil.rmtree(target, ignore_errors=True)
    for page in _pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in _LINK.findall(text):
            linked = Path(os.path.normpath(page.parent / link))
            if (ROOT / linked).is_file() and linked.suffix != ".md":
                (target / linked).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / linked, target / linked)
        (target / page).parent.mkdir(parents=True, exist_ok=True)
        (target / page).write_text(_LINK.sub(_to_file, text), encoding="utf-8")
    (target / DOCS / "commands.md").write_text("\n\n".join(commands()) + "\n", encoding="utf-8")
    (target / DOCS / "api.md").write_text("\n\n".join(api()) + "\n", encoding="utf-8")


def _pages() -> list[Path]:
    """The pages that git knows or would add, relative to the root."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.splitlines() if (ROOT / name).is_file()]


def _to_file(link: re.Match[str]) -> str:
    """A folder's README instead of the folder, of which a site shows no list."""
    return f"{link[0]}README.md" if link[0].endswith("/") else link[0]


def commands() -> Iterator[str]:
    """The page of what `--help` of each command says, at 80 columns.

    :raises ValueError: where a line is longer.
    """
    yield "# Commands"
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1"}
    for names in ([], *([name] for name in typer.main.get_group(app).commands)):
        command = [sys.executable, "-m", "onnxpart", *names, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        lines = [line.rstrip() for line in text.strip().splitlines()]
        if max(map(len, lines)) > WIDTH:
            raise ValueError(f"the help of {' '.join(command)} is wider than {WIDTH} columns.")
        yield "\n".join([f"## {' '.join(['onnxpart', *names])}", "", "```text", *lines, "```"])


def api() -> Iterator[str]:
    """The page of the public names, each of which mkdocstrings fills in from its docstring."""
    yield "# Python API"
    for package in (onnxpart, onnxpart.torch):
        yield f"## {package.__name__}"
        yield from (f"::: {_home(package, name)}" for name in package.__all__)
    yield from (f"::: {name}" for name in _TRAINERS)


def _home(package: ModuleType, name: str) -> str:
    """Where a public name of a package is defined."""
    found = getattr(package, name)
    if isinstance(found, ModuleType):
        return found.__name__
    where = str(found.__module__)
    if getattr(import_module(where), name) is not found:
        raise ValueError(f"{package.__name__}.{name} isn't {where}.{name}.")
    return f"{where}.{name}"


if __name__ == "__main__":
    gather(TARGET)
