"""The layers of a plan, and why units of them are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import cut, listed
from onnxpart.planning.assign import Parts
from onnxpart.planning.plan import Layer
from onnxpart.planning.soft_ties import Classes
from onnxpart.planning.unit_classes import Decision


def nothing_divided(analysis: Analysis, decision: Decision, k: int) -> str:
    """Why no layer can be divided, as a sentence."""
    reasons = list(dict.fromkeys(layer.reason for layer in layers_of(analysis, decision, None, k)))
    if not reasons:
        reasons = [f"{title}: {reason}" for title, reason in analysis.barriers.items()]
    why = "; ".join(reasons[:3]) or "no contraction makes hidden units"
    return f"{analysis.model.name}: no layer can be divided into {k} parts ({why}); try a smaller K or another model."


def few_classes(classes: int, k: int) -> str:
    """What keeps a layer of fewer than K classes from being divided."""
    return f"its units move in {classes} {'class' if classes == 1 else 'classes'}, too few for {k} parts"


def layers_of(analysis: Analysis, decision: Decision, parts: Parts | None, k: int) -> list[Layer]:
    """All layers in graph order, with what became of them."""
    labels, root = analysis.labels.rooted()
    classes, count = decision.classes.take(labels), len(analysis.labels.roots)
    mine, shared = np.flatnonzero(decision.home.take(classes) == root), np.flatnonzero(classes == 0)
    held = np.zeros(len(decision.home), bool)
    held[classes[mine]] = True
    moving = np.bincount(decision.home[held], minlength=count)
    dealt = None if parts is None else _by_number(parts[labels[mine]], root[mine], count)
    free = _by_number(decision.free[labels[shared]], root[shared], count)
    reasons, first = _reasons(analysis, decision)
    result = []
    seen: set[int] = set()
    for i, (_, node) in enumerate(analysis.labels.roots):
        title = analysis.ops[node].title
        if dealt is not None and len(dealt[i]):
            counts = tuple(np.bincount(dealt[i], minlength=k).tolist())
            result.append(Layer(title, len(dealt[i]), int(moving[i]), counts))
        if len(free[i]):
            kinds = frozenset(free[i].tolist())
            if kinds <= seen:
                continue
            seen |= kinds
            moves, reason = len(kinds), reasons[first[list(kinds)].min()]
            if i in decision.narrow:
                moves = decision.narrow[i]
                reason = few_classes(moves, k)
            result.append(Layer(title, len(free[i]), moves, (), reason))
    return result


def _by_number(values: Parts | Classes, number: Classes, count: int) -> list[NDArray[Any]]:
    """Values by the number of each, which ascends and is below `count`."""
    return cut(values, np.searchsorted(number, np.arange(1, count)))


def _reasons(analysis: Analysis, decision: Decision) -> tuple[list[str], NDArray[np.int32]]:
    """Why units are undivided: the reasons, and for each free class the index of the first that holds for it."""
    found = [(reason, f) for f, _, reason in analysis.labels.pins if reason]
    for choice in decision.failed:
        if choice.drop is None:
            reason = f"{choice.reason} ({analysis.ops[choice.node].title})"
            found += [(reason, f) for pairs in choice.alternatives for f, _ in pairs]
    first = np.full(decision.free.max() + 1, len(found), np.int32)
    labels, number = listed([f for _, f in found])
    np.minimum.at(first, decision.free.take(labels), number)
    return [*(reason for reason, _ in found), "it is tied to what every part needs"], first
