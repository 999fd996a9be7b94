"""Lets mkdocstrings read the docstrings of this project: fields may share a line, and names a field."""

import re
from typing import Any

import griffe

_FIELD = re.compile(r"(?<=\S) (?=:(?:param \w|returns:|raises \w))")
_NAMES = re.compile(r"^:param (\w+(?:, \w+)+): ((?:.+\n?)(?:^ +\S.*\n?)*)", re.MULTILINE)


def fields_apart(text: str) -> str:
    """A docstring with each field on a line of its own, and one for each name."""

    def one_by_one(found: re.Match[str]) -> str:
        return "".join(f":param {name}: {found[2].rstrip()}\n" for name in found[1].split(", "))

    return _NAMES.sub(one_by_one, _FIELD.sub("\n", text))


class FieldsApart(griffe.Extension):
    """Gives mkdocstrings docstrings of that form."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of what was found."""
        if obj.docstring is not None:
            obj.docstring.value = fields_apart(obj.docstring.value)
