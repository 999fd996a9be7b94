"""Builds the wheel and the sdist, and uses each in an environment of its own, on every Python that is to be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from models import figure1
from onnxpart import __version__
from scripts.machine import machine

ROOT = Path(__file__).parents[1]
MINORS = range(11, 15)
"""Of Python 3."""
DATA = {"onnxpart/py.typed", "onnxpart/page/bundle.js", "onnxpart/page/style.css", "onnxpart/page/template.html"}
"""Files of the package besides its modules."""
TYPED = """
import onnxpart
result: onnxpart.Split = onnxpart.split("model.onnx", k=2)
arrays = [onnxpart.arrays(part) for part in result.parts]
print(onnxpart.merge(result.plan, arrays).keys())
"""
MISTYPED = TYPED + "wrong: int = onnxpart.split\n"


def main() -> None:
    """Build, install, use; the first thing that fails ends it.

    :raises SystemExit: with what failed.
    """
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        check_contents(wheel, sdist)
        found = dict(interpreters(sys.argv[1:]))
        for version, interpreter in found.items():
            for package in (wheel, sdist):
                try_out(folder / f"{version}{package.suffix}", interpreter, package, typed=package is wheel)
                print(f"Python {version}: {package.name} installed, split, merged, verified", flush=True)
    missing = [f"3.{minor}" for minor in MINORS if not any(v.startswith(f"3.{minor}.") for v in found)]
    if missing:
        print(f"not to be had here: Python {', '.join(missing)}")


def build(folder: Path) -> tuple[Path, Path]:
    """Return the wheel and the sdist of this checkout, which are built in a folder."""
    run(sys.executable, "-m", "venv", folder / "build")
    python = python_of(folder / "build")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build")
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT)
    tag = subprocess.run(
        ["git", "tag", "--points-at", "HEAD", "--list", "v*"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.split()
    ensure(not tag or f"v{__version__}" in tag, f"this commit is tagged {tag}, and the version is {__version__}")
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Check that both hold every module and data file of the package, and nothing of tests and scripts."""
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "onnxpart").rglob("*.py")} | DATA
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    ensure(wanted <= names, f"the wheel lacks {sorted(wanted - names)[:3]}")
    foreign = sorted(name for name in names if not re.match(r"onnxpart(-[\w.]+\.dist-info)?/", name))
    ensure(not foreign, f"the wheel holds {foreign[:3]}")
    ensure(f"\nVersion: {__version__}\n" in metadata, "the wheel has another version than the package")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    ensure(wanted | {"pyproject.toml", "README.md", "LICENSE"} <= inside, "the sdist lacks files")


def interpreters(more: list[str]) -> Iterator[tuple[str, str]]:
    """Yield version and path of the interpreters: those given, those on PATH, and pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        own = [str(path) for path in sorted(pyenv.glob(f"3.{minor}.*/bin/python"))]
        for path in [*more, shutil.which(f"python3.{minor}"), *own]:
            if path is None:
                continue
            asked = [path, "-c", "import platform; print(platform.python_version())"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            if answer.returncode == 0 and answer.stdout.startswith(f"3.{minor}."):
                yield answer.stdout.strip(), path
                break


def try_out(place: Path, interpreter: str, package: Path, *, typed: bool) -> None:
    """Install a package without and with ONNX Runtime in a fresh environment, and use it from an empty folder.

    :param place: of the environment. :param typed: whether a user's mypy is asked, too.
    """
    run(interpreter, "-m", "venv", place)
    python, work = python_of(place), place / "work"
    command = python.with_name("onnxpart")
    work.mkdir()
    onnx.save_model(figure1(), work / "model.onnx")

    def pip(*wanted: str) -> None:
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)

    pip(str(package))
    ensure(run(command, "--version", cwd=work) == f"onnxpart {__version__}\n", "another version answers")
    told = run(command, "split", "model.onnx", "-k", "2", "-o", "parts", "--html", "page.html", cwd=work)
    ensure("not checked: ONNX Runtime isn't installed" in told, "split doesn't say that nothing was checked")
    for arguments, extra in ((["verify", "parts"], "gpu"), (["estimate", "model.onnx", "--data", "d.npz"], "train")):
        told = run(command, *arguments, cwd=work, code=2)
        ensure(f"pip install '.[{extra}]'" in told, f"{arguments[0]} doesn't name the extra {extra}")
    pip(f"{package}[cpu]", *(["mypy"] if typed else []))
    run(command, "merge", "parts", "-o", "merged.onnx", cwd=work)
    ensure(run(command, "verify", "parts", cwd=work).endswith("verified\n"), "the parts aren't verified")
    if typed:
        (work / "typed.py").write_text(TYPED, encoding="utf-8")
        (work / "mistyped.py").write_text(MISTYPED, encoding="utf-8")
        run(python, "-m", "mypy", "--strict", "typed.py", cwd=work)
        ensure("[assignment]" in run(python, "-m", "mypy", "mistyped.py", cwd=work, code=1), "mypy sees no types")
        run(python, "typed.py", cwd=work)
    shutil.rmtree(place)


def python_of(place: Path) -> Path:
    """Return the interpreter of an environment."""
    return place / ("Scripts" if os.name == "nt" else "bin") / "python"


def run(*command: str | Path, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command, without this checkout on its path, and return what it prints.

    :raises SystemExit: when it ends with another exit code.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, text=True, encoding="utf-8", check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    ensure(done.returncode == code, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def ensure(holds: bool, otherwise: str) -> None:
    """End the script where something doesn't hold.

    :raises SystemExit: then, with what is wrong.
    """
    if not holds:
        raise SystemExit(f"error: {otherwise}")


if __name__ == "__main__":
    main()
