"""How a command gets more options."""

from __future__ import annotations

import inspect

import pytest

from onnxpart.cli.options import taking


def command(model: str, k: int = 2) -> None:
    """Do it."""


def test_a_command_gets_arguments_and_loses_others() -> None:
    def run(**_: object) -> None: ...

    found = taking(run, command, {"seed": (int, inspect.Parameter.empty), "fast": (bool, False)}, without=("k",))
    assert found.__name__ == "command"
    assert found.__doc__ == "Do it."
    assert str(inspect.signature(found)) == "(*, model: str, seed: int, fast: bool = False)"
    with pytest.raises(TypeError):
        inspect.signature(found).bind(model="m.onnx")
