"""A partition as node data for Model Explorer, which colours its graph by them."""

from __future__ import annotations

import json

from onnxpart.page.content import Card, Content
from onnxpart.storage.outputs import MARK

SUFFIX = ".json"
_COLOURS = {
    "divided": "#56b4e9",
    "duplicated": "#009e73",
    "meeting": "#f0e442",
    "replicated": "#e69f00",
    "blocked": "#d55e00",
}
"""Of what doesn't stand the same in every part: those of Okabe and Ito."""


def node_data(shown: Content) -> str:
    """Node data of one graph: what stands at each node, and how each initializer merges, with a colour.

    Nodes go by their names, or by their outputs' where they have none; initializers go by what Model Explorer's adapter
    for ONNX calls them. The format is that of `node_data_builder.py` of ai-edge-model-explorer 0.1.34.
    """
    results: dict[str, dict[str, str]] = {}
    for card in shown.cards:
        value = {"value": _told(card, shown.k)} | ({"bgColor": c} if (c := _COLOURS.get(card.what)) else {})
        for operator in card.operators:
            for name in [operator.name] if operator.name else operator.outputs:
                results[name] = value
        for row in card.initializers:
            results[f"[value] {row['name']}"] = {"value": row["merging"]}
    return json.dumps({**MARK, "results": results}, indent=1)


def _told(card: Card, k: int) -> str:
    """What stands at a card, and how many units each part has where they are divided."""
    counts = [sum(size for part, size in card.runs if part == p) for p in range(k)]
    return f"{card.what}: {' + '.join(map(str, counts))}" if any(counts) else card.what
