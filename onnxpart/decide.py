"""Labels + K -> unit classes: which wishes of the analysis come true, and which layers can be divided.

A layer here is the set of unit classes that come into being at the same place (the output axis of one contraction);
its classes are interchangeable. A layer of fewer than K classes is replicated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxpart.analyse import Analysis
from onnxpart.labels import Choice, Field, Labels, Pair, flatten, solve, varying

Classes = NDArray[np.int32]
NOWHERE = np.iinfo(np.int32).max


@dataclass
class Decision:
    """The classes of a graph for one K.

    `classes` gives each label's class (0: shared), `home` each class's layer (an index into `Labels.roots`), `failed`
    the choices that did not come true, `shared` what some of them made shared, `granted` those that did come true and
    by which alternative, `narrow` the layers of fewer than K classes and how many they have, `free` the classes as they
    would be if nothing were shared by decree.
    """

    classes: Classes
    home: Classes
    failed: list[Choice]
    shared: list[tuple[Choice, Field]]
    granted: list[tuple[Choice, tuple[Pair, ...]]]
    narrow: dict[int, int]
    free: Classes


@dataclass
class _State:
    """The ties, the labels that every part has, how far each choice has fallen back, and which are true (`granted`)."""

    labels: Labels
    k: int
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    roots: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    shared: NDArray[np.bool_]
    pending: list[Choice]
    level: list[int]
    failed: list[Choice] = field(default_factory=list)
    given_up: list[tuple[Choice, Field]] = field(default_factory=list)
    granted: list[int] = field(default_factory=list)

    def solve(self, chosen: Iterable[int] = ()) -> Classes:
        """Unit classes when some of the pending choices come true; those where no units come into being are shared."""
        left, right = self.left, self.right
        active = [pair for i in chosen for pair in self.pending[i].alternatives[self.level[i]]]
        if active:
            more = flatten(active)
            left, right = np.concatenate([left, more[0]]), np.concatenate([right, more[1]])
        if self.dropped.any():
            keep = ~(self.dropped[left] | self.dropped[right])
            left, right = left[keep], right[keep]
        return self.reduce(solve(self.labels.count, left, right))

    def reduce(self, free: Classes) -> Classes:
        """The classes that remain when what every part has, or comes from nowhere, is shared."""
        kept = np.ones(free.max() + 1, bool)
        kept[free[self.shared & ~self.dropped]] = False
        kept[0] = False
        rooted = np.zeros_like(kept)
        rooted[free[self.roots]] = True
        return np.where(kept & rooted, np.cumsum(kept), 0).astype(np.int32)[free]

    def share(self, f: Field, choice: Choice | None = None) -> None:
        """The labels of `f` belong to every part, because a choice was given up or for good."""
        self.shared[f.ravel()] = True
        if choice is not None:
            self.given_up.append((choice, f))


def decide(analysis: Analysis, k: int) -> Decision:
    """Choose which wishes come true for K parts, and find the classes that follow.

    Wishes are given up in this order: parameters that serve too many units whatever is mixed, then mixes, fewest
    classes first, then products; whatever is given up leaves more to divide.
    """
    labels = analysis.labels
    left, right = flatten(labels.ties)
    dropped, shared = np.zeros((2, labels.count), bool)
    state = _State(labels, k, left, right, _rooted(labels), dropped, shared, [], [])
    for f, _, _ in labels.pins:
        state.share(f)
    free = solve(labels.count, left, right)
    base = state.reduce(free)
    for choice in [*labels.choices, *_narrow_groups(labels, base, k)]:
        _admit(state, choice, base)
    while True:
        classes = _settle(state, base)
        products = _products(analysis, state, classes)
        if not products:
            break
        for choice in products:
            state.pending.append(choice)
            state.level.append(0)
    home = _homes(labels, classes)
    narrow = _share_narrow(classes, home, k)
    granted = [(state.pending[i], state.pending[i].alternatives[state.level[i]]) for i in state.granted]
    return Decision(classes, home, state.failed, state.given_up, granted, narrow, free)


def _rooted(labels: Labels) -> NDArray[np.bool_]:
    rooted = np.zeros(labels.count, bool)
    for f, _ in labels.roots:
        rooted[f.ravel()] = True
    rooted[0] = True
    return rooted


def _alive(choice: Choice, classes: Classes) -> bool:
    """Whether the choice is about anything that is divided so far."""
    if choice.sides:
        return all(classes[f].any() for f in choice.sides)
    return any(classes[a].any() for pairs in choice.alternatives for a, _ in pairs)


def _held(choice: Choice, classes: Classes) -> bool:
    return any(all(bool((classes[a] == classes[b]).all()) for a, b in pairs) for pairs in choice.alternatives)


def _admit(state: _State, choice: Choice, base: Classes) -> None:
    if not _alive(choice, base) or _held(choice, base):
        if choice.mix and not _alive(choice, base):
            return
        state.pending.append(choice)
        state.level.append(0)
        return
    if choice.mix and choice.drop is not None and choice.drop.size < state.k:
        _give_up(state, choice, base)
        return
    state.pending.append(choice)
    state.level.append(0)


def _give_up(state: _State, choice: Choice, base: Classes) -> None:
    state.failed.append(choice)
    if choice.drop is not None:
        state.dropped[choice.drop.ravel()] = True
        left, right = flatten(choice.otherwise)
        state.left, state.right = np.concatenate([state.left, left]), np.concatenate([state.right, right])
    elif choice.sides:
        state.share(min(choice.sides, key=lambda f: _units(state, f, base)), choice)
    else:
        for pairs in choice.alternatives:
            for a, b in pairs:
                state.share(a, choice)
                state.share(b, choice)


def _units(state: _State, f: Field, base: Classes) -> int:
    """How many units come into being in the classes of a field."""
    return int(np.isin(base[state.roots], np.unique(base[f])).sum())


def _count(choice: Choice, level: int, classes: Classes) -> int:
    """How many classes the choice's units form."""
    found = [classes[a].ravel() for a, _ in choice.alternatives[level]]
    return int(np.count_nonzero(np.unique(np.concatenate(found))))


def _settle(state: _State, base: Classes) -> Classes:
    """Give up choices until each that is left keeps at least K classes."""
    regions: Classes | None = None
    while True:
        plain = [i for i, choice in enumerate(state.pending) if not choice.sides]
        classes = state.solve(plain) if state.pending or state.failed else base.copy()
        alive = {i for i in plain if _alive(state.pending[i], base)}
        products = {i for i, choice in enumerate(state.pending) if choice.sides and _alive(choice, classes)}
        if products:
            classes = state.solve([*plain, *products])
        bad: dict[int, list[tuple[int, int]]] = {}
        for i, (choice, level) in enumerate(zip(state.pending, state.level, strict=True)):
            if i in alive | products and (count := _count(choice, level, classes)) < state.k:
                regions = _regions(state) if regions is None else regions
                bad.setdefault(int(regions[_labels(choice)[0]]), []).append((count, i))
        if not bad:
            state.granted = [*plain, *products]
            return classes
        unmixed = state.solve([i for i in plain if not state.pending[i].mix])
        chosen = [i for found in bad.values() for i in _worst(state, found, base, unmixed)]
        for i in sorted(chosen, reverse=True):
            _fall_back(state, i, base)
        base = state.solve()


def _labels(choice: Choice) -> NDArray[np.int32]:
    """The labels that a choice is about, the shared one left out."""
    fields = [f for pairs in choice.alternatives for pair in pairs for f in pair]
    found = np.concatenate([f.ravel() for f in (fields if choice.drop is None else [*fields, choice.drop])])
    return found[found > 0]


def _regions(state: _State) -> Classes:
    """Region of each label: giving up a choice in one changes nothing in another, so they can be settled together."""
    found = [_labels(choice) for choice in state.pending]
    left = np.concatenate([state.left, *found])
    right = np.concatenate([state.right, *(np.repeat(labels[:1], len(labels)) for labels in found)])
    units = (left > 0) & (right > 0)
    return solve(state.labels.count, left[units], right[units])


def _worst(state: _State, bad: list[tuple[int, int]], base: Classes, unmixed: Classes) -> list[int]:
    """Which of a region's choices (class count, index) to give up first; `unmixed` are the classes without any mix."""
    parameters = [i for _, i in bad if state.pending[i].drop is not None and not state.pending[i].mix]
    parameters = [i for i in parameters if _count(state.pending[i], state.level[i], unmixed) < state.k]
    mixes = [(n, i) for n, i in bad if state.pending[i].mix]
    if parameters:
        return parameters
    if mixes:
        fewest = min(mixes)[0]
        return [i for n, i in mixes if n == fewest]
    first = min((i for _, i in bad), key=lambda i: state.level[i])
    same = [i for _, i in bad if state.level[i] == state.level[first]]
    units = np.unique(base[_labels(state.pending[first])])
    return [i for i in same if np.array_equal(np.unique(base[_labels(state.pending[i])]), units)]


def _fall_back(state: _State, i: int, base: Classes) -> None:
    choice = state.pending[i]
    state.level[i] += 1
    if state.level[i] == len(choice.alternatives):
        del state.pending[i], state.level[i]
        _give_up(state, choice, base)


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
    """The wish that the units of a group stay together."""
    one = inputs[:, :1]
    return Choice(node, "its groups are too narrow to divide", (((inputs, one), (outputs, one)),))


def _products(analysis: Analysis, state: _State, classes: Classes) -> list[Choice]:
    """Tensors whose units lie along several axes without forming a grid: wishes for a grid."""
    result, seen = [], set()
    home: Classes | None = None
    asked = {id(c.alternatives[0][0][0]) for c in [*state.pending, *state.failed] if c.reason == _GRID}
    grids, pieces = list(analysis.labels.grids), list(selections(analysis))
    for name, fields in analysis.state.fields.items():
        if name not in analysis.virtual and name not in analysis.state.pure:
            grids += [(f, analysis.producer.get(name, -1)) for f in fields]
    for f, node in grids:
        if len(varying(f)) < 2 or id(f) in seen or id(f) in asked:
            continue
        seen.add(id(f))
        here = classes[f]
        axes = [a for a in varying(f) if not bool((here == here.take([0], axis=a)).all())]
        if len(axes) > 1:
            home = _homes(state.labels, classes) if home is None else home
            axes = [a for a in axes if _reach(home[here], a) >= state.k] or axes
            axes = [a for a in axes if _cuts(f, a, pieces, classes) >= state.k] or axes
            alternatives = tuple(
                ((f, f[tuple(slice(None) if x == a else slice(0, 1) for x in range(f.ndim))]),) for a in sorted(axes)
            )
            result.append(Choice(node, _GRID, alternatives))
    return result


_GRID = "its units lie along several axes"


def _reach(home: Classes, axis: int) -> int:
    """Into how many classes every layer may still be divided where all units at one place of `axis` are tied.

    :param home: each unit's layer, in the tensor's shape.
    """
    lines = np.moveaxis(home, axis, 0).reshape(home.shape[axis], -1)
    layers = np.unique(lines[lines != NOWHERE])
    return min(int((lines == layer).any(axis=1).sum()) for layer in layers)


def _cuts(f: Field, axis: int, pieces: Sequence[Field], classes: Classes) -> int:
    """Into how many classes every piece of a tensor may still be divided where all units along `axis` alone are told.

    :param pieces: fields of what is cut out of tensors, those of others included.
    """
    place = np.broadcast_to(np.arange(f.shape[axis]).reshape([-1 if a == axis else 1 for a in range(f.ndim)]), f.shape)
    labels, first = np.unique(f, return_index=True)
    found = [f.shape[axis]]
    for g in pieces:
        if labels[0] <= g.flat[0] <= labels[-1] and len(np.unique(classes[g])) > 1:
            at = np.searchsorted(labels, g.ravel()).clip(max=len(labels) - 1)
            if np.array_equal(labels[at], g.ravel()):
                found.append(len(np.unique(place.ravel()[first[at]])))
    return int(min(found))


def _homes(labels: Labels, classes: Classes) -> Classes:
    """Layer of each class: the first place where one of its units comes into being."""
    home = np.full(classes.max() + 1, NOWHERE, np.int32)
    for i, (f, _) in reversed(list(enumerate(labels.roots))):
        home[classes[f.ravel()]] = i
    home[0] = NOWHERE
    return home


def held_classes(classes: Classes) -> Classes:
    """The classes that labels are in, ascending, without the shared one."""
    return (np.flatnonzero(np.bincount(classes)[1:]) + 1).astype(np.int32)


def _share_narrow(classes: Classes, home: Classes, k: int) -> dict[int, int]:
    """Make layers of fewer than K classes shared; returns them with the number of their classes."""
    held = held_classes(classes)
    layers, counts = np.unique(home[held], return_counts=True)
    narrow = {int(i): int(n) for i, n in zip(layers, counts, strict=True) if n < k}
    gone = np.isin(home, list(narrow))
    gone[0] = False
    classes[gone[classes]] = 0
    return narrow


def selections(analysis: Analysis) -> Iterator[Field]:
    """Fields of what is cut out of a tensor: every part takes its share of each piece."""
    for op, rule in zip(analysis.ops, analysis.rules, strict=True):
        if rule is not None and op.node.op_type in ("Split", "Slice", "Gather"):
            for name in op.node.output:
                yield from (f for f in analysis.fields(name) if f.size > 1)
