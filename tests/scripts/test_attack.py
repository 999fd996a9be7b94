"""A slice of scripts/attack: damaged files and bombs end in a result or a sentence, within their memory and time."""

from __future__ import annotations

import pytest
import typer

from scripts import attack


def test_a_slice_of_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        attack.main(cases=120, seed=0, workers=1)
    assert ended.value.exit_code == 0, capsys.readouterr().out


def test_a_crash_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: an error that is none of the project's own is a fault, and so is none told."""

    def broken(*_: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr("onnxpart.cli.app.loaded", broken)
    outcome = attack.attempt(0)
    assert outcome.kind == "traceback"
    assert outcome.failed


def test_a_case_is_slow_by_the_time_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = attack.Worker()
    worker.give(0)
    monkeypatch.setattr(attack, "busy", lambda _: worker.before + attack.SECONDS + 1)
    outcome = worker.taken()
    worker.process.kill()
    assert outcome == attack.Outcome("slow")
