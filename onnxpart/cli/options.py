"""Options that several commands have, and how a command gets more of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="An ONNX file, a .pt2 file of torch.export, or hf:FOLDER, a model that transformers saved.",
        show_default=False,
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,..",
        help="Make these values of the graph its only outputs. What none of them needs is cut off.",
    ),
]
EdgesText = Annotated[
    str,
    typer.Option(
        "--edges",
        metavar="SPREAD|keep[:NAME,..]",
        help="How weights between parts start: 0 is zero, another number is random with this share of the other "
        "weights' standard deviation, and keep leaves them as they were, in all initializers or in those named. "
        "Frozen parameters always keep them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else, also for an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def taking(
    run: Callable[..., None],
    command: Callable[..., None],
    more: Mapping[str, tuple[Any, Any]],
    without: Collection[str] = (),
) -> Callable[..., None]:
    """Return `run` with the name, the text and the arguments of a command, and with more arguments.

    :param more: name -> annotation and default; the default `inspect.Parameter.empty` is for what must be given.
    :param without: names of arguments of the command that it doesn't take.
    """
    hints = get_type_hints(command, include_extras=True) | {name: hint for name, (hint, _) in more.items()}
    own = [p for p in inspect.signature(command).parameters.values() if p.name not in without]
    new = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, (_, default) in more.items()
    ]
    taken = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *new)]
    run.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: hints[p.name] for p in taken}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
