"""Figures as SVG that follows light and dark, and that reads on a phone."""

from __future__ import annotations

import re
from io import StringIO
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from onnxpart.storage.outputs import GENERATOR

SUFFIX = ".svg"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""Of Okabe and Ito, told apart by colour-blind eyes."""
MARKERS = "o^sDvPX"
"""One for each colour, for those who see none."""
_SIZE = 4.6, 3.6
_INK = "<style>svg{color:#1b1f27;fill:currentColor}@media(prefers-color-scheme:dark){svg{color:#e6e8ec}}</style>"


def plot(title: str = "") -> tuple[Figure, Axes]:
    """An empty figure as wide as a phone, with a title."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize="medium")
    return figure, axes


def legend(figure: Figure) -> None:
    """Tell what stands for what below the axes, where it hides nothing."""
    if any(axes.get_legend_handles_labels()[1] for axes in figure.axes):
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")


def plain(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis without exponents, and no more of them than there is room for."""
    low, high = sorted(axis.get_view_interval())
    if high < 100 * low:
        axis.set_major_locator(MaxNLocator(5) if high < 10 * low else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def svg(figure: Figure, caption: str) -> bytes:
    """The figure as a file of SVG: black is the reader's colour of text, nothing is behind it, text is text.

    :param caption: what it shows, for those who can't see it.
    :returns: the same bytes for the same figure.
    """
    text = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "onnxpart", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = re.sub(r"#000000\b", "currentColor", text.getvalue())
    head, svg_tag, rest = re.split(r"(<svg [^>]*>)", drawn, maxsplit=1)
    head = re.sub(r"<!DOCTYPE[^>]*>\s*", "", head)
    return f"{head}{GENERATOR}\n{svg_tag}\n<title>{escape(caption)}</title>{_INK}{rest}".encode()
