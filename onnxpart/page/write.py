"""A partition as one file of HTML, which loads nothing else; as node data; or in Graphviz's language."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from onnxpart.errors import UsageError
from onnxpart.inspection.sizes import Sizes
from onnxpart.page import dot, node_data
from onnxpart.page.content import Content, content, tree
from onnxpart.planning.partition import Partition
from onnxpart.storage.atomic import write_bytes
from onnxpart.storage.outputs import GENERATOR, check_file

SUFFIX = ".html"
FILES = ("bundle.js", "style.css", "template.html")
"""What the page is made of, beside this module."""
_HERE = Path(__file__).parent


def check(path: Path, suffix: str, inputs: Iterable[Path]) -> None:
    """Refuse to write a page or node data where they mustn't be, before anything takes its time.

    :param suffix: with which the name has to end. :param inputs: files that are read, which are never replaced.
    :raises UsageError: unless the name ends so and its folder exists.
    :raises ModelError: when something is there that onnxpart didn't write.
    """
    if path.suffix != suffix:
        raise UsageError(f"{path} doesn't end with {suffix}; give a name that does.")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} of {path.name} doesn't exist; make it, or give another place.")
    check_file(path, True, inputs)


def write(made: Partition, sizes: Sizes, *paths: Path) -> None:
    """Write the page of a partition, its node data or its graph, as each name ends; each whole or not at all.

    :param sizes: of its plan. :param paths: names that end with .html, .json or .dot.
    :raises UsageError: unless a name ends so and its folder exists.
    :raises ModelError: when one can't be written, or something is there that onnxpart didn't write.
    """
    if not paths:
        return
    forms = {node_data.SUFFIX: node_data.node_data, dot.SUFFIX: dot.dot}
    for path in paths:
        check(path, path.suffix if path.suffix in forms else SUFFIX, made.analysis.model.files)
    shown = content(made, sizes)
    for path in paths:
        write_bytes(path, forms.get(path.suffix, page)(shown).encode())


def page(shown: Content) -> str:
    """The page, in which names from a model are text and nothing else, whatever they hold.

    :param shown: what it shows.
    """
    read = {name: (_HERE / name).read_text(encoding="utf-8") for name in FILES}
    return Template(read["template.html"]).substitute(
        generator=GENERATOR,
        title=escape(f"{shown.model} in {shown.k} part{'s' if shown.k > 1 else ''}"),
        style=read["style.css"],
        data=_json({**vars(shown), "items": tree(shown.items)}),
        script=read["bundle.js"],
    )


def _json(data: object) -> str:
    """JSON that may stand in a script element: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(data, default=vars, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
