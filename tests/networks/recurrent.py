"""Recurrent operators in every form that ONNX has, for the networks of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from tests.networks.net import Attribute, Net

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
State = Literal["none", "initializer", "learned", "zeros", "input", "activation"]
Lengths = Literal["none", "initializer", "input"]
BATCH, FEATURES, SIZE = 2, 6, 6
LISTS = {"RNN": ["Relu"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["Sigmoid", "ScaledTanh", "Affine"]}
"""Activations other than the usual ones."""
ALPHA_BETA: dict[str, dict[str, Attribute]] = {
    "RNN": {},
    "GRU": {"activation_alpha": [0.3], "activation_beta": [0.4]},
    "LSTM": {"activation_alpha": [1.2, 0.8], "activation_beta": [0.7, 0.1]},
}


@dataclass(frozen=True)
class Form:
    """A recurrent operator: which of the optional inputs and outputs (of y, h, c) it has, and its attributes.

    `h` and `c` say where the first states come from; the cell's is left out for operators that have none.
    """

    op_type: str
    direction: str = "forward"
    outputs: str = "y"
    bias: bool = True
    lengths: Lengths = "none"
    h: State = "none"
    c: State = "none"
    peepholes: bool = False
    layout: int = 0
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        """1, or 2 where it goes both ways."""
        return 2 if self.direction == "bidirectional" else 1


def recur(n: Net, form: Form, x: str, features: int, states: Mapping[str, str], *, name: str = "cell") -> list[str]:
    """The operator of a form on x ``[T, N, features]``, or ``[N, T, features]`` with layout 1.

    :param states: names of the first states by output (h, c), and of the lengths (lengths).
    :returns: the names of the outputs that the form has, the sequence first.
    """
    d, gates = form.directions, GATES[form.op_type]
    rows = gates * SIZE
    inputs = [
        x,
        n.random(f"{name}.w", d, rows, features, spread=features**-0.5),
        n.random(f"{name}.r", d, rows, SIZE, spread=SIZE**-0.5),
        n.random(f"{name}.b", d, 2 * rows) if form.bias else "",
        states.get("lengths", ""),
        states.get("h", ""),
    ]
    if form.op_type == "LSTM":
        inputs += [states.get("c", ""), n.random(f"{name}.p", d, 3 * SIZE) if form.peepholes else ""]
    settings: dict[str, Attribute] = {"hidden_size": SIZE, "direction": form.direction, **form.attributes}
    if form.layout:
        settings["layout"] = 1
    held = "yhc" if form.op_type == "LSTM" else "yh"
    outputs = [n.name(f"{name}.{o}") if o in form.outputs else "" for o in held]
    while not outputs[-1]:
        del outputs[-1]
    while not inputs[-1]:
        del inputs[-1]
    n.nodes.append(helper.make_node(form.op_type, inputs, outputs, name=name, **settings))
    return [o for o in outputs if o]


def first_state(n: Net, kind: State, form: Form, name: str, unit: str) -> str:
    """A first state ``[D, N, SIZE]`` (layout 1: ``[N, D, SIZE]``); `unit` is an activation ``[N, SIZE]``."""
    d = form.directions
    shape = (BATCH, d, SIZE) if form.layout else (d, BATCH, SIZE)
    if kind == "initializer":
        return n.random(name, *shape)
    if kind == "learned":
        row = n.random(name, *((1, d, SIZE) if form.layout else (d, 1, SIZE)))
        return n.op("Expand", row, n.ints(*shape))
    if kind == "zeros":
        return n.op("ConstantOfShape", n.ints(*shape))
    if kind == "input":
        n.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name
    one = n.op("Reshape", unit, n.ints(BATCH, 1, SIZE) if form.layout else n.ints(1, BATCH, SIZE))
    return n.op("Concat", *[one] * d, axis=1 if form.layout else 0)


def network(form: Form, opset: int = 17, cells: int = 1) -> ModelProto:
    """x ``[T, N, 3]`` to logits ``[N, 4]``: a linear layer, recurrent ones, and a linear one on all their outputs."""
    batch_first = form.layout == 1
    n = Net(("x", (BATCH, "T", 3) if batch_first else ("T", BATCH, 3)), opset=opset)
    h = n.op("Tanh", n.op("MatMul", "x", n.random("before", 3, FEATURES, spread=0.6)))
    time = 1 if batch_first else 0
    last = n.op("Squeeze", n.op("Gather", h, n.ints(-1), axis=time), *_axes(n, time), **_axes_attribute(n, time))
    features, found = FEATURES, []
    for i in range(cells):
        states = {
            key: first_state(n, kind, form, f"{key}{i}", last)
            for key, kind in (("h", form.h), ("c", form.c))
            if kind != "none"
        }
        if form.lengths == "initializer":
            states["lengths"] = n.array("lengths", np.asarray([2, 1], np.int32))
        elif form.lengths == "input":
            if i == 0:
                n.inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (BATCH,)))
            states["lengths"] = "lengths"
        outputs = recur(n, form, h, features, states, name=f"cell{i}" if cells > 1 else "cell")
        held = [o for o in "yhc" if o in form.outputs]
        found = [_flat(n, o, kind, form) for o, kind in zip(outputs, held, strict=True)]
        if "y" in form.outputs:
            h, features = found[0], form.directions * SIZE
    if "y" in form.outputs:
        found[0] = n.op("Gather", found[0], n.array("end", np.asarray(0)), axis=time)
    together = n.op("Concat", *found, axis=1)
    return n.model(n.linear(together, len(found) * form.directions * SIZE, 4, name="logits"), shape=(BATCH, 4))


def _axes(n: Net, axis: int) -> list[str]:
    return [n.ints(axis)] if n.opset >= 13 else []


def _axes_attribute(n: Net, axis: int) -> dict[str, Attribute]:
    return {} if n.opset >= 13 else {"axes": [axis]}


def _flat(n: Net, value: str, kind: str, form: Form) -> str:
    """An output with its directions side by side: ``[.., D * SIZE]``."""
    if kind == "y":
        turned = value if form.layout else n.op("Transpose", value, perm=[0, 2, 1, 3])
        return n.op("Reshape", turned, n.ints(0, 0, form.directions * SIZE))
    turned = value if form.layout else n.op("Transpose", value, perm=[1, 0, 2])
    return n.op("Reshape", turned, n.ints(BATCH, form.directions * SIZE))


def time_first(model: ModelProto) -> ModelProto:
    """The same network with layout 0 throughout: ONNX Runtime knows no other."""
    result = ModelProto()
    result.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        layout = next((a for a in node.attribute if a.name == "layout"), None)
        if layout is None or layout.i == 0:
            nodes.append(node)
            continue
        node.attribute.remove(layout)
        behind = []
        for i in (0, 5, 6):
            if i < len(node.input) and node.input[i]:
                turned = f"{node.name}.turned{i}"
                nodes.append(helper.make_node("Transpose", [node.input[i]], [turned], perm=[1, 0, 2]))
                node.input[i] = turned
        for j, name in enumerate(node.output):
            if name:
                raw = f"{node.name}.raw{j}"
                behind.append(helper.make_node("Transpose", [raw], [name], perm=[2, 0, 1, 3] if j == 0 else [1, 0, 2]))
                node.output[j] = raw
        nodes += [node, *behind]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result


@st.composite
def forms(draw: st.DrawFn) -> tuple[Form, int]:
    """A form, and an operator set that knows it."""
    op_type = draw(st.sampled_from(sorted(GATES)))
    cell = op_type == "LSTM"
    states: st.SearchStrategy[State] = st.sampled_from(
        ("none", "initializer", "learned", "zeros", "input", "activation")
    )
    lengths: st.SearchStrategy[Lengths] = st.sampled_from(("none", "initializer", "input"))
    direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    attributes: dict[str, Any] = {}
    if draw(st.booleans()):
        times = 2 if direction == "bidirectional" else 1
        attributes["activations"] = LISTS[op_type] * times
        attributes |= {key: [*value] * times for key, value in ALPHA_BETA[op_type].items()}
    if draw(st.booleans()):
        attributes["clip"] = 0.7
    if cell and draw(st.booleans()):
        attributes["input_forget"] = 1
    if op_type == "GRU" and draw(st.booleans()):
        attributes["linear_before_reset"] = 1
    held = ("y", "h", "c", "yh", "yc", "hc", "yhc") if cell else ("y", "h", "yh")
    layout = draw(st.integers(0, 1))
    form = Form(
        op_type=op_type,
        direction=direction,
        outputs=draw(st.sampled_from(held)),
        bias=draw(st.booleans()),
        lengths=draw(lengths),
        h=draw(states),
        c=draw(states) if cell else "none",
        peepholes=cell and draw(st.booleans()),
        layout=layout,
        attributes=attributes,
    )
    return form, draw(st.sampled_from((14, 21, 22) if layout else (9, 13, 14, 22)))
