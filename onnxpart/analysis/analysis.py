"""What is known about a model before K is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from onnxpart.analysis.labels import Field, Fields, Labels, each_once
from onnxpart.analysis.op import Op, State
from onnxpart.analysis.rules.table import Rule
from onnxpart.ir.model import Model
from onnxpart.ir.shapes import Shapes


@dataclass
class Analysis:
    """What is known about a model before K is chosen.

    `ops` are the operators in graph order, `rules` their rules (None: a barrier), `virtual` the tensors within a
    shuffle (tensor -> the tensor where the shuffle starts), `consumers` the operators that read a tensor.
    """

    model: Model
    shapes: Shapes
    state: State
    ops: list[Op] = field(default_factory=list)
    rules: list[Rule | None] = field(default_factory=list)
    consumers: dict[str, list[int]] = field(default_factory=dict)
    producer: dict[str, int] = field(default_factory=dict)
    virtual: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """All labels and ties."""
        return self.state.labels

    @property
    def barriers(self) -> dict[str, str]:
        """Barrier -> reason, by operator title."""
        return {self.ops[i].title: reason for i, reason in self.state.barriers.items()}

    def fields(self, name: str) -> Fields:
        """Label fields of a tensor."""
        return self.state.fields.get(name, ())

    def all_fields(self) -> list[Field]:
        """The label fields of all tensors, each once."""
        return each_once(chain.from_iterable(self.state.fields.values()))

    @cached_property
    def used_outputs(self) -> list[list[str]]:
        """By operator: the outputs that anything reads."""
        return [[n for n in op.outputs if n in self.state.read] for op in self.ops]

    @cached_property
    def activations(self) -> list[list[str]]:
        """By operator: what it reads that isn't made of weights alone."""
        return [[n for n in op.reads if n not in self.state.weights_only] for op in self.ops]

    @cached_property
    def parameters(self) -> list[list[str]]:
        """By operator: what it reads that is made of weights alone and depends on parameters."""
        weights = self.state.weights_only & self.state.depends_on_parameters
        return [[n for n in op.reads if n in weights] for op in self.ops]

    def inputs(self, index: int) -> list[str]:
        """Tensors that an operator reads, those of its subgraphs included."""
        return self.ops[index].reads
