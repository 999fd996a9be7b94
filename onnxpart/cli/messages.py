"""What all commands print in the same way: errors, warnings, and the rest as far as it is asked for."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from onnxpart.cli import tables
from onnxpart.cli.options import taking
from onnxpart.errors import OnnxpartError, UsageError

_VOLUME = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")],
    "verbose": Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also print how long each step takes, and the traceback of an error."),
    ],
}
"""The options on how much is told."""


class Commands(TyperGroup):
    """Commands whose errors are one sentence and an exit code, with `--json` one object, and whose warnings are lines.

    Exit codes: 1 where it can't be done, 2 where the arguments make no sense, 130 where it was stopped by hand.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command, and exit.

        :param args: of the command line; the process's own when omitted. Others: as typer has them.
        :param standalone_mode: exit at the end; without it errors are raised as they are.
        :raises SystemExit: in standalone mode, always.
        """
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        as_json = "--json" in (sys.argv[1:] if args is None else args)
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _warnings_once()
            try:
                code = run()
            except OnnxpartError as error:
                code = _tell(error, error.exit_code, as_json)
            except TyperException as error:
                code = _tell(UsageError(_misuse(error)), error.exit_code, as_json)
            except MemoryError as error:
                what = f"memory isn't enough ({str(error).rstrip('.') or 'of this machine, or its limit'}); "
                code = _tell(OnnxpartError(f"{what}use a machine with more, or take less with --outputs."), 1, as_json)
        sys.exit(code)


def _tell(error: OnnxpartError, code: int, as_json: bool) -> int:
    """Print an error: a line on stderr, or an object on stdout. Return the exit code."""
    if as_json:
        tables.show_json({"error": str(error), "kind": type(error).__name__, "exit_code": code})
    else:
        typer.echo(f"error: {_line(str(error))}", err=True)
    return code


def _line(text: str) -> str:
    """Return a text with escapes in place of control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _misuse(error: TyperException) -> str:
    """Return the sentence on arguments that no command takes."""
    what = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = "onnxpart" if context is None else context.command_path
    end = "" if what.endswith("?") else ";"
    return f"{what[:1].lower()}{what[1:]}{end} `{command} --help` lists what there is."


def _warnings_once() -> Callable[..., None]:
    """Return what prints a warning as one line on stderr, and a text that was there already not again."""
    told = set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],  # noqa: ARG001
        filename: str,  # noqa: ARG001
        lineno: int,  # noqa: ARG001
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        if str(message) not in told:
            told.add(str(message))
            typer.echo(f"warning: {_line(str(message))}", err=True)

    return show


def with_volume(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the options `--quiet` and `--verbose`."""

    def run(*, quiet: bool = False, verbose: bool = False, **given: Any) -> None:
        with tables.volume("quiet" if quiet else "verbose" if verbose else "normal"):
            try:
                command(**given)
            except OnnxpartError:
                if verbose:
                    traceback.print_exc()
                raise

    return taking(run, command, {name: (hint, False) for name, hint in _VOLUME.items()})
