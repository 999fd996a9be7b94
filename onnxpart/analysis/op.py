"""What a rule sees of the operator that it is about, and what is known while the graph is walked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxpart.analysis.labels import Choice, Field, Fields, Labels, Pair, TooMany, collapse
from onnxpart.errors import ModelError
from onnxpart.ir.flatten import ENTER, LEAVE
from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured
from onnxpart.ir.shapes import Shape, Shapes
from onnxpart.storage.rows import Array


@dataclass(frozen=True)
class Weight:
    """A contraction's weight: the tensor that enters it, and which of that tensor's axes are outputs.

    `gain` is the variance, times fan-in, of fresh values to train from: 2 makes up for a rectifier, 1 keeps what is fed
    back from growing.
    """

    tensor: str
    outputs: tuple[int, ...]
    gain: float = 2.0


@dataclass(frozen=True, eq=False)
class Trial:
    """A value at trial sizes of the symbolic dimensions, and which of its elements `varies` with them.

    It is no array, so that none takes it for a constant.
    """

    value: Array
    varies: NDArray[np.bool_]


@dataclass(frozen=True)
class Carried:
    """What a state carries through a loop: the axes of each of its fields, and whether it depends on parameters."""

    axes: frozenset[frozenset[int]] = frozenset()
    depends_on_parameters: bool = False

    def joined(self, more: Iterable[frozenset[int]], depends_on_parameters: bool) -> Carried:
        """What it carries where more comes in as well.

        :param more: the axes of each field that comes in; those with an axis in common become one.
        :param depends_on_parameters: whether what comes in does.
        """
        found: list[frozenset[int]] = []
        for axes in [*self.axes, *more]:
            touching = [other for other in found if other & axes]
            found = [other for other in found if not other & axes]
            found.append(axes.union(*touching))
        return Carried(frozenset(axes for axes in found if axes), self.depends_on_parameters or depends_on_parameters)


@dataclass
class State:
    """Everything known so far while the graph is walked.

    `fields` holds each tensor's label fields, `weights_only` the initializers and the tensors made of them and of
    shapes alone, `source` the initializers that a tensor is put together from, `depends_on_parameters` the
    trainable initializers and the tensors that depend on any, `weights` the weight of a contraction by initializer,
    `biases` those of contractions, `barriers` reasons by node index, `grouped` the labels of a grouped weight's
    rows and columns and whether it is a transposed convolution's, `read` the tensors that an operator reads, and
    the outputs, `shaped` those of which only the shape is read, `carried` what the states of loops carry, by their
    names in the body.
    """

    model: Model
    shapes: Shapes
    labels: Labels = field(default_factory=Labels)
    fields: dict[str, Fields] = field(default_factory=dict)
    weights_only: set[str] = field(default_factory=set)
    source: dict[str, frozenset[str]] = field(default_factory=dict)
    depends_on_parameters: set[str] = field(default_factory=set)
    weights: dict[str, Weight] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    barriers: dict[int, str] = field(default_factory=dict)
    grouped: dict[str, tuple[Field, Field, bool]] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    shaped: set[str] = field(default_factory=set)
    carried: dict[str, Carried] = field(default_factory=dict)

    def trial(self) -> State:
        """A state to go on from without this one seeing it; its labels are numbered from where this one's end."""
        result = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | set):
                setattr(result, name, copy(value))
        result.labels = Labels(self.labels.count, mixed=[*self.labels.mixed])
        return result

    def of(self, name: str) -> Fields:
        """The fields of a tensor; an initializer gets fresh labels along each axis when it is first asked for.

        :raises ModelError: when an initializer has too many.
        """
        if name not in self.fields:
            self.fields[name] = self._initializer(name)
        return self.fields[name]

    def sources(self, name: str) -> frozenset[str]:
        """The initializers that a tensor is, or is put together from."""
        return frozenset((name,)) if name in self.model.initializers else self.source.get(name, frozenset())

    def _initializer(self, name: str) -> Fields:
        """Fresh labels along each axis of an initializer, one field to an axis; none for constants.

        :raises ModelError: when there are too many.
        """
        if name not in self.model.initializers or not self.model.has_labels(name):
            return ()
        shape = self.shapes.shape[name]
        rank = len(shape)
        try:
            return tuple(
                [
                    self.labels.fresh((1,) * axis + (size,) + (1,) * (rank - axis - 1))
                    for axis, size in enumerate(shape)
                    if size > 1
                ]
            )
        except TooMany as many:
            raise ModelError(
                f"{self.model.name}: initializer {name!r} is too large ({many}); "
                "use --outputs to cut the network off before what reads it."
            ) from None


def qualified(domain: str, op_type: str) -> str:
    """The name of an operator among those of all domains; ONNX's own have none in front."""
    return f"{domain}.{op_type}" if domain not in ("", "ai.onnx") else op_type


_OURS = frozenset(("", "ai.onnx", ENTER, LEAVE))
"""The domains of operators that ONNX's own domain defines, markers among them."""
_VALUES: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    onnx.AttributeProto.INT: attrgetter("i"),
    onnx.AttributeProto.INTS: lambda a: a.ints[:],
}
"""Quicker ways to what most attributes hold."""


class Op:
    """One operator of the graph, with what is known of its inputs and outputs.

    `op_type` is the operator's name (see `qualified`), `schema_domain` the domain that defines it: for a marker that of
    its If, Loop or Scan. `inputs` and `outputs` are names, empty where an optional one is left out. What a node says
    is read once: that takes long.
    """

    def __init__(self, state: State, index: int, node: onnx.NodeProto) -> None:
        self.state = state
        self.index = index
        self.node = node
        self.labels = state.labels
        self.domain = node.domain
        self.schema_domain = "" if self.domain in _OURS else self.domain
        self.op_type = qualified(self.schema_domain, node.op_type)
        self.inputs = tuple(node.input[:])
        self.outputs = tuple(node.output[:])
        self.reads = [name for name in self.inputs if name]
        """The tensors that the operator reads, those of its subgraphs included."""
        if inside := captured(node):
            self.reads += [name for name in inside if name not in self.reads]
        self.followed: set[int] = set()
        """The inputs whose labels the rule has asked for."""

    @property
    def title(self) -> str:
        """How messages name the operator."""
        name = self.node.name or "-> " + next(n for n in self.outputs if n)
        return f"{self.node.op_type} {name!r}"

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute name -> Python value."""
        return {a.name: _VALUES.get(a.type, helper.get_attribute_value)(a) for a in self.node.attribute}

    @property
    def opset(self) -> int:
        """Version of the operator's domain."""
        return self.state.model.opsets.get(self.schema_domain, 1)

    def has(self, i: int) -> bool:
        """Whether the optional input `i` is there."""
        return i < len(self.inputs) and bool(self.inputs[i])

    def fields(self, i: int) -> Fields:
        """Label fields of input `i`; a rule that doesn't ask for them leaves the input in every part."""
        self.followed.add(i)
        name = self.inputs[i] if i < len(self.inputs) else ""
        return self.state.of(name) if name else ()

    def shape(self, i: int) -> Shape:
        """Shape of input `i`."""
        return self._shape(self.inputs[i])

    def out_shape(self, j: int = 0) -> Shape:
        """Shape of output `j`."""
        return self._shape(self.outputs[j])

    def _shape(self, name: str) -> Shape:
        """Shape of a tensor.

        :raises Barrier: when it isn't known.
        """
        found = self.state.shapes.shape.get(name)
        if found is None:
            raise Barrier(f"the shape of {name!r} isn't known")
        return found

    def dynamic(self, i: int) -> tuple[bool, ...]:
        """For each axis of input `i`, whether its size depends on a symbolic dimension."""
        return self.state.shapes.dynamic_dims(self.inputs[i])

    def value(self, i: int) -> Array | None:
        """Value of input `i` where it is known, and the same at all sizes of the symbolic dimensions."""
        found = self.trial(i)
        return None if found is None or found.varies.any() else found.value

    def trial(self, i: int) -> Trial | None:
        """Value of input `i` at trial sizes, where it is known there."""
        name = self.inputs[i] if self.has(i) else ""
        value = self.state.shapes.value(name) if name else None
        return None if value is None else Trial(value, self.state.shapes.dynamic_value(name))

    def ints(self, i: int, attribute: str) -> list[int] | None:
        """A list of integers that older operators take as an attribute and newer ones as input `i`.

        :returns: the integers; None where they are absent, or not the same at all sizes of the symbolic dimensions.
        """
        if attribute in self.attributes:
            value = self.attributes[attribute]
            return list(value) if isinstance(value, Sequence) else [int(value)]
        known = self.value(i)
        return None if known is None else [int(v) for v in np.ravel(known)]

    def weights_only(self, i: int) -> bool:
        """Whether input `i` is made of initializers and shapes alone."""
        return self.inputs[i] in self.state.weights_only

    def constant(self, i: int) -> bool:
        """Whether input `i` is made of the formula's constants and shapes alone."""
        return self.weights_only(i) and self.inputs[i] not in self.state.depends_on_parameters

    def trainable(self, i: int) -> bool:
        """Whether input `i` is made of initializers alone, a trainable one among them."""
        return self.weights_only(i) and self.inputs[i] in self.state.depends_on_parameters

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front.

        :param default: where there is none. :param rank: number of axes; None for that of the first input.
        """
        axis = int(self.attributes.get("axis", default))
        return axis + (len(self.shape(0)) if rank is None else rank) if axis < 0 else axis

    def share(self, fields: Iterable[Field], reason: str = "") -> None:
        """All labels in `fields` belong to every part; an empty reason means that this is nothing to report."""
        for f in fields:
            self.labels.share(f, self.index, reason)

    def choose(
        self,
        reason: str,
        *alternatives: tuple[Pair, ...],
        drop: Field | None = None,
        otherwise: tuple[Pair, ...] = (),
        sides: Fields = (),
    ) -> None:
        """Leave a soft tie to the plan (see `Choice`).

        :raises ValueError: when shapes don't broadcast.
        """
        for a, b in (pair for ties in alternatives for pair in ties):
            np.broadcast_shapes(a.shape, b.shape)
        self.labels.choices.append(Choice(self.index, reason, alternatives, drop, False, otherwise, sides))

    def choose_whole(self, reason: str, f: Field, axes: Iterable[int], result: bool = True) -> Field:
        """Make a soft tie between units that are mixed along some axes of a field.

        :param reason: why they want to stay together. :param f: the field. :param axes: the axes that are mixed.
        :param result: the mixture is what the operator gives; where it is in every part, the field may differ along
            `axes` only.
        :returns: the field of the mixtures, of size 1 along `axes`.
        """
        mixed = frozenset(axes)
        r = self.labels.mix([1 if a in mixed else size for a, size in enumerate(f.shape)])
        rest = collapse(f, mixed) if result and r.size > 1 else ()
        self.labels.choices.append(Choice(self.index, reason, (((f, r),),), r, True, rest))
        return r


class Barrier(Exception):
    """Raised by a rule that can't tell what its operator does to the labels; the message says why."""
