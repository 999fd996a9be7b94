"""Canonical text of an analysis, a plan and a model: what goldens hold and what two versions are compared by.

The same text on every platform and in every run. Unit classes are numbered by their first appearance in graph order,
so that the numbering of labels doesn't show; weights stand as the first digits of their SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Choice, Field, flatten, solve, varying
from onnxpart.planning.plan import METADATA, Block, InitializerPlan, Layer, Plan, Ranges
from onnxpart.storage.draft import to_array
from onnxpart.storage.rows import Array

IN_FULL = 64
"""Integers and booleans of at most this many elements are shown one by one."""


def dump_analysis(analysis: Analysis) -> str:
    """The operators with their kinds, the unit classes of every tensor, and the soft ties that are left to a plan.

    Classes are those of the firm ties alone: `1-4` are four classes, `1-4 each 9` nine neighbours of each, `.` is
    shared. A soft tie names the classes that would become one, in braces.

    :returns: lines that depend on the model alone.
    """
    units = _Units(analysis)
    lines = ["operators:"]
    for op, rule in zip(analysis.ops, analysis.rules, strict=True):
        what = rule.kind if rule is not None else f"barrier: {analysis.state.barriers[op.index]}"
        lines.append(f"  {op.title}: {what}")
    lines += ["tensors:", *(f"  {name} {_dims(analysis, name)}: {units.of(name)}" for name in _tensors(analysis))]
    lines += _section("soft ties", (line for c in analysis.labels.choices for line in units.soft_tie(c)))
    lines += _section("groups", units.groups())
    lines += _section("shared", _pins(analysis))
    lines += _section("shuffles", (f"{name} starts at {root}" for name, root in sorted(analysis.virtual.items())))
    return "\n".join(lines) + "\n"


def dump_plan(plan: Plan) -> str:
    """Everything that a plan says but for the numbering of labels and the digest of the model.

    :returns: lines that depend on the plan alone.
    """
    shares = " ".join(str(s) for s in plan.shares)
    sizes = " ".join(str(plan.parameters(p)) for p in range(plan.k))
    lines = [
        f"plan of {plan.source}: K={plan.k}, order {plan.order}, seed {plan.seed}, shares {shares}",
        f"parameters: {plan.parameters()} in the whole, {sizes} in the parts",
        "layers:",
        *(f"  {_layer(layer)}" for layer in plan.layers),
        "initializers:",
    ]
    for initializer in plan.initializers:
        lines += [f"  {line}" for line in _initializer(initializer, plan.k)]
    lines += _section("duplicated", plan.duplicated)
    lines += _section("replicated", plan.replicated)
    lines += _section("blocked", plan.blocked)
    lines += _section("mean", plan.mean)
    return "\n".join(lines) + "\n"


def dump_model(model: onnx.ModelProto) -> str:
    """Inputs, outputs, opsets, nodes in order and initializers of a model; what onnxpart wrote into it is left out.

    :param model: as emitted, or any other.
    :returns: lines that depend on the model alone; weights stand as digits of their SHA-256.
    """
    opsets = " ".join(f"{o.domain or 'onnx'}={o.version}" for o in sorted(model.opset_import, key=lambda o: o.domain))
    lines = [f"model {model.graph.name}: ir {model.ir_version}, opset {opsets}"]
    lines += [f"  {p.key}: {p.value}" for p in model.metadata_props if not p.key.startswith(METADATA.split(".")[0])]
    lines += _graph(model.graph)
    return "\n".join(lines) + "\n"


class _Units:
    """Unit classes in the order in which they appear in the graph."""

    def __init__(self, analysis: Analysis) -> None:
        labels = analysis.labels
        pins = [(np.zeros_like(f), f) for f, _, _ in labels.pins]
        self.classes = solve(labels.count, *flatten([*labels.ties, *pins]))
        self.analysis = analysis
        self.number = {0: 0}
        for name in _tensors(analysis):
            for f in _ordered(analysis, name):
                for c in self.classes[f].ravel().tolist():
                    self.number.setdefault(c, len(self.number))

    def numbers(self, f: Field) -> list[int]:
        """Number of the class of each element; 0: shared."""
        return [self.number.get(c, 0) for c in self.classes[f].ravel().tolist()]

    def of(self, name: str) -> str:
        """The fields of a tensor."""
        fields = [f for f in _ordered(self.analysis, name) if any(self.numbers(f))]
        return ", ".join(dict.fromkeys(f"{_axes(f)}: {_compact(self.numbers(f))}" for f in fields)) or "shared"

    def soft_tie(self, choice: Choice) -> Iterator[str]:
        """The classes that a soft tie would make one, by alternative, and what happens without it."""
        title = "graph" if choice.node < 0 else self.analysis.ops[choice.node].title
        otherwise = "duplicated" if choice.mix else "in every part" if choice.drop is not None else "shared"
        sets = [self._united(pairs) for pairs in choice.alternatives]
        if any(sets):
            yield f"{title}: {choice.reason}: {' or '.join(s or 'nothing' for s in sets)}, else {otherwise}"

    def _united(self, pairs: Sequence[tuple[Field, Field]]) -> str:
        left, right = flatten(pairs)
        united = solve(int(self.classes.max()) + 1, self.classes[left], self.classes[right])
        sets: dict[int, list[int]] = {}
        for c, n in sorted(self.number.items(), key=lambda item: item[1]):
            if n:
                sets.setdefault(int(united[c]), []).append(n)
        return " ".join(f"{{{_compact(s)}}}" for s in sets.values() if len(s) > 1)

    def groups(self) -> Iterator[str]:
        """The groups of grouped operators."""
        for g in self.analysis.labels.groups:
            sides = []
            for word, side in (("in", g.inputs), ("out", g.outputs)):
                if side is not None and any(self.numbers(side)):
                    sides.append(f"{word} {' '.join(f'{{{_compact(self.numbers(row))}}}' for row in side)}")
            yield f"{self.analysis.ops[g.node].title}: {', '.join(sides) or 'shared'}"


def _tensors(analysis: Analysis) -> list[str]:
    """Tensors with a shape in the order in which operators read and write them."""
    names = [n for i, op in enumerate(analysis.ops) for n in (*analysis.inputs(i), *op.outputs) if n]
    return [n for n in dict.fromkeys((*analysis.model.inputs, *names)) if n in analysis.shapes.shape]


def _ordered(analysis: Analysis, name: str) -> list[Field]:
    return sorted(analysis.fields(name), key=lambda f: sorted(varying(f)))


def _dims(analysis: Analysis, name: str) -> str:
    dims = zip(analysis.shapes.shape[name], analysis.shapes.dynamic_dims(name), strict=True)
    return f"[{', '.join('?' if dynamic else str(size) for size, dynamic in dims)}]"


def _axes(f: Field) -> str:
    return "axis " + " x ".join(str(a) for a in sorted(varying(f))) if varying(f) else "all"


def _compact(numbers: Sequence[int]) -> str:
    """Numbers as runs: `1-4 9`; `1-4 each 2` where neighbours are the same; `.` for zeros."""
    runs: list[tuple[int, int, int]] = []  # first, last, how often each
    for n, same in groupby(numbers):
        count = len(list(same))
        if runs and n and runs[-1][1:] == (n - 1, count) and runs[-1][0]:
            runs[-1] = (runs[-1][0], n, count)
        else:
            runs.append((n, n, count))
    return " ".join(
        ("." if not first else str(first) if first == last else f"{first}-{last}") + (f" each {n}" if n > 1 else "")
        for first, last, n in runs
    )


def _pins(analysis: Analysis) -> Iterator[str]:
    lines = (
        f"{'graph' if node < 0 else analysis.ops[node].title}: {reason}"
        for _, node, reason in analysis.labels.pins
        if reason
    )
    yield from dict.fromkeys(lines)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    held = [f"  {line}" for line in lines]
    return [f"{title}:", *held] if held else []


def _layer(layer: Layer) -> str:
    units = f"{layer.node}: {layer.units} units in {layer.classes} classes"
    return f"{units}, {' '.join(map(str, layer.parts))}" if layer.parts else f"{units}, not divided: {layer.reason}"


def _initializer(initializer: InitializerPlan, k: int) -> Iterator[str]:
    """The lines of an initializer: how it merges, and what each part holds."""
    words = [
        *(["reduces"] if initializer.reduces else []),
        *(["after reduction"] if initializer.after_reduction else []),
        *(["constant"] if initializer.constant else []),
        *([f"stored {initializer.stored}"] if initializer.stored != "once" else []),
    ]
    yield " ".join([f"{initializer.name} {_list(initializer.shape)}", *words])
    held = [" | ".join(_block(b) for b in initializer.blocks[p]) for p in range(k)]
    if len(set(held)) == 1:
        yield f"  every part: {held[0]}"
        return
    yield from (f"  part {p}: {text}" for p, text in enumerate(held))


def _block(block: Block) -> str:
    return f"[{', '.join(':' if r is None else _ranges(r) for r in block)}]"


def _ranges(ranges: Ranges) -> str:
    return "+".join(f"{a}:{b}" if step == 1 else f"{a}:{b}:{step}" for a, b, step in ranges) or "nothing"


def _list(values: Iterable[object]) -> str:
    return f"[{', '.join(str(v) for v in values)}]"


def _graph(graph: onnx.GraphProto) -> list[str]:
    return [
        *(f"  input {_value(v)}" for v in graph.input),
        *(f"  output {_value(v)}" for v in graph.output),
        *(line for node in graph.node for line in _node(node)),
        *(f"  {t.name} = {_tensor(t)}" for t in sorted(graph.initializer, key=lambda t: t.name)),
    ]


def _value(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return f"{value.name} {_dtype(kind.elem_type)}"
    dims = (d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in kind.shape.dim)
    return f"{value.name} {_dtype(kind.elem_type)}{_list(dims)}"


def _dtype(elem_type: int) -> str:
    return str(TensorProto.DataType.Name(elem_type)).lower()


def _node(node: onnx.NodeProto) -> Iterator[str]:
    """The lines of a node, those of the graphs inside it indented."""
    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    attributes = sorted(node.attribute, key=lambda a: a.name)
    settings = " ".join(f"{a.name}={_attribute(a)}" for a in attributes)
    name = "" if not node.name or node.name in node.output else f" ({node.name})"
    outputs = ", ".join(node.output)
    yield f"  {outputs} = {kind}({', '.join(n or '-' for n in node.input)}){f' {settings}' if settings else ''}{name}"
    for a in attributes:
        for inner in [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs:
            yield f"    {a.name}:"
            yield from (f"    {line}" for line in _graph(inner))


def _attribute(attribute: onnx.AttributeProto) -> str:
    """An attribute's value; `below` for a graph, which has lines of its own."""
    value = helper.get_attribute_value(attribute)
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return "below"
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str | int):
        return str(value)
    return _list(_number(v) if isinstance(v, float) else v.decode() if isinstance(v, bytes) else v for v in value)


def _number(value: float) -> str:
    """A float32 with as many digits as tell it apart."""
    return str(np.float32(value))


def _tensor(tensor: TensorProto) -> str:
    head = f"{_dtype(tensor.data_type)}{_list(tensor.dims)}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return f"{head} external"
    if tensor.data_type == TensorProto.STRING:
        return f"{head} {hashlib.sha256(b'/'.join(tensor.string_data)).hexdigest()[:12]}"
    return f"{head} {_content(to_array(tensor))}"


def _content(array: Array) -> str:
    whole = array.dtype.kind in "iub" and array.size <= IN_FULL
    if array.ndim == 0:
        return str(array[()])
    if whole:
        flat: NDArray[np.generic] = array.ravel()
        return _list(flat.tolist())
    little = np.ascontiguousarray(array)
    little = little.astype(little.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()[:12]
