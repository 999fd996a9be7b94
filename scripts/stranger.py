"""The README's way from `git clone` to a picture of a network in two parts, with the install; how long it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.machine import machine

ROOT = Path(__file__).parents[1]
LIMIT = 300
"""Seconds that all of it may take."""


def console(readme: str, heading: str) -> list[str]:
    """The commands of the first block below a heading of the README."""
    (block,) = re.findall(rf"^## {heading}\n.*?^```console\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for line in block.splitlines()]


def lines(readme: str) -> list[str]:
    """What the README says to type: the smallest install, the picture, and the parts themselves."""
    first = [line for line in console(readme, "First lines") if line.startswith(("onnxpart inspect", "onnxpart split"))]
    return [console(readme, "Install")[0], *first]


def walk(folder: Path, model: Path) -> float:
    """Go the way in an empty folder and tell of each step; `onnxpart/page.html` is the picture.

    :param model: the stranger's network.
    :returns: seconds. :raises CalledProcessError: where a line fails.
    """
    environment = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PATH": f"{folder}/venv/bin{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    checkout = folder / "onnxpart"

    def step(line: str, where: Path) -> float:
        since = time.perf_counter()
        subprocess.run(line, shell=True, cwd=where, env=environment, check=True)
        print(f"{time.perf_counter() - since:.1f} s: {line}", flush=True)
        return time.perf_counter() - since

    seconds = step(f"git clone --quiet {ROOT} {checkout}", folder) + step(f"{sys.executable} -m venv venv", folder)
    shutil.copyfile(model, checkout / "model.onnx")
    return seconds + sum(step(line, checkout) for line in lines((checkout / "README.md").read_text(encoding="utf-8")))


def main(model: Path, page: Path) -> None:
    """Go the way once with a network, and leave the picture; exit with 1 where it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = walk(Path(folder), model)
        shutil.copyfile(Path(folder, "onnxpart", "page.html"), page)
    on = ", ".join(f"{name} {value}" for name, value in machine().items())
    print(f"{seconds:.1f} s in all, of at most {LIMIT}, on {on}; the picture is {page}")
    sys.exit(seconds > LIMIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
