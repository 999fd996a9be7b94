"""The options of a run as a YAML file, by the names that they have on the command line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpart.errors import UsageError, needs

_NOT_OF_THE_RUN = {"config", "force", "json", "quiet", "resume", "verbose"}
"""Options that have no effect on the result."""


def options_of(context: typer.Context) -> dict[str, object]:
    """Return the options of this run by name: what was given, and the defaults of the rest."""
    values = {name: _plain(context.params[key]) for name, key in _names(context).items()}
    return {name: value for name, value in values.items() if value is not None and value != []}


def written(options: dict[str, object]) -> bytes:
    """Return the file from which a run with these options can be done again."""
    text: str = _yaml().safe_dump(options, sort_keys=False)
    return text.encode()


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Take what is in a file as the defaults of the options, and return its path.

    :raises UsageError: when it can't be read, or holds what is no option.
    """
    if path is None:
        return None
    yaml = _yaml()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} can't be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{path} isn't YAML; write lines such as `epochs: 20`.") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} contains no options; write lines such as `epochs: 20`.")
    names = _names(context)
    for name, value in found.items():
        if name not in names:
            raise UsageError(f"{path} has {name!r}, which isn't an option of a run; choose from {', '.join(names)}.")
        if isinstance(value, dict):
            raise UsageError(f"{path} has a mapping as the value of {name!r}; give one value, or a list.")
    context.default_map = {names[name]: _text(value) for name, value in found.items() if value is not None}
    return path


def _names(context: typer.Context) -> dict[str, str]:
    """Return the options of a run: the name on the command line -> the name in the program."""
    names = {max(p.opts, key=len).lstrip("-"): str(p.name) for p in context.command.params}
    return {name: key for name, key in names.items() if name not in _NOT_OF_THE_RUN}


def _plain(value: object) -> object:
    """Return a value as YAML has it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _text(value: object) -> object:
    """Return a value from YAML as the command line would give it."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _yaml() -> Any:
    with needs("a config file", "train"):
        return import_module("yaml")


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        is_eager=True,
        callback=_read,
        help="Read options from this file, such as the run.yaml that fit writes. Options given on the "
        "command line win.",
    ),
]
