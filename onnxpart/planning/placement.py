"""Which nodes of the duplicated whole exist once, and which once per part.

`joint`: the node stands once, over all units. `per_part`: K copies, each over its own part (a mix, a region that can't
be divided). `after_reduction`: the node stands once, behind the point where the parts' contributions meet. A tensor
there is a `mean` where it equals the mean of what the parts compute.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Field, extent, varying
from onnxpart.analysis.rewrite import Kept
from onnxpart.errors import MergeError
from onnxpart.ir.flatten import LEAVE, Region
from onnxpart.ir.shapes import SELECTIONS
from onnxpart.ir.trainable import FLOATS
from onnxpart.planning.assign import ANYWHERE, Parts
from onnxpart.planning.plan import Plan
from onnxpart.planning.scaling import CONTRACTIONS, Ahead, ahead


def layout_of(analysis: Analysis, plan: Plan) -> Layout:
    """The layout that a plan implies for its model; the analysis keeps the last one.

    :raises MergeError: when the plan is of another model.
    """
    if analysis.layout is not None and analysis.layout[0] is plan:
        return analysis.layout[1]
    if sum(n for _, n in plan.units) != analysis.labels.count:
        raise MergeError(f"the plan is not one of {analysis.model.name}; split the model again.")
    layout = Layout(analysis, plan.parts_of_labels(), plan.k, frozenset(plan.duplicated_nodes))
    analysis.layout = plan, layout
    return layout


Mode = Literal["joint", "per_part", "after_reduction"]
WEIGHTED = ("contraction", "recurrent")
"""The kinds of operators that have weights between units."""


@dataclass
class Layout:
    """The kept indices of every tensor, and the mode of every node.

    `modes` by node index; `reductions` are the nodes where the parts' contributions meet, `scaled` the weights of
    these, `ahead` what is scaled in their place for some, `unscaled` the nodes where neither can be, `mean` the tensors
    that equal the mean over the parts, `duplicated` the mixes (by node index) that exist once per part.
    """

    analysis: Analysis
    parts: Parts
    k: int
    duplicated: frozenset[int]
    modes: list[Mode] = field(default_factory=list)
    reductions: set[int] = field(default_factory=set)
    scaled: set[str] = field(default_factory=set)
    ahead: dict[int, Ahead] = field(default_factory=dict)
    unscaled: set[int] = field(default_factory=set)
    mean: set[str] = field(default_factory=set)
    _kept: dict[tuple[int, int], tuple[Field, dict[int, NDArray[np.int64]] | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        analysis = self.analysis
        self._weights_only, self._depends = analysis.state.weights_only, analysis.state.depends_on_parameters
        fields = analysis.all_fields()
        least, most = extent(self.parts, fields)
        self._some = {id(f) for f, part in zip(fields, most.tolist(), strict=True) if part > ANYWHERE}
        self._all = {id(f) for f, part in zip(fields, least.tolist(), strict=True) if part > ANYWHERE}
        """Fields with some labels that belong to one part each, and those all of whose labels do."""
        self._divided: set[str] = set()
        self._dealt: set[str] = set()
        """Tensors with such fields."""
        for name, own in analysis.state.fields.items():
            for f in own:
                if id(f) in self._some:
                    self._divided.add(name)
                if id(f) in self._all:
                    self._dealt.add(name)
        self._outputs = [[n for n in op.outputs if n in analysis.state.read] for op in analysis.ops]
        """By node: the outputs that anything reads."""
        self._activations = [[n for n in op.reads if n not in self._weights_only] for op in analysis.ops]
        self._parameters = [
            [n for n in op.reads if n in self._weights_only and n in self._depends] for op in analysis.ops
        ]
        self._linear: set[str] = set()
        self._lanes: set[str] = set()
        """What nodes in lanes give."""
        self._apart: set[int] = set()
        """Nodes of the regions that exist once per part as a whole, and nodes that read what has no mean."""
        self._choosing = any(
            (op.op_type in SELECTIONS or (op.op_type == "If" and op.domain == LEAVE))
            and not self._depends.isdisjoint(op.outputs)
            for op in analysis.ops
        )
        """Whether how many elements there are of something depends on parameters."""
        self._choose_modes()

    # -- kept indices -------------------------------------------------------------------------------------------

    def kept(self, name: str, part: int) -> Kept:
        """Kept indices of a tensor in a part.

        :raises NotAGrid: when the part's elements form no grid.
        """
        shape = self.analysis.shapes.shape.get(name)
        if shape is None:
            return ()
        result: list[NDArray[np.int64] | None] = [None] * len(shape)
        for f in self.analysis.fields(name):
            indices = self._indices(f, part)
            if indices is None:
                raise NotAGrid(name)
            for axis, kept in indices.items():
                have = result[axis]
                result[axis] = kept if have is None else np.intersect1d(have, kept, assume_unique=True)
        return tuple(result)

    def _indices(self, f: Field, part: int) -> dict[int, NDArray[np.int64]] | None:
        key = (id(f), part)
        if key not in self._kept:
            self._kept[key] = (f, self._compute(f, part))
        return self._kept[key][1]

    def _compute(self, f: Field, part: int) -> dict[int, NDArray[np.int64]] | None:
        here = self.parts.take(f)
        mask = (here == part) | (here == ANYWHERE)
        if mask.all():
            return {}
        axes = sorted(varying(f))
        result = {}
        grid = np.ones((1,) * f.ndim, bool)
        for axis in axes:
            along = mask.any(axis=tuple(a for a in range(f.ndim) if a != axis), keepdims=True)
            grid = grid & along
            if not along.all():
                result[axis] = np.flatnonzero(along)
        if not axes:
            return {0: np.zeros(0, np.int64)} if f.ndim else {}
        return result if bool((grid == mask).all()) else None

    # -- what is divided ----------------------------------------------------------------------------------------

    def divided(self, name: str) -> bool:
        """Whether some elements of a tensor belong to one part only."""
        return name in self._divided

    def replicated(self, name: str) -> bool:
        """Whether a tensor has, or is made of parameters that have, elements with a value of its own in every part."""
        if name not in self._depends:
            return False
        if name not in self._dealt:
            return True
        producer = self.analysis.producer.get(name)
        if producer is None or name not in self._weights_only:
            return False
        return any(self.replicated(n) for n in self.analysis.ops[producer].reads)

    def varies(self, name: str) -> bool:
        """Whether the parts hold different things under the tensor's name."""
        return self.divided(name) or name in self._depends

    def joinable(self, name: str) -> bool:
        """Whether the parts' pieces of a tensor, side by side, make up the tensor."""
        split = [f for f in self.analysis.fields(name) if id(f) in self._some]
        if len(split) != 1 or id(split[0]) not in self._all:
            return False
        if self._unequal(name):
            return False
        dynamic = self.analysis.shapes.dynamic_dims(name)
        return bool(varying(split[0])) and not any(dynamic[axis] for axis in varying(split[0]))

    def _unequal(self, name: str) -> bool:
        """Whether a tensor may be longer in one part than in another."""
        return self._choosing and name in self._depends and self.analysis.shapes.sized_by_data(name)

    def no_mean(self, name: str) -> str:
        """Why the parts' values of a tensor have no mean; empty if they have one."""
        if self.analysis.shapes.dtype.get(name) not in FLOATS:
            return "aren't floating-point numbers"
        return "differ in size, which depends on the data" if self._unequal(name) else ""

    # -- modes --------------------------------------------------------------------------------------------------

    def _choose_modes(self) -> None:
        """Find the tail.

        A meeting point whose input exists only in pieces is moved into the lanes, and so is one whose weight can't be
        divided by K because something else reads it.
        """
        weights = {i: found for i in range(len(self.analysis.ops)) if (found := self._scalable(i))}
        users = {name: self.readers(name) for found in weights.values() for name in found}
        self.scaled = {name for name, read in users.items() if all(name in weights.get(u, ()) for u in read)}
        rest = [i for i, op in enumerate(self.analysis.ops) if op.op_type in CONTRACTIONS and self.is_reduction(i)]
        rest = [i for i in rest if not any(self.divided(n) and self.replicated(n) for n in self._parameters[i])]
        self.ahead = ahead(self, [i for i in rest if i not in weights or not weights[i] <= self.scaled])
        weights.update({i: frozenset(way.initializers) for i, way in self.ahead.items()})
        users.update({n: {i for i, w in self.ahead.items() if n in w.initializers} for n in self.divided_ahead()})
        self.scaled |= self.divided_ahead()
        reductions = [
            i in weights and weights[i] <= self.scaled and all(self._averages(n) for n in self._parameters[i])
            for i in range(len(self.analysis.ops))
        ]
        self.unscaled = {i for i, found in enumerate(reductions) if self.is_reduction(i) and not found}
        regions = self.analysis.model.flat.outermost()
        while True:
            self._settle(reductions)
            torn = [region for region in regions if self._torn(region)]
            for region in torn:
                inside = range(region.start, region.stop)
                self._apart.update(inside)
                reductions[region.start : region.stop] = [False] * len(inside)
            if torn:
                continue
            meanless = [i for i, mode in enumerate(self.modes) if mode == "after_reduction" and self._reads_no_mean(i)]
            self._apart.update(meanless)
            if meanless:
                continue
            apart = [
                i
                for i in self.reductions
                if not all(self._at_hand(n) for n in self._activations[i])
                or any(not users[name] <= self.reductions for name in weights[i])
            ]
            if not apart:
                return
            for i in apart:
                reductions[i] = False

    def _reads_no_mean(self, i: int) -> bool:
        """Whether a node reads what every part has its own of, and what has no mean."""
        return any(not self.divided(n) and self.no_mean(n) for n in self._lanes.intersection(self._activations[i]))

    def _torn(self, region: Region) -> bool:
        """Whether an If, Loop or Scan must exist once per part as a whole.

        Something in it must, or contributions meet in it and what comes out is neither divided nor a mean.
        """
        inside = range(region.start, region.stop)
        if self._apart.issuperset(inside) or self.k == 1:
            return False
        ends = [n for i in inside[-len(region.leaves) :] for n in self._outputs[i] if n in self._depends]
        if any(self.modes[i] == "per_part" for i in inside):
            return True
        meets = not self.reductions.isdisjoint(inside)
        return meets and any(not self.divided(n) and n not in self.mean for n in ends)

    def divided_ahead(self, points: Container[int] | None = None) -> set[str]:
        """Initializers that are divided by K ahead of meeting points: of all that are, or of some."""
        chosen = [way for i, way in self.ahead.items() if points is None or i in points]
        return set().union(*(way.initializers for way in chosen))

    def _scalable(self, i: int) -> frozenset[str]:
        """Initializers to divide by K to divide the weight of a meeting point by K; none if it isn't one."""
        if not self.is_reduction(i):
            return frozenset()
        return frozenset().union(*(self.factors(n) or () for n in self._parameters[i] if self.divided(n)))

    def factors(self, name: str) -> frozenset[str] | None:
        """Initializers to divide by K to divide a pure tensor by K; None where no choice of them does."""
        analysis = self.analysis
        if not self.divided(name) or name not in self._depends:
            return None
        if name in analysis.model.initializers:
            return frozenset((name,))
        producer = analysis.producer[name]
        rule = analysis.rules[producer]
        names = [n for n in analysis.ops[producer].inputs if n]
        found = [self.factors(n) for n in names]
        if rule is None or rule.mean == "no":
            return None
        if rule.mean == "sum":
            known = [f for f in found if f is not None]
            return frozenset().union(*known) if len(known) == len(found) else None
        for i, factors in enumerate(found[:1] if rule.mean == "data" else found):
            rest = [self._origins(n) for j, n in enumerate(names) if j != i]
            others = set().union(*rest)
            if factors is not None and factors.isdisjoint(others) and not any(map(self.replicated, others)):
                return factors
        return None

    def _averages(self, name: str) -> bool:
        """Whether a tensor that each part makes of parameters is the mean of the parts' when made of their means.

        What is divided has no such mean.
        """
        if name not in self._depends or self.divided(name) or name in self.analysis.model.initializers:
            return True
        producer = self.analysis.producer[name]
        rule = self.analysis.rules[producer]
        names = [n for n in self.analysis.ops[producer].inputs if n]
        own = [n for n in names if n in self._depends]
        if rule is None or rule.mean == "no" or not all(map(self._averages, own)):
            return False
        return rule.mean == "sum" or (len(own) == 1 and (rule.mean == "scale" or own == names[:1]))

    def _origins(self, name: str) -> set[str]:
        """Initializers that a pure tensor is made of."""
        if name in self.analysis.model.initializers:
            return {name}
        producer = self.analysis.producer[name]
        return set().union(*(self._origins(n) for n in self.analysis.inputs(producer)))

    def readers(self, name: str) -> set[int]:
        """Operators on activations that an initializer reaches."""
        result: set[int] = set()
        for i in self.analysis.consumers.get(name, []):
            if self._activations[i] or not self.analysis.rules[i]:
                result.add(i)
            else:
                result.update(*(self.readers(n) for n in self.analysis.ops[i].outputs))
        return result

    def _at_hand(self, name: str) -> bool:
        """Whether a divided tensor exists over all units, or can be joined."""
        producer = self.analysis.producer.get(name)
        return producer is None or self.modes[producer] != "per_part" or not self.divided(name) or self.joinable(name)

    def _settle(self, reductions: list[bool]) -> None:
        """Modes, given which nodes may be where the parts' contributions meet."""
        analysis = self.analysis
        self.modes, self.reductions, self.mean, self._linear, self._lanes = [], set(), set(), set(), set()
        for i in range(len(analysis.ops)):
            if reductions[i] or self._is_linear(i):
                self._linear.update(analysis.ops[i].outputs)
        tail = self._tail(reductions)
        for i in range(len(analysis.ops)):
            if tail[i]:
                self.modes.append("after_reduction")
                if reductions[i]:
                    self.reductions.add(i)
                if reductions[i] or self._is_mean(i):
                    self.mean.update(analysis.ops[i].outputs)
            else:
                self.modes.append(self._mode(i))
            if self.modes[i] == "per_part":
                self._lanes.update(analysis.ops[i].outputs)
                self.mean.update(n for n in analysis.ops[i].outputs if n and not self.divided(n))

    def is_reduction(self, i: int) -> bool:
        """Whether units meet at the node by weights, and what comes out is in every part."""
        rule = self.analysis.rules[i]
        return (
            rule is not None
            and rule.kind in WEIGHTED
            and i not in self.duplicated
            and bool(self._parameters[i])
            and not self._divided.isdisjoint(self._activations[i])
            and self._divided.isdisjoint(self._outputs[i])
        )

    def _is_linear(self, i: int) -> bool:
        """Whether the node passes a mean on, as far as its operator and inputs tell."""
        rule = self.analysis.rules[i]
        if rule is None or rule.mean == "no":
            return False
        names = [n for n in self.analysis.ops[i].inputs if n]
        means = [n in self._linear for n in names]
        if rule.mean == "sum":
            return any(means) and all(
                m or n not in self._depends or (n in self._weights_only and not self.divided(n) and self._averages(n))
                for m, n in zip(means, names, strict=True)
            )
        rest = [n for m, n in zip(means, names, strict=True) if not m]
        if any(n in self._depends for n in rest):
            return False
        return sum(means) == 1 and (rule.mean == "scale" or means[0])

    def _is_mean(self, i: int) -> bool:
        """The same once it is known which tensors are means."""
        return self._is_linear(i) and all(
            n in self.mean or n in self._weights_only or n not in self._depends for n in self.analysis.ops[i].reads
        )

    def _tail(self, reductions: list[bool]) -> list[bool]:
        """Nodes all of whose successors are free of parameters, but for biases on means."""
        analysis = self.analysis
        tail, ends = [False] * len(analysis.ops), set(analysis.model.outputs)
        for i in reversed(range(len(analysis.ops))):
            outputs = self._outputs[i]
            users = [u for n in outputs for u in analysis.consumers.get(n, [])]
            if not all(tail[u] or self._untrained(u) for u in users) or self._untrained(i):
                continue
            if users and all(map(self._untrained, users)) and ends.isdisjoint(outputs):
                continue
            if self._weights_only.issuperset(outputs) or not self._divided.isdisjoint(outputs):
                continue
            if i in self.duplicated or i in self._apart:
                continue
            if not reductions[i] and not self._divided.isdisjoint(self._activations[i]):
                continue
            rule = analysis.rules[i]
            bias = rule is not None and rule.mean == "sum" and all(n in self._linear for n in outputs)
            if self._parameters[i] and not reductions[i] and not bias:
                continue
            tail[i] = True
        return tail

    def _untrained(self, i: int) -> bool:
        """Whether a node stands once because nothing that comes out of it, such as a size, depends on parameters."""
        return self._depends.isdisjoint(self._outputs[i]) and i not in self._apart

    def _mode(self, i: int) -> Mode:
        analysis = self.analysis
        outputs = self._outputs[i]
        if self.k == 1 or self._untrained(i):
            return "joint"
        if i in self.duplicated or i in self._apart:
            return "per_part"
        if self._weights_only.issuperset(outputs):
            return "joint" if all(self._is_block(n, i) for n in outputs) else "per_part"
        if not self._weights_only.isdisjoint(self._lanes.intersection(analysis.ops[i].reads)):
            return "per_part"
        parameters = self._parameters[i]
        if any(self.replicated(n) for n in parameters):
            return "per_part"
        rule = analysis.rules[i]
        weighted = rule is not None and rule.kind in WEIGHTED and bool(parameters)
        if weighted and any(self.replicated(n) for n in outputs) and any(map(self.divided, self._activations[i])):
            return "per_part"
        if any(not (weighted and self.joinable(name)) for name in self._lanes.intersection(self._activations[i])):
            return "per_part"
        return "joint" if all(self.divided(n) for n in outputs if n in self._depends) else "per_part"

    def _is_block(self, name: str, i: int) -> bool:
        """Whether a tensor made of parameters by node `i` has zeros between parts where those it is made of have."""
        inputs = [n for n in self.analysis.ops[i].inputs if n]
        if not self._lanes.isdisjoint(inputs):
            return False
        if not self._has_blocks(name):
            return True
        rule = self.analysis.rules[i]
        linear = "no" if rule is None else rule.mean
        if linear == "data":
            return self._has_blocks(inputs[0])
        return linear != "no" and (any if linear == "scale" else all)(self._has_blocks(n) for n in inputs)

    def _has_blocks(self, name: str) -> bool:
        """Whether a tensor is divided along several axes, each on its own."""
        return sum(id(f) in self._some for f in self.analysis.fields(name)) > 1


class NotAGrid(Exception):
    """The elements of a tensor that a part holds form no grid."""
