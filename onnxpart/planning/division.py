"""Which indices of every tensor a part keeps, and what that makes of the tensor: divided, replicated, joinable."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import ByIdentity, Field, extent, varying
from onnxpart.analysis.rewrite import Kept
from onnxpart.analysis.rules.table import Mean
from onnxpart.ir.flatten import LEAVE
from onnxpart.ir.shapes import SELECTIONS
from onnxpart.ir.trainable import FLOATS
from onnxpart.planning.assign import ANYWHERE, Parts

WEIGHTED = ("contraction", "recurrent")
"""The kinds of operators that have weights between units."""
Along = dict[int, NDArray[np.int64]]
"""Kept indices along those axes of which not all are kept."""


class NotAGrid(Exception):
    """The elements of a tensor that a part holds form no grid."""


@dataclass(frozen=True, eq=False)
class Division:
    """What the parts hold of every tensor.

    `parts` is the part of each label (ANYWHERE: every part has it), `duplicated` the mixes, by node index, that exist
    once per part.
    """

    analysis: Analysis
    parts: Parts
    k: int
    duplicated: frozenset[int]
    _kept: ByIdentity[Field, dict[int, Along | None]] = field(default_factory=ByIdentity, init=False, repr=False)
    """What has been asked for so far, by field and part; None where it is no grid."""

    # -- kept indices -------------------------------------------------------------------------------------------

    def kept(self, name: str, part: int) -> Kept:
        """Kept indices of a tensor in a part.

        :returns: for each axis ascending indices, int64, or None: all; nothing where the shape isn't known.
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

    def _indices(self, f: Field, part: int) -> Along | None:
        if f not in self._kept:
            self._kept[f] = {}
        known = self._kept[f]
        if part not in known:
            known[part] = self._compute(f, part)
        return known[part]

    def _compute(self, f: Field, part: int) -> Along | None:
        """Kept indices of one field: those along each axis, where all that is at them is kept and nothing else."""
        here = self.parts.take(f)
        mask = (here == part) | (here == ANYWHERE)
        if mask.all():
            return {}
        axes = sorted(varying(f))
        if len(axes) == 1:
            return {axes[0]: np.flatnonzero(mask)}
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

    @cached_property
    def _held(self) -> tuple[dict[str, list[Field]], set[str]]:
        """The fields with labels that belong to one part each, by tensor; the tensors with one that has no others."""
        fields = self.analysis.all_fields()
        least, most = (ends.tolist() for ends in extent(self.parts, fields))
        found = zip(fields, least, most, strict=True)
        split = {id(f): first > ANYWHERE for f, first, last in found if last > ANYWHERE}
        divided: dict[str, list[Field]] = {}
        dealt = set()
        for name, own in self.analysis.state.fields.items():
            for f in own:
                wholly = split.get(id(f))
                if wholly is not None:
                    divided.setdefault(name, []).append(f)
                if wholly:
                    dealt.add(name)
        return divided, dealt

    @cached_property
    def _divided(self) -> dict[str, list[Field]]:
        return self._held[0]

    @cached_property
    def _dealt(self) -> set[str]:
        return self._held[1]

    def divided(self, name: str) -> bool:
        """Whether some elements of a tensor belong to one part only."""
        return name in self._divided

    def divided_fields(self, name: str) -> list[Field]:
        """The fields along which a tensor is divided."""
        return self._divided.get(name, [])

    def any_divided(self, names: list[str]) -> bool:
        """Whether any of some tensors is divided."""
        return not self._divided.keys().isdisjoint(names)

    def replicated(self, name: str) -> bool:
        """Whether a tensor has, or is made of parameters that have, elements with a value of its own in every part."""
        if name not in self.analysis.state.depends_on_parameters:
            return False
        if name not in self._dealt:
            return True
        producer = self.analysis.producer.get(name)
        if producer is None or name not in self.analysis.state.weights_only:
            return False
        return any(self.replicated(n) for n in self.analysis.ops[producer].reads)

    def varies(self, name: str) -> bool:
        """Whether the parts hold different things under the tensor's name."""
        return self.divided(name) or name in self.analysis.state.depends_on_parameters

    def joinable(self, name: str) -> bool:
        """Whether the parts' pieces of a tensor, side by side, make up the tensor."""
        split = self.divided_fields(name)
        if len(split) != 1 or name not in self._dealt or self._unequal(name):
            return False
        dynamic = self.analysis.shapes.dynamic_dims(name)
        return bool(varying(split[0])) and not any(dynamic[axis] for axis in varying(split[0]))

    def passes_mean(self, i: int) -> Mean:
        """Whether the mean over parts passes through operator `i`, as its row says: never into what has no mean."""
        rule = self.analysis.rules[i]
        if rule is None or rule.mean == "no" or any(map(self.no_mean, self.analysis.used_outputs[i])):
            return "no"
        return rule.mean

    def no_mean(self, name: str) -> str:
        """Why the parts' values of a tensor have no mean; empty if they have one."""
        if self.analysis.shapes.dtype.get(name) not in FLOATS:
            return "aren't floating-point numbers"
        return "differ in size, which depends on the data" if self._unequal(name) else ""

    def _unequal(self, name: str) -> bool:
        """Whether a tensor may be longer in one part than in another."""
        analysis = self.analysis
        return self._selects and name in analysis.state.depends_on_parameters and analysis.shapes.sized_by_data(name)

    @cached_property
    def _selects(self) -> bool:
        """Whether how many elements there are of something depends on parameters."""
        depends = self.analysis.state.depends_on_parameters
        return any(
            (op.op_type in SELECTIONS or (op.op_type == "If" and op.domain == LEAVE))
            and not depends.isdisjoint(op.outputs)
            for op in self.analysis.ops
        )

    # -- operators ----------------------------------------------------------------------------------------------

    @cached_property
    def meetings(self) -> frozenset[int]:
        """The operators at which units meet by weights, and what comes out is in every part."""
        analysis, divided = self.analysis, self._divided.keys()
        return frozenset(
            i
            for i, rule in enumerate(analysis.rules)
            if rule is not None
            and rule.kind in WEIGHTED
            and i not in self.duplicated
            and analysis.parameters[i]
            and not divided.isdisjoint(analysis.activations[i])
            and divided.isdisjoint(analysis.used_outputs[i])
        )
