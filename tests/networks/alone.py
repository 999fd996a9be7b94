"""One operator by itself, with fields written down for its inputs: what its rule makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxpart.analysis.labels import Field, Fields, solve
from onnxpart.analysis.labels import flatten as ends
from onnxpart.analysis.op import Op, State
from onnxpart.analysis.rules.table import Rule, find
from onnxpart.frontend.load import load
from onnxpart.ir.infer import infer
from tests.networks.net import Array, Net


class Alone:
    """An operator between inputs of given shapes and its outputs; ``weights`` are initializers, arrays or shapes."""

    def __init__(
        self,
        op_type: str,
        shapes: Sequence[Sequence[int]],
        weights: Sequence[Array | Sequence[int]] = (),
        outputs: int = 1,
        opset: int = 17,
        **attributes: Any,
    ) -> None:
        inputs = [f"x{i}" for i in range(len(shapes))]
        n = Net(*zip(inputs, shapes, strict=True), opset=opset)
        n.random("unread", 2)  # a model must have a weight
        given = [n.array("w", w) if isinstance(w, np.ndarray) else n.random("w", *w) for w in weights]
        self.results = n.ops(op_type, *inputs, *given, count=outputs, name="op", **attributes)
        graph = helper.make_graph(
            n.nodes,
            "alone",
            n.inputs,
            [helper.make_empty_tensor_value_info(name) for name in self.results],
            list(n.initializers.values()),
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        model = load(onnx.shape_inference.infer_shapes(proto))
        state = State(model, infer(model), weights_only=set(model.initializers))
        state.depends_on_parameters = set(filter(model.trainable, model.initializers))
        state.read = {*inputs, *given, *self.results}
        self.op = Op(state, 0, model.flat.nodes[0])

    @property
    def rule(self) -> Rule:
        rule = find(self.op)
        assert isinstance(rule, Rule), rule
        return rule

    def label(self, i: int, *axes: int) -> Field:
        """Give input `i` a field of new labels along some axes, behind those that it has."""
        f = self.op.labels.fresh([n if axis in axes else 1 for axis, n in enumerate(self.op.shape(i))])
        self.give({i: (*self.op.fields(i), f)})
        return f

    def give(self, fields: Mapping[int, Fields]) -> None:
        """Give inputs these fields."""
        self.op.state.fields.update({self.op.inputs[i]: f for i, f in fields.items()})

    def run(self) -> list[Fields]:
        """The fields of the outputs."""
        return self.rule.labels(self.op)

    def classes(self) -> Field:
        """The unit class of each label, by the ties made so far and what is shared."""
        labels = self.op.labels
        shared = [(f, np.zeros((1,) * f.ndim, np.int32)) for f, _, _ in labels.pins]
        return solve(labels.count, *ends([*labels.ties, *shared]))

    def units(self, f: Field) -> list[int]:
        """Classes of a field, one behind the other, numbered as they come; what every part has is -1."""
        found = self.classes()[f].ravel().tolist()
        order = {c: i for i, c in enumerate(dict.fromkeys(c for c in found if c))}
        return [order.get(c, -1) for c in found]

    def same(self, f: Field, g: Field) -> bool:
        """Whether two fields are the same units place by place."""
        found = self.classes()
        return np.array_equal(*np.broadcast_arrays(found[f], found[g]))

    def reasons(self) -> list[str]:
        """Why labels are shared."""
        return [reason for _, _, reason in self.op.labels.pins if reason]

    def soft(self) -> list[str]:
        """The soft ties that are left to a plan."""
        return [choice.reason for choice in self.op.labels.choices]
