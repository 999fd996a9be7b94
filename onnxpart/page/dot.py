"""A partition in Graphviz's language, for figures in papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from onnxpart.analysis.repeats import Block, Item
from onnxpart.page.content import Card, Content, told
from onnxpart.storage.outputs import GENERATOR

SUFFIX = ".dot"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Of the parts, in turn: those of Okabe and Ito, as on the page."""
SHARED = "#b4bac4"
WIDEST, LEAST, HEIGHT, MOST_BANDS = 150, 3, 12, 8
"""Points of the widest bar, of the narrowest, of their height; parts that are drawn one below the other."""


def dot(shown: Content) -> str:
    """A digraph: a box with a bar for each card, a cluster for what repeats, an arrow for what is read.

    Names from a model are text, whatever they hold.

    :param shown: what it shows.
    """
    most = max((card.units for card in shown.cards), default=0)
    nodes = "\n".join(_statements(shown, shown.items, most))
    edges = "\n".join(f"{a} -> {b};" for a, b in sorted(_edges(shown)))
    return f"""// {GENERATOR}
digraph partition {{
graph [fontname="Helvetica", fontsize=11, label=<{_text(shown.model)} in {shown.k} parts>];
node [fontname="Helvetica", fontsize=11, shape=box, style=rounded];
{nodes}
{edges}
}}
"""


def _statements(shown: Content, items: Sequence[Item], most: int) -> Iterator[str]:
    """The nodes of some items; of what repeats the first."""
    for item in items:
        if isinstance(item, Block):
            yield f"subgraph cluster_{item.start}_{item.period} {{"
            yield f'label="{item.count} times"; style="rounded,dashed";'
            yield from _statements(shown, item.items, most)
            yield "}"
        else:
            yield f"{item} [label=<{_table(shown.cards[item], shown.k, most)}>];"


def _edges(shown: Content) -> set[tuple[int, int]]:
    """From what is read to what reads it, among the cards that are drawn."""
    pairs = {(_drawn(shown.items, r), _drawn(shown.items, n)) for n, card in enumerate(shown.cards) for r in card.reads}
    return {(a, b) for a, b in pairs if a < b}


def _drawn(items: Sequence[Item], card: int) -> int:
    """The card that stands for another: itself, or the one in the first repeat."""
    for item in items:
        if isinstance(item, Block) and item.start <= card < item.start + item.period * item.count:
            return _drawn(item.items, item.start + (card - item.start) % item.period)
    return card


def _table(card: Card, k: int, most: int) -> str:
    """What stands in a node: a title, the bar, and the units of each part."""
    width = max(LEAST, round(WIDEST * card.units / max(1, most)))
    rows = [f"<B>{_text(card.title)}</B>  {_text(card.op)}", _bar(card, k, width), _text(told(card, k))]
    lines = "".join(f"<TR><TD>{row}</TD></TR>" for row in rows if row)
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{lines}</TABLE>'


def _bar(card: Card, k: int, width: int) -> str:
    """The units: side by side in their parts, or one below the other where each part has something for all of them."""
    if not card.units:
        return ""
    if card.what in ("replicated", "meeting", "blocked") and all(part < 0 for part, _ in card.runs):
        rows = [[(part, width)] for part in range(min(k, MOST_BANDS))]
    else:
        rows = [[(part, max(1, round(width * size / card.units))) for part, size in card.runs]]
    lines = "".join(f"<TR>{''.join(_cell(*piece, HEIGHT // len(rows)) for piece in row)}</TR>" for row in rows)
    fixed = f'FIXEDSIZE="TRUE" WIDTH="{sum(width for _, width in rows[0])}" HEIGHT="{HEIGHT}"'
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" {fixed}>{lines}</TABLE>'


def _cell(part: int, width: int, height: int) -> str:
    colour = SHARED if part < 0 else COLOURS[part % len(COLOURS)]
    return f'<TD BGCOLOR="{colour}" FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="{height}"></TD>'


def _text(name: str) -> str:
    """A name as text of a label; what can't be printed is shown as such."""
    return escape("".join(c if c.isprintable() else "�" for c in name))
