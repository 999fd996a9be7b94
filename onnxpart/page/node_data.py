"""A partition as node data for Model Explorer, which colours its graph by them."""

from __future__ import annotations

import json

from onnxpart.page.content import Content, told
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
        value = {"value": told(card, shown.k)} | ({"bgColor": c} if (c := _COLOURS.get(card.what)) else {})
        for operator in card.operators:
            for name in [operator.name] if operator.name else operator.outputs:
                results[name] = value
        for row in card.initializers:
            results[f"[value] {row['name']}"] = {"value": row["merging"]}
    return json.dumps({**MARK, "results": results}, indent=1)
