"""Which soft ties hold: ties that are wanted but not needed, given up one after the other until K classes remain.

All of it is about points: labels that firm ties make the same unit, whatever is given up, are one point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.labels import Choice, Field, Labels, Pair, ascending, flatten, listed, solve

Classes = NDArray[np.int32]
Ends = tuple[Classes, Classes]
"""Both ends of ties."""


@dataclass(eq=False)
class SoftTie:
    """A choice that may still hold, by the alternative `level`.

    In points: `ties` of each alternative, those that hold `otherwise`, and what the fields in `drop` and `sides` hold.
    """

    choice: Choice
    ties: tuple[Ends, ...]
    otherwise: Ends
    drop: Classes
    sides: tuple[Classes, ...]
    level: int = 0

    @classmethod
    def of(cls, choice: Choice, point: Classes) -> SoftTie:
        """The soft tie of a choice.

        :param point: each label's point.
        """
        ties = tuple(distinct(*flatten(pairs), point) for pairs in choice.alternatives)
        drop = point[:0] if choice.drop is None else ascending(point.take(choice.drop))
        sides = tuple(ascending(point.take(f)) for f in choice.sides)
        return cls(choice, ties, distinct(*flatten(choice.otherwise), point), drop, sides)

    def at(self, place: Classes) -> SoftTie:
        """The same soft tie with other numbers for points."""
        ties = tuple((place[a], place[b]) for a, b in self.ties)
        otherwise = place[self.otherwise[0]], place[self.otherwise[1]]
        return replace(
            self, ties=ties, otherwise=otherwise, drop=place[self.drop], sides=tuple(place[s] for s in self.sides)
        )

    @property
    def next(self) -> Ends:
        """The ties that hold where the present alternative doesn't."""
        return (*self.ties, self.otherwise)[self.level + 1]

    @property
    def points(self) -> Classes:
        """The points that the soft tie is about, the shared one left out."""
        found = np.concatenate([*(end for ends in self.ties for end in ends), self.drop])
        return found[found > 0]

    @property
    def touched(self) -> Classes:
        """All points that the soft tie names."""
        return np.concatenate([self.points, *self.otherwise, *self.sides])

    def alive(self, classes: Classes) -> bool:
        """Whether the soft tie is about anything that is divided so far."""
        if self.sides:
            return all(classes[side].any() for side in self.sides)
        return any(classes[left].any() for left, _ in self.ties)

    def held(self, classes: Classes) -> bool:
        """Whether an alternative holds already."""
        return any(bool((classes[left] == classes[right]).all()) for left, right in self.ties)


def fewest(points: Classes, classes: Classes, layer: Classes) -> int:
    """How many classes some points form, in the layer that has the fewest; in all, where no layer is told."""
    found = ascending((layer[points].astype(np.int64) << 32 | classes[points])[classes[points] > 0])
    told = found[found >= 0]
    if not len(told):
        return int(np.count_nonzero(ascending(found & 0xFFFFFFFF)))
    return int(np.unique(told >> 32, return_counts=True)[1].min())


def distinct(left: Classes, right: Classes, point: Classes) -> Ends:
    """Ties between labels as ties between points, each once."""
    pairs = ascending(point.take(left).astype(np.int64) << 32 | point.take(right))
    return (pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)


@dataclass
class State:
    """Points and their ties, the points that every part has, and how far each soft tie has fallen back.

    `roots` counts the units that come into being at each point, `layer` is where those of its class do (-1: nowhere, or
    too few do to be divided); `granted` are the soft ties that hold.
    """

    k: int
    left: Classes
    right: Classes
    roots: NDArray[np.int64]
    layer: Classes
    dropped: NDArray[np.bool_]
    shared: NDArray[np.bool_]
    pending: list[SoftTie] = field(default_factory=list)
    failed: list[Choice] = field(default_factory=list)
    given_up: list[tuple[Choice, Field]] = field(default_factory=list)
    granted: list[SoftTie] = field(default_factory=list)

    def solve(self, soft_ties: Iterable[SoftTie] = ()) -> Classes:
        """Unit class of each point when some soft ties hold; where no units come into being it is the shared one."""
        ties = [(self.left, self.right), *(tie.ties[tie.level] for tie in soft_ties)]
        left, right = (np.concatenate(ends) for ends in zip(*ties, strict=True))
        if self.dropped.any():
            keep = ~(self.dropped[left] | self.dropped[right])
            left, right = left[keep], right[keep]
        return self.reduce(solve(len(self.roots), left, right))

    def reduce(self, free: Classes) -> Classes:
        """The classes that remain when what every part has, or comes from nowhere, is shared."""
        kept = np.ones(free.max() + 1, bool)
        kept[free[self.shared & ~self.dropped]] = False
        kept[0] = False
        rooted = np.zeros_like(kept)
        rooted[free[self.roots > 0]] = True
        return np.where(kept & rooted, np.cumsum(kept), 0).astype(np.int32)[free]

    def count(self, tie: SoftTie, classes: Classes) -> int:
        """How many classes the units of a soft tie form, in the layer that has the fewest."""
        return fewest(tie.ties[tie.level][0], classes, self.layer)

    def give_up(self, tie: SoftTie, base: Classes) -> None:
        """Let a choice fail, and what follows from that hold."""
        choice = tie.choice
        self.failed.append(choice)
        if choice.drop is not None:
            self.dropped[tie.drop] = True
            self.left = np.concatenate([self.left, tie.otherwise[0]])
            self.right = np.concatenate([self.right, tie.otherwise[1]])
        elif tie.sides:
            fewest = min(range(len(tie.sides)), key=lambda i: self._units(tie.sides[i], base))
            self.shared[tie.sides[fewest]] = True
            self.given_up.append((choice, choice.sides[fewest]))
        else:
            self.shared[tie.points] = True
            self.given_up += [(choice, f) for pairs in choice.alternatives for pair in pairs for f in pair]

    def _units(self, points: Classes, base: Classes) -> int:
        """How many units come into being in the classes of some points."""
        return int(self.roots[np.isin(base, base[points])].sum())

    def fall_back(self, tie: SoftTie, base: Classes) -> None:
        """Take a soft tie's next alternative, or give it up after the last."""
        tie.level += 1
        if tie.level == len(tie.ties):
            self.pending.remove(tie)
            self.give_up(tie, base)

    def part(self, points: NDArray[np.intp], place: Classes) -> State:
        """The same for some of the points, which hold all that ties name; `place` is where each stands."""
        soft_ties = [tie.at(place) for tie in self.pending]
        ends = place[self.left], place[self.right]
        layer = self.layer[points]
        return State(self.k, *ends, self.roots[points], layer, self.dropped[points], self.shared[points], soft_ties)


def points(labels: Labels, k: int, left: Classes, right: Classes) -> tuple[Classes, State]:
    """Each label's point, and the state before any soft tie; labels that may be dropped are points of their own."""
    firm, loose = (left, right), (left[:0], right[:0])
    drops = [choice.drop for choice in labels.choices if choice.drop is not None]
    if drops:
        dropped = np.zeros(labels.count, bool)
        dropped[np.concatenate(drops, axis=None)] = True
        apart = dropped[left] | dropped[right]
        firm, loose = (left[~apart], right[~apart]), (left[apart], right[apart])
    point = solve(labels.count, *firm)
    count = int(point.max()) + 1
    dropped, shared, rooted = np.zeros(count, bool), np.zeros(count, bool), np.zeros(labels.count, bool)
    shared[point.take(listed([f for f, _, _ in labels.pins])[0])] = True
    rooted[labels.rooted()[0]] = True
    roots = np.bincount(point[rooted], minlength=count)
    roots[0] = max(1, roots[0])
    layer = np.full(count, -1, np.int32)
    return point, State(k, *distinct(*loose, point), roots, layer, dropped, shared)


def admit(state: State, tie: SoftTie, base: Classes) -> None:
    """Enter a soft tie, unless it is a mix that can't hold.

    What is mixed from what every part has is in every part too, and may be divided once another tie is given up.
    """
    choice = tie.choice
    if choice.mix and tie.alive(base) and choice.drop is not None and choice.drop.size < state.k and not tie.held(base):
        state.give_up(tie, base)
    else:
        state.pending.append(tie)


def settle(state: State, base: Classes) -> Classes:
    """Give up soft ties until each that is left keeps at least K classes.

    :param base: classes without any soft tie, int32 [points]. :returns: the class of each point, int32 [points].
    """
    if not state.failed and not any(base[tie.touched].any() for tie in state.pending):  # they tie what all parts have
        state.granted = [tie for tie in state.pending if not tie.sides]
        return base.copy()
    named = ascending(np.concatenate([[0], state.left, state.right, *(w.touched for w in state.pending)]))
    place = np.full(len(state.roots), -1, np.int32)
    place[named] = np.arange(len(named), dtype=np.int32)
    small = state.part(named, place)
    _settle(small, base[named])
    state.left, state.right = named[small.left].astype(np.int32), named[small.right].astype(np.int32)
    state.dropped[named], state.shared[named] = small.dropped, small.shared
    state.pending = [tie.at(named.astype(np.int32)) for tie in small.pending]
    state.granted = [tie.at(named.astype(np.int32)) for tie in small.granted]
    state.failed += small.failed
    state.given_up += small.given_up
    return state.solve(state.granted)


def _settle(state: State, base: Classes) -> None:
    """Give up soft ties, the `_worst` of each region first, until each that is left keeps at least K classes."""
    regions: Classes | None = None
    while True:
        plain = [tie for tie in state.pending if not tie.sides]
        classes = state.solve(plain)
        products = [tie for tie in state.pending if tie.sides and tie.alive(classes)]
        if products:
            classes = state.solve([*plain, *products])
        bad: dict[int, list[tuple[int, SoftTie]]] = {}
        for tie in state.pending:
            wanted = tie in products if tie.sides else tie.alive(base)
            if wanted and (count := state.count(tie, classes)) < state.k:
                regions = _regions(state) if regions is None else regions
                bad.setdefault(int(regions[tie.points[0]]), []).append((count, tie))
        if not bad:
            state.granted = [*plain, *products]
            return
        unmixed = state.solve([tie for tie in plain if not tie.choice.mix])
        worst = [tie for found in bad.values() for tie in _worst(state, found, base, unmixed)]
        for tie in sorted(worst, key=state.pending.index, reverse=True):
            state.fall_back(tie, base)
        base = state.solve()


def _regions(state: State) -> Classes:
    """Region of each point: giving up a tie in one changes nothing in another, so they can be settled together."""
    found = [tie.points for tie in state.pending]
    left = np.concatenate([state.left, *found])
    right = np.concatenate([state.right, *(np.repeat(points[:1], len(points)) for points in found)])
    units = (left > 0) & (right > 0)
    return solve(len(state.roots), left[units], right[units])


def _worst(state: State, bad: list[tuple[int, SoftTie]], base: Classes, unmixed: Classes) -> list[SoftTie]:
    """Which of a region's soft ties (with class counts) to give up first; `unmixed` are the classes without any mix."""
    parameters = [tie for _, tie in bad if tie.choice.drop is not None and not tie.choice.mix]
    parameters = [tie for tie in parameters if state.count(tie, unmixed) < state.k] or _spared(state, parameters)
    mixes = [(count, tie) for count, tie in bad if tie.choice.mix]
    if parameters:
        return parameters
    if mixes:
        least = min(count for count, _ in mixes)
        return [tie for count, tie in mixes if count == least]
    first = min((tie for _, tie in bad), key=lambda tie: tie.level)
    same = [tie for _, tie in bad if tie.level == first.level]
    units = ascending(base[first.points])
    return [tie for tie in same if np.array_equal(ascending(base[tie.points]), units)]


def _spared(state: State, parameters: list[SoftTie]) -> list[SoftTie]:
    """Soft ties of parameters with whose next alternatives there are K classes although all mixed stays together."""
    left, right = zip((state.left, state.right), *(tie.next for tie in parameters), strict=True)
    trial = replace(state, left=np.concatenate(left), right=np.concatenate(right), dropped=state.dropped.copy())
    for tie in parameters:
        if tie.level + 1 == len(tie.ties):
            trial.dropped[tie.drop] = True
    classes = trial.solve(w for w in state.pending if not w.sides and w not in parameters)
    return [w for w in parameters if fewest(np.concatenate(w.next), classes, state.layer) >= state.k]


def granted(state: State) -> list[tuple[Choice, tuple[Pair, ...]]]:
    """The choices that hold, each with the ties of its alternative."""
    return [(tie.choice, tie.choice.alternatives[tie.level]) for tie in state.granted]
