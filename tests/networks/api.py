"""The public interface as text: names of the packages with their signatures, commands with their options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import typer

_MODULES = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=\w)")


class _Bare(str):
    """Text that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _bare(value: object) -> object:
    """An annotation or default whose text is the same in every process."""
    if isinstance(value, str):
        return _Bare(value)
    return _Bare(value.__name__) if inspect.isfunction(value) else value


def signature(function: Callable[..., Any]) -> str:
    """The arguments and result of a function, types without the modules that they are from."""
    found = inspect.signature(function)
    parameters = [
        p.replace(annotation=_bare(p.annotation), default=_bare(p.default) if callable(p.default) else p.default)
        for p in found.parameters.values()
    ]
    text = str(found.replace(parameters=parameters, return_annotation=_bare(found.return_annotation)))
    return _MODULES.sub("", text)


def members(cls: type) -> Iterator[str]:
    """The public fields, properties and methods of a class that the project defines."""
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] == cls.__module__.split(".")[0]]
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name in sorted({name for base in own for name in vars(base)} | fields):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(cls, name, None)
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        yield f"{name}{signature(value)}" if inspect.isfunction(value) else name


def names(package: str) -> Iterator[str]:
    """A line for each public name of a package, and one for each public member of a class among them."""
    module = import_module(package)
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            yield f"{package}.{name}: module"
        elif inspect.isclass(value):
            yield f"{package}.{name}: class"
            yield from (f"  {member}" for member in members(value))
        else:
            yield f"{package}.{name}{signature(value)}"


def commands(app: typer.Typer, title: str) -> Iterator[str]:
    """A line for each command, and one for each of its arguments and options."""
    group: Any = typer.main.get_command(app)
    for name, command in [("", group), *sorted(group.commands.items())]:
        yield f"{title} {name}".rstrip()
        for parameter in sorted(command.params, key=lambda p: (p.param_type_name, p.opts)):
            words = [parameter.param_type_name, *parameter.opts, *parameter.secondary_opts]
            words += ["required"] if parameter.required else [f"= {_shown(parameter.default)}"]
            words += [word for word in ("multiple", "is_flag") if getattr(parameter, word, False)]
            yield "  " + " ".join(words)


def _shown(default: object) -> str:
    return str(_bare(default) if callable(default) else default)
