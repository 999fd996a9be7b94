"""The report as a page: Markdown with pictures beside it, or HTML in one file."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from onnxpart.errors import UsageError
from onnxpart.report.records import Records
from onnxpart.report.sections import Drawing, sections
from onnxpart.storage.atomic import replacing_files, write_bytes
from onnxpart.storage.outputs import GENERATOR, check_file

TITLE = "# Partitioned training: what the paper found, and what we do"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td { font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th { border-bottom-width: 2px; vertical-align: bottom; }
img { max-width: 100%; background: white; }
"""
SUFFIXES = (".html", ".md")


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
    lines = [TITLE]
    for block in sections(records):
        if isinstance(block, Drawing):
            picture, file = _png(block.figure), path.with_name(f"{path.stem}_{block.name}.png")
            pictures[file] = picture
            target = file.name if path.suffix == ".md" else f"data:image/png;base64,{b64encode(picture).decode()}"
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
    write_bytes(path, _html(text).encode())
    return [path]


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": GENERATOR})
    return buffer.getvalue()


def _html(text: str) -> str:
    markdown = MarkdownIt("commonmark").enable("table")
    head = f'<meta charset="utf-8"><title>{TITLE.lstrip("# ")}</title><style>{_STYLE}</style>'
    body = f"<body>\n{markdown.render(text)}</body>"
    return f'<!doctype html>\n{GENERATOR}\n<html lang="en"><head>{head}</head>{body}</html>\n'
