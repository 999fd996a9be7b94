"""The report as a page: Markdown with pictures beside it, or HTML in one file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from onnxpart.errors import UsageError
from onnxpart.report.blocks import Drawing
from onnxpart.report.fits import fit_curve, fit_keys
from onnxpart.report.records import Records
from onnxpart.report.sections import sections, title
from onnxpart.report.svg import SUFFIX as SVG
from onnxpart.report.svg import svg
from onnxpart.storage.atomic import replacing_files, write_bytes
from onnxpart.storage.outputs import GENERATOR, check_file

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { overflow-wrap: anywhere; line-height: 1.25; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th { border-bottom-width: 2px; vertical-align: bottom; }
img { max-width: 100%; margin: 0.5rem 1rem 0.5rem 0; }
"""
SUFFIXES = (".html", ".md")
_EMBEDDED = "data:image/svg+xml;base64,"


def write(records: Records, path: Path) -> list[Path]:
    """Write the report, whole or not at all.

    :param records: what to tell of.
    :param path: of the page, .html or .md; the pictures of the latter go beside it.
    :returns: the files.
    :raises UsageError: unless the name ends with .html or .md.
    :raises ModelError: when a file can't be written, or one is there that isn't a report's.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is neither {' nor '.join(SUFFIXES)}; give a name with one of these endings.")
    check_file(path, True, records.files)
    pictures: dict[Path, bytes] = {}
    lines = [f"# {title(records)}"]
    for block in sections(records, path.parent):
        if isinstance(block, Drawing):
            picture, file = svg(block.figure, block.caption), path.with_name(f"{path.stem}_{block.name}{SVG}")
            pictures[file] = picture
            target = file.name if path.suffix == ".md" else f"{_EMBEDDED}{b64encode(picture).decode()}"
            block = f"![{block.caption}]({target})"
        lines.append(block)
    text = "\n\n".join(lines) + "\n"
    if path.suffix == ".md":
        for file in pictures:
            check_file(file, True, records.files)
        with replacing_files(path) as fresh:
            for file, picture in pictures.items():
                write_bytes(fresh / file.name, picture)
            write_bytes(fresh / path.name, f"{GENERATOR}\n\n{text}".encode())
        return [path, *pictures]
    write_bytes(path, _html(title(records), text).encode())
    return [path]


def fit_pictures(report: Mapping[str, Any]) -> dict[str, bytes]:
    """The curves of a run of `fit`, by the names of their files.

    :param report: all that `fit` says of it.
    """
    drawn = {f"curves_{key}{SVG}": fit_curve(report, key, name) for key, name in fit_keys(report).items()}
    return {name: svg(drawing.figure, drawing.caption) for name, drawing in drawn.items()}


class _Markdown(MarkdownIt):
    """Markdown in which pictures may be SVG that is in the page itself."""

    def validateLink(self, url: str) -> bool:  # noqa: N802
        """Whether a picture or link may lead there."""
        return url.startswith(_EMBEDDED) or super().validateLink(url)


def _html(name: str, text: str) -> str:
    """The page in HTML, in which names are text, whatever they hold; pictures that follow each other share a line."""
    markdown = _Markdown("commonmark", {"html": False}).enable("table")
    body = markdown.render(text.replace(")\n\n![", ")\n!["))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n{GENERATOR}\n<html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'
