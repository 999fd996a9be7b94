"""What commands say alike: errors for people and programs, warnings once, and as much as is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import onnx
import pytest

from models import BUILDERS
from onnxpart.cli import app as cli
from tests.networks.command import process, run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model."""
    onnx.save_model(BUILDERS["chain"](), tmp_path / "chain.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "start"),
    [
        (("inspect", "nothing.onnx"), 1, "ModelError", "nothing.onnx doesn't exist; "),
        (("split", "chain.onnx"), 2, "UsageError", "missing option '-k'; `onnxpart split --help` lists "),
        (("split", "chain.onnx", "-k", "many"), 2, "UsageError", "invalid value for '-k': "),
        (
            ("merge", "chain.onnx", "--into", "thin"),
            2,
            "UsageError",
            "invalid value for '--into': 'thin' is not one of ",
        ),
        (("inspekt",), 2, "UsageError", "no such command 'inspekt'. Did you mean 'inspect'? `onnxpart --help`"),
    ],
)
def test_an_error_is_a_sentence_and_for_programs_an_object(
    arguments: tuple[str, ...], code: int, kind: str, start: str
) -> None:
    told = run(*arguments, code=code)
    assert told.stdout == ""
    assert told.stderr.startswith(f"error: {start}")
    assert told.stderr.count("\n") == 1
    found = run(*arguments, "--json", code=code)
    assert found.stderr == ""
    assert json.loads(found.stdout) == {
        "error": told.stderr.removeprefix("error: ").strip(), "kind": kind, "exit_code": code,
    }  # fmt: skip


@pytest.mark.parametrize("given", ["", "Unable to allocate 8.00 GiB for an array with shape (1024, 1024, 1024)"])
def test_where_memory_ends_is_a_sentence(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError(given)

    monkeypatch.setattr(cli, "analyse", full)
    told = run("inspect", "chain.onnx", code=1).stderr
    assert told.startswith(f"error: memory isn't enough ({given}")
    assert told.endswith("; use a machine with more, or take less with --outputs.\n")
    assert told.count("\n") == 1


def test_a_terminal_gets_no_control_characters() -> None:
    """Whoever wrote them into a name, and whoever says it: this domain is named by onnx's checker."""
    model = BUILDERS["chain"]()
    model.graph.node[0].domain = "no\x1b[31mwhere\nelse"
    onnx.save_model(model, "odd.onnx")
    told = run("inspect", "odd.onnx", code=1).stderr
    assert r"no\x1b[31mwhere else" in told
    assert told.count("\n") == 1


def test_a_warning_is_one_line_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*_: object, **__: object) -> None:
        for text in ("beware", "mind the gap", "beware"):
            warnings.warn(text, stacklevel=1)

    monkeypatch.setattr(cli, "loaded", warned)
    monkeypatch.setattr(cli, "analyse", sys.exit)
    assert run("inspect", "chain.onnx").stderr == "warning: beware\nwarning: mind the gap\n"


def test_quiet_leaves_warnings_errors_and_json() -> None:
    assert run("split", "chain.onnx", "-k", 2, "-q").output == ""
    assert Path("chain_parts/plan.json").is_file()
    assert run("inspect", "chain.onnx", "-q", "--json").stdout.startswith("{")
    assert run("inspect", "nothing.onnx", "-q", code=1).stderr.startswith("error: nothing.onnx")
    assert run("inspect", "chain.onnx").stdout != ""


def test_verbose_tells_times_and_where_an_error_comes_from() -> None:
    told = run("split", "chain.onnx", "-k", 2, "-v").stderr
    assert told.startswith("splitting chain.onnx: ")
    assert told.endswith(" s\n")
    assert run("split", "chain.onnx", "-k", 2, "--force").stderr == ""
    failed = run("inspect", "nothing.onnx", "-v", code=1).stderr
    assert failed.startswith("Traceback ")
    assert failed.splitlines()[-1] == "error: nothing.onnx doesn't exist; check the path."


@pytest.mark.parametrize("no_color", ["1", ""])
def test_no_colours_in_pipes_and_where_none_are_wanted(no_color: str) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color}
    code = "from onnxpart.cli import tables; tables.console().print('x', style='red')"
    root = str(Path(cli.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    assert done.stdout == "x\n"


@pytest.mark.parametrize(
    ("words", "completed"), [("onnxpart ins", {"inspect"}), ("onnxpart split --order r", {"random"})]
)
def test_the_shell_completes_commands_and_choices(
    monkeypatch: pytest.MonkeyPatch, words: str, completed: set[str]
) -> None:
    monkeypatch.setenv("_ONNXPART_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    done = process(sys.executable, "-m", "onnxpart")
    assert set(done.stdout.split()) == completed
