"""Labels + K -> unit classes: which soft ties of the analysis hold, and which layers can be divided.

A layer here is the set of unit classes that come into being at the same place (the output axis of one contraction);
its classes are interchangeable. A layer of fewer than K classes is replicated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import ByIdentity, Choice, Field, Labels, Pair, ascending, flatten, solve, varying
from onnxpart.planning.soft_ties import Classes, SoftTie, State, admit, granted, points, settle

NOWHERE = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Decision:
    """The classes of a graph for one K.

    `classes` gives each label's class (0: shared), `home` each class's layer (an index into `Labels.roots`), `failed`
    the choices that were given up, `shared` what some of them made shared, `granted` those that hold and by which
    alternative, `narrow` the layers of fewer than K classes and how many they have (before soft ties, where those are
    too few already), `free` the classes as they would be if nothing were shared by decree.
    """

    classes: Classes
    home: Classes
    failed: list[Choice]
    shared: list[tuple[Choice, Field]]
    granted: list[tuple[Choice, tuple[Pair, ...]]]
    narrow: dict[int, int]
    free: Classes


def decide(analysis: Analysis, k: int) -> Decision:
    """Choose which soft ties hold for K parts, and find the classes that follow.

    Soft ties are given up in this order: parameters that serve too many units whatever is mixed, then mixes, fewest
    classes first, then products; whatever is given up leaves more to divide.
    """
    labels = analysis.labels
    left, right = flatten(labels.ties)
    point, state = points(labels, k, left, right)
    free = solve(len(state.roots), state.left, state.right)
    base = state.reduce(free)
    state.layer = _layer_of_points(labels, base.take(point), point, k)
    for choice in [*labels.choices, *_narrow_groups(labels, base.take(point), k)]:
        admit(state, SoftTie.of(choice, point), base)
    wanted: ByIdentity[Field, Choice] = ByIdentity()
    """The grids that fields are wanted to be."""
    while True:
        classes = settle(state, base).take(point)
        torn = _torn(analysis, classes)
        again = [f for f, _, _ in torn if f in wanted and not state.shared[point.take(f)].all()]
        grids = _grids(analysis, state, classes, [entry for entry in torn if entry[0] not in wanted])
        if not grids and not again:
            break
        wanted.update(grids)
        state.pending += [SoftTie.of(choice, point) for choice in grids.values()]
        for f in again:  # it was a grid by ties to a mix that was duplicated later
            state.shared[point.take(f)] = True
            state.given_up.append((wanted[f], f))
    home = _homes(labels, classes)
    before, narrow = base.take(point), _share_narrow(classes, home, k)
    narrow |= {i: count for i, count in _narrow(before, _homes(labels, before), k).items() if i in narrow}
    return Decision(classes, home, state.failed, state.given_up, granted(state), narrow, free.take(point))


def _narrow_groups(labels: Labels, base: Classes, k: int) -> list[Choice]:
    """Grouped operators whose groups are too narrow for every part to take a share of each: whole groups."""
    result = []
    for g in labels.groups:
        if g.inputs is None or not base[g.inputs].any():
            continue
        if min(g.inputs.shape[1], g.outputs.shape[1]) < k:
            result.append(whole_groups(g.node, g.inputs, g.outputs))
    return result


def whole_groups(node: int, inputs: Field, outputs: Field) -> Choice:
    """The soft tie by which the units of a group stay together."""
    one = inputs[:, :1]
    return Choice(node, "its groups are too narrow to divide", (((inputs, one), (outputs, one)),))


def _torn(analysis: Analysis, classes: Classes) -> list[tuple[Field, int, list[int]]]:
    """The fields whose units lie along several axes without forming a grid, with their nodes and those axes."""
    torn = []
    for f, node in _wide(analysis):
        here = classes.take(f)
        axes = [a for a in varying(f) if not bool((here == here.take([0], axis=a)).all())]
        if len(axes) > 1:
            torn.append((f, node, axes))
    return torn


def _grids(
    analysis: Analysis, state: State, classes: Classes, torn: Sequence[tuple[Field, int, list[int]]]
) -> ByIdentity[Field, Choice]:
    """For torn fields the choices by which they would be grids."""
    result: ByIdentity[Field, Choice] = ByIdentity()
    if not torn:
        return result
    home, pieces = _homes(analysis.labels, classes), list(selections(analysis))
    for f, node, axes in torn:
        axes = [a for a in axes if _reach(home.take(classes.take(f)), a) >= state.k] or axes
        axes = [a for a in axes if _cuts(f, a, pieces, classes) >= state.k] or axes
        alternatives = tuple(
            ((f, f[tuple(slice(None) if x == a else slice(0, 1) for x in range(f.ndim))]),) for a in sorted(axes)
        )
        result[f] = Choice(node, "its units lie along several axes", alternatives)
    return result


def _wide(analysis: Analysis) -> list[tuple[Field, int]]:
    """The fields along several axes that must come out as grids, each once, and the nodes that they come from."""
    found: ByIdentity[Field, int] = ByIdentity()
    for f, node in analysis.labels.grids:
        if len(varying(f)) > 1:
            found.setdefault(f, node)
    for name, fields in analysis.state.fields.items():
        for f in fields:
            if len(varying(f)) > 1 and name not in analysis.virtual and name not in analysis.state.weights_only:
                found.setdefault(f, analysis.producer.get(name, -1))
    return list(found.items())


def _reach(home: Classes, axis: int) -> int:
    """Into how many classes every layer may still be divided where all units at one place of `axis` are tied.

    :param home: each unit's layer, in the tensor's shape.
    """
    lines = np.moveaxis(home, axis, 0).reshape(home.shape[axis], -1)
    layers = ascending(lines[lines != NOWHERE])
    return min(int((lines == layer).any(axis=1).sum()) for layer in layers)


def _cuts(f: Field, axis: int, pieces: Sequence[Field], classes: Classes) -> int:
    """Into how many classes every piece of a tensor may still be divided where all units along `axis` alone are told.

    :param pieces: fields of what is cut out of tensors, those of others included.
    """
    place = np.broadcast_to(np.arange(f.shape[axis]).reshape([-1 if a == axis else 1 for a in range(f.ndim)]), f.shape)
    labels, first = np.unique(f, return_index=True)
    found = [f.shape[axis]]
    for g in pieces:
        if labels[0] <= g.flat[0] <= labels[-1] and len(ascending(classes.take(g))) > 1:
            at = np.searchsorted(labels, g.ravel()).clip(max=len(labels) - 1)
            if np.array_equal(labels[at], g.ravel()):
                found.append(len(np.unique(place.ravel()[first[at]])))
    return int(min(found))


def _homes(labels: Labels, classes: Classes) -> Classes:
    """Layer of each class: the first place where one of its units comes into being."""
    home = np.full(classes.max() + 1, NOWHERE, np.int32)
    rooted, root = labels.rooted()
    np.minimum.at(home, classes.take(rooted), root)
    home[0] = NOWHERE
    return home


def _layer_of_points(labels: Labels, base: Classes, point: Classes, k: int) -> Classes:
    """Layer of each point, -1 for those of fewer than K classes before any soft tie.

    :param base: class of each label.
    """
    home = _homes(labels, base)
    home[np.isin(home, [NOWHERE, *_narrow(base, home, k)])] = -1
    result = np.empty(point.max() + 1, np.int32)
    result[point] = home.take(base)
    return result


def held_classes(classes: Classes) -> Classes:
    """The classes that labels are in, ascending, without the shared one."""
    return (np.flatnonzero(np.bincount(classes)[1:]) + 1).astype(np.int32)


def _narrow(classes: Classes, home: Classes, k: int) -> dict[int, int]:
    """Layers of fewer than K classes, with the number of their classes."""
    layers, counts = np.unique(home[held_classes(classes)], return_counts=True)
    return {int(i): int(n) for i, n in zip(layers, counts, strict=True) if n < k}


def _share_narrow(classes: Classes, home: Classes, k: int) -> dict[int, int]:
    """Make layers of fewer than K classes shared; returns them."""
    narrow = _narrow(classes, home, k)
    if narrow:
        gone = np.isin(home, list(narrow))
        gone[0] = False
        classes[gone[classes]] = 0
    return narrow


def selections(analysis: Analysis) -> Iterator[Field]:
    """Fields of what is cut out of a tensor: every part takes its share of each piece."""
    for op, rule in zip(analysis.ops, analysis.rules, strict=True):
        if rule is not None and op.op_type in ("Split", "Slice", "Gather"):
            for name in op.outputs:
                yield from (f for f in analysis.fields(name) if f.size > 1)
