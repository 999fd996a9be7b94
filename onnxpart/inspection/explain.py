"""Why a tensor's units are divided or not, and what would free them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Field, varying
from onnxpart.analysis.walk import analyse
from onnxpart.errors import UsageError
from onnxpart.frontend.extract import cut
from onnxpart.inspection.tie_graph import Cause, Step, Ties, along
from onnxpart.planning.plan import Plan
from onnxpart.planning.planner import duplicated, partition


@dataclass(frozen=True)
class Advice:
    """What was tried and divides more of the units: fewer parts (`k`), or only these `outputs` of the network."""

    k: int
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """The units of a tensor along an axis (several: a grouped weight, a tensor in which units form a grid).

    `parts` how many of the `units` each part has, `undivided` how many every part has, `classes` that move on their
    own, `layer` where the divided ones come into being, `together` what else moves with them; `chain` leads from the
    undivided ones to their `cause`.
    """

    axes: tuple[int, ...]
    units: int
    undivided: int
    parts: tuple[int, ...]
    classes: int
    layer: str
    together: tuple[str, ...]
    chain: tuple[Step, ...]
    cause: Cause | None
    advice: tuple[Advice, ...]


@dataclass(frozen=True)
class Duplicated:
    """A mix that exists once per part, and with how many parts it would not."""

    node: str
    reason: str
    advice: tuple[Advice, ...]


@dataclass(frozen=True)
class Why:
    """What becomes of the tensor `name` in `k` parts; `cause` says why, where it has no units at all."""

    name: str
    shape: tuple[int, ...]
    k: int
    axes: tuple[Axis, ...]
    duplicated: tuple[Duplicated, ...]
    cause: Cause | None


def why(analysis: Analysis, name: str, k: int) -> Why:
    """Explain how a tensor's units are divided into K equal parts, or what keeps them together.

    :param analysis: of the network.
    :param name: of a value, an initializer, or a node (which stands for its first output).
    :param k: the number of parts.
    :returns: for each axis with units their chain of ties to the cause, and advice that was tried on the network and
        divides more of them.
    :raises UsageError: when nothing in the network has that name, or `k` is less than 2.
    """
    if k < 2:
        raise UsageError(f"K is {k}; nothing is divided into fewer than 2 parts.")
    tensor = _tensor(analysis, name)
    ties = Ties(analysis, k)
    axes = tuple(_axis(ties, tensor, f) for f in analysis.fields(tensor) if f.size > 1)
    duplicated = tuple(_duplicated(ties, tensor))
    cause = None if axes else _unlabelled(analysis, tensor)
    return Why(tensor, analysis.shapes.shape.get(tensor, ()), k, axes, duplicated, cause)


def fewer_outputs(analysis: Analysis, plan: Plan) -> tuple[str, ...]:
    """Return the outputs of a network with which its parts are smallest, if the others keep weights undivided.

    :returns: none where no output keeps units of the largest undivided initializer together.
    """
    sizes = {each.name: prod(each.shape) for each in plan.initializers}
    largest = max(plan.replicated, key=sizes.__getitem__, default=None)
    if largest is None:
        return ()

    def size(outputs: tuple[str, ...]) -> int:
        return partition(analyse(cut(analysis.model, outputs)), plan.k).plan.parameters(0)

    axes = why(analysis, largest, plan.k).axes
    return min({tried.outputs for axis in axes for tried in axis.advice if tried.outputs}, key=size, default=())


def _tensor(analysis: Analysis, name: str) -> str:
    """The tensor that a name stands for.

    :raises UsageError: when the network holds nothing of that name.
    """
    values = {*analysis.model.inputs, *analysis.model.initializers, *analysis.producer} - {""}
    if name in values:
        return name
    nodes: dict[str, str] = {op.node.name: op.outputs[0] for op in reversed(analysis.ops) if op.node.name}
    if name in nodes:
        return nodes[name]
    close = get_close_matches(name, sorted(values | nodes.keys()))
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "name a node, a value or an initializer."
    raise UsageError(f"{analysis.model.name} holds nothing called {name!r}; {hint}")


def _axis(ties: Ties, name: str, f: Field) -> Axis:
    """What becomes of the units of one field of a tensor."""
    labels = np.unique(f)
    here = ties.parts[f.ravel()]
    held = ties.decision.classes[labels]
    mine = np.zeros(len(ties.decision.home), bool)
    mine[held] = True
    mine[0] = False
    homes = ties.decision.home[mine]
    layer = ties.title(ties.trial.labels.roots[int(homes.min())][1]) if len(homes) else ""
    undivided = int((here < 0).sum())
    chain: tuple[Step, ...] = ()
    cause = None
    advice: tuple[Advice, ...] = ()
    if undivided:
        chain, cause = ties.chain(labels[held == 0], along(name, f))
        advice = tuple(_advice(ties, name, varying(f), undivided, cause))
    return Axis(
        tuple(sorted(varying(f))),
        f.size,
        undivided,
        tuple(int((here == p).sum()) for p in range(ties.k)) if undivided < f.size else (),
        int(mine.sum()),
        layer,
        tuple(_together(ties, name, mine)),
        chain,
        cause,
        advice,
    )


def _together(ties: Ties, name: str, mine: NDArray[np.bool_]) -> Iterator[str]:
    """Axes of other initializers whose units are of the classes `mine`."""
    for other in ties.analysis.model.initializers:
        for f in ties.analysis.fields(other):
            if other != name and mine[ties.decision.classes[f]].any():
                yield along(other, f)


def _duplicated(ties: Ties, name: str) -> Iterator[Duplicated]:
    node = ties.analysis.producer.get(name, -1)
    for reason in dict.fromkeys(c.reason for c in duplicated(ties.decision, ties.parts) if c.node == node):

        def free(other: Ties) -> bool:
            return not any(c.node == node for c in duplicated(other.decision, other.parts))

        yield Duplicated(ties.title(node), reason, tuple(_fewer(ties, ties.k - 1, free)))


def _advice(ties: Ties, name: str, axes: frozenset[int], undivided: int, cause: Cause) -> Iterator[Advice]:
    """What divides more of the units, found by trying."""

    def better(other: Ties) -> bool:
        fields = [f for f in other.analysis.fields(name) if varying(f) == axes]
        return bool(fields) and sum(int((other.parts[f] < 0).sum()) for f in fields) < undivided

    if cause.kind in ("soft tie", "mix", "narrow", "operator"):
        most = ties.k - 1 if cause.classes is None else min(ties.k - 1, cause.classes)
        yield from _fewer(ties, most, better)
    if cause.kind in ("soft tie", "output", "barrier", "operator") and (outputs := _without(ties, name, cause, better)):
        yield Advice(ties.k, outputs)


def _fewer(ties: Ties, most: int, better: Callable[[Ties], bool]) -> Iterator[Advice]:
    """The largest number of parts, at most `most`, that is better."""
    for k in range(most, 1, -1):
        if better(Ties(ties.analysis, k)):
            yield Advice(k)
            return


def _without(ties: Ties, name: str, cause: Cause, better: Callable[[Ties], bool]) -> tuple[str, ...]:
    """Outputs of the network with which it is better: those that hold the units are left out one after another."""
    left = list(ties.analysis.model.outputs)
    while blocking := _blocking(ties, cause) & set(left):
        left = [output for output in left if output not in blocking]
        if not left:
            return ()
        try:
            ties = Ties(analyse(cut(ties.analysis.model, left)), ties.k)
        except UsageError:
            return ()
        fields = ties.analysis.fields(name)
        if not fields:
            return ()
        if better(ties):
            return tuple(left)
        labels = np.unique(np.concatenate([f.ravel() for f in fields]))
        cause = ties.chain(labels[ties.decision.classes[labels] == 0], name)[1]
    return ()


def _blocking(ties: Ties, cause: Cause) -> set[str]:
    """Outputs without which a cause would be gone: itself, or all that come from its operator."""
    analysis = ties.analysis
    if cause.kind == "output":
        return {cause.node}
    found = {n for op in analysis.ops if op.title == cause.node for n in op.outputs}
    for op in analysis.ops:
        if found.intersection(op.reads):
            found.update(op.outputs)
    return found & set(analysis.model.outputs)


def _unlabelled(analysis: Analysis, name: str) -> Cause:
    """Why a tensor has no units: the operators in front of it, back to what keeps them from it."""
    front: Iterable[str] = [name]
    seen = {name}
    while front:
        behind: list[str] = []
        for value in front:
            index = analysis.producer.get(value, -1)
            if index in analysis.state.barriers:
                return Cause("barrier", analysis.ops[index].title, analysis.state.barriers[index])
            if index >= 0 and not analysis.fields(value):
                behind += [n for n in analysis.inputs(index) if n not in seen]
                seen.update(behind)
        front = behind
    return Cause("input", "", "it holds no units: it is made of inputs, constants and what every part has")
