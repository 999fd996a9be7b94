"""How often each operator stands in the duplicated whole, and where the parts' contributions meet.

`joint`: it stands once, over all units. `per_part`: K copies, each over its own part (a mix, a region that can't be
divided). `after_reduction`: it stands once, behind the point where the parts' contributions meet. A tensor there is a
`mean` where it equals the mean of what the parts compute.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from onnxpart.ir.flatten import Region
from onnxpart.planning.division import WEIGHTED, Division
from onnxpart.planning.scaling import Scaling, scaling

Mode = Literal["joint", "per_part", "after_reduction"]


@dataclass(frozen=True, eq=False)
class Placement:
    """What a division makes of the duplicated whole.

    `modes` by node index; `reductions` are the nodes where the parts' contributions meet, `unscaled` those where they
    would if anything could be divided by K, `mean` the tensors that equal the mean over the parts, `scaling` what is
    divided by K.
    """

    modes: tuple[Mode, ...]
    reductions: frozenset[int]
    unscaled: frozenset[int]
    mean: frozenset[str]
    scaling: Scaling


def place(division: Division) -> Placement:
    """Find the mode of every operator.

    Nothing stands after a reduction unless all that it reads can be had there. A reduction whose input exists only in
    pieces stands per part, and so does one whose weight can't be divided by K because something else reads it.

    :returns: as few operators per part as that allows.
    """
    found = scaling(division)
    reductions = {i for i in found.factors if _can_reduce(division, found, i)}
    unscaled = division.meetings - reductions
    apart: set[int] = set()
    while True:
        modes = _Modes(division, frozenset(reductions), frozenset(apart))
        if torn := [region for region in division.analysis.model.flat.outermost() if modes.tears(region)]:
            inside = {i for region in torn for i in range(region.start, region.stop)}
            apart |= inside
            reductions -= inside
        elif meanless := modes.without_mean():
            apart |= meanless
        elif pieces := {i for i in modes.reductions if not modes.can_meet(i, found)}:
            reductions -= pieces
        else:
            return Placement(tuple(modes.modes), frozenset(modes.reductions), unscaled, frozenset(modes.mean), found)


def _can_reduce(division: Division, found: Scaling, i: int) -> bool:
    """Whether an operator's contributions add up to a mean once what is to be divided by K is."""
    parameters = division.analysis.parameters[i]
    return found.factors[i] <= found.scaled and all(_averages(division, n) for n in parameters)


def _averages(division: Division, name: str) -> bool:
    """Whether a tensor that each part makes of parameters is the mean of the parts' when made of their means.

    What is divided has no such mean.
    """
    analysis = division.analysis
    depends = analysis.state.depends_on_parameters
    if name not in depends or division.divided(name) or name in analysis.model.initializers:
        return True
    producer = analysis.producer[name]
    mean = division.passes_mean(producer)
    names = [n for n in analysis.ops[producer].inputs if n]
    own = [n for n in names if n in depends]
    if mean == "no" or not all(_averages(division, n) for n in own):
        return False
    return mean == "sum" or (len(own) == 1 and (mean == "scale" or own == names[:1]))


class _Modes:
    """Modes, given which operators may be reductions, and which are to stand `apart`, once per part.

    `linear` are the tensors that sums of contributions lead to linearly, `per_part` those that exist once per part.
    """

    def __init__(self, division: Division, candidates: Collection[int], apart: Collection[int]) -> None:
        self.division, self.candidates, self.apart = division, candidates, apart
        self.analysis = division.analysis
        self.weights_only = self.analysis.state.weights_only
        self.depends = self.analysis.state.depends_on_parameters
        self.modes: list[Mode] = []
        self.reductions: set[int] = set()
        self.mean: set[str] = set()
        self.linear: set[str] = set()
        self.per_part: set[str] = set()
        for i, op in enumerate(self.analysis.ops):
            if i in candidates or self._is_linear(i):
                self.linear.update(op.outputs)
        behind = self._after_reduction()
        for i, op in enumerate(self.analysis.ops):
            self.modes.append("after_reduction" if i in behind else self._mode(i))
            if i in behind:
                if i in candidates:
                    self.reductions.add(i)
                if i in candidates or self._is_mean(i):
                    self.mean.update(op.outputs)
            elif self.modes[i] == "per_part":
                self.per_part.update(op.outputs)
                self.mean.update(n for n in op.outputs if n and not division.divided(n))

    # -- what must stand per part beyond that -------------------------------------------------------------------

    def tears(self, region: Region) -> bool:
        """Whether an If, Loop or Scan that doesn't yet must exist once per part as a whole.

        Something in it must, or contributions meet in it and what comes out is neither divided nor a mean.
        """
        inside = range(region.start, region.stop)
        if all(i in self.apart for i in inside) or self.division.k == 1:
            return False
        if any(self.modes[i] == "per_part" for i in inside):
            return True
        used = self.analysis.used_outputs
        ends = [n for i in inside[-len(region.leaves) :] for n in used[i] if n in self.depends]
        meets = not self.reductions.isdisjoint(inside)
        return meets and any(not self.division.divided(n) and n not in self.mean for n in ends)

    def without_mean(self) -> set[int]:
        """Operators after a reduction that read what every part has its own of, and what has no mean."""
        return {i for i, mode in enumerate(self.modes) if mode == "after_reduction" and self._reads_no_mean(i)}

    def _reads_no_mean(self, i: int) -> bool:
        read = self.per_part.intersection(self.analysis.activations[i])
        return any(not self.division.divided(n) and self.division.no_mean(n) for n in read)

    def can_meet(self, i: int, found: Scaling) -> bool:
        """Whether a reduction has all that it reads over all units, and what is scaled for it serves reductions alone.

        :param found: what is scaled for which operators.
        """
        activations = self.analysis.activations[i]
        at_hand = all(map(self._at_hand, activations)) and all(map(self._adds_to_mean, activations))
        return at_hand and all(found.readers[name] <= self.reductions for name in found.factors[i])

    def _adds_to_mean(self, name: str) -> bool:
        """Whether an activation is what is summed, or leaves a mean of the parts a mean when it is added to that."""
        return self.division.divided(name) or name in self.mean or name not in self.depends

    def _at_hand(self, name: str) -> bool:
        """Whether a divided tensor exists over all units, or can be joined."""
        division, producer = self.division, self.analysis.producer.get(name)
        if producer is None or self.modes[producer] != "per_part":
            return True
        return not division.divided(name) or division.joinable(name)

    # -- behind the reductions ----------------------------------------------------------------------------------

    def _is_linear(self, i: int) -> bool:
        """Whether the node passes a mean on, as far as its operator and inputs tell."""
        mean = self.division.passes_mean(i)
        if mean == "no":
            return False
        names = [n for n in self.analysis.ops[i].inputs if n]
        means = [n in self.linear for n in names]
        if mean == "sum":
            return any(means) and all(m or self._adds_mean(n) for m, n in zip(means, names, strict=True))
        if any(n in self.depends for m, n in zip(means, names, strict=True) if not m):
            return False
        return sum(means) == 1 and (mean == "scale" or means[0])

    def _adds_mean(self, name: str) -> bool:
        """Whether a tensor that is added to a mean leaves a mean: no parameter, or one that has a mean itself."""
        if name not in self.depends:
            return True
        return name in self.weights_only and not self.division.divided(name) and _averages(self.division, name)

    def _is_mean(self, i: int) -> bool:
        """The same once it is known which tensors are means."""
        return self._is_linear(i) and all(
            n in self.mean or n in self.weights_only or n not in self.depends for n in self.analysis.ops[i].reads
        )

    def _after_reduction(self) -> set[int]:
        """Nodes all of whose successors are free of parameters, but for biases on means."""
        analysis, ends = self.analysis, set(self.analysis.model.outputs)
        found: set[int] = set()
        for i in reversed(range(len(analysis.ops))):
            outputs = analysis.used_outputs[i]
            users = [u for n in outputs for u in analysis.consumers.get(n, [])]
            if not all(u in found or self._untrained(u) for u in users) or self._untrained(i):
                continue
            if users and all(map(self._untrained, users)) and ends.isdisjoint(outputs):
                continue
            if self.weights_only.issuperset(outputs) or self.division.any_divided(outputs):
                continue
            if i not in self.division.duplicated and i not in self.apart and self._can_follow(i):
                found.add(i)
        return found

    def _can_follow(self, i: int) -> bool:
        """Whether a node is a reduction, or reads nothing that is divided and no parameters but biases on means."""
        if i in self.candidates:
            return True
        if self.division.any_divided(self.analysis.activations[i]):
            return False
        bias = self.division.passes_mean(i) == "sum" and self.linear.issuperset(self.analysis.used_outputs[i])
        return bias or not self.analysis.parameters[i]

    def _untrained(self, i: int) -> bool:
        """Whether a node stands once because nothing that comes out of it, such as a size, depends on parameters."""
        return self.depends.isdisjoint(self.analysis.used_outputs[i]) and i not in self.apart

    # -- in front of them ---------------------------------------------------------------------------------------

    def _mode(self, i: int) -> Mode:
        """The mode of a node that doesn't stand after a reduction."""
        if self.division.k == 1 or self._untrained(i):
            return "joint"
        if i in self.division.duplicated or i in self.apart:
            return "per_part"
        outputs = self.analysis.used_outputs[i]
        if self.weights_only.issuperset(outputs):
            return "joint" if all(self._is_block(n, i) for n in outputs) else "per_part"
        return "joint" if self._joins(i) else "per_part"

    def _joins(self, i: int) -> bool:
        """Whether a node on activations, over all units, gives each part what it gives it alone."""
        division, outputs = self.division, self.analysis.used_outputs[i]
        if not self.weights_only.isdisjoint(self.per_part.intersection(self.analysis.ops[i].reads)):
            return False
        parameters, activations = self.analysis.parameters[i], self.analysis.activations[i]
        if any(map(division.replicated, parameters)):
            return False
        rule = self.analysis.rules[i]
        weighted = rule is not None and rule.kind in WEIGHTED and bool(parameters)
        if weighted and any(map(division.replicated, outputs)) and division.any_divided(activations):
            return False
        if any(not (weighted and division.joinable(name)) for name in self.per_part.intersection(activations)):
            return False
        return all(division.divided(n) for n in outputs if n in self.depends)

    def _is_block(self, name: str, i: int) -> bool:
        """Whether a tensor made of parameters by node `i` has zeros between parts where those it is made of have."""
        inputs = [n for n in self.analysis.ops[i].inputs if n]
        if not self.per_part.isdisjoint(inputs):
            return False
        if not self._has_blocks(name):
            return True
        linear = self.division.passes_mean(i)
        if linear == "data":
            return self._has_blocks(inputs[0])
        return linear != "no" and (any if linear == "scale" else all)(self._has_blocks(n) for n in inputs)

    def _has_blocks(self, name: str) -> bool:
        """Whether a tensor is divided along several axes, each on its own."""
        return len(self.division.divided_fields(name)) > 1
