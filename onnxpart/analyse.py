"""Graph + rules -> units, and the reasons for what can't be divided.

The graph is walked once in topological order; nothing depends on K here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxpart import borders, rules
from onnxpart.control import ENTER, LEAVE, Region
from onnxpart.errors import ModelError
from onnxpart.labels import Field, Fields, Labels, TooMany, tight, varying
from onnxpart.model import Model
from onnxpart.rules import control
from onnxpart.rules.context import Barrier, Carried, Op, State
from onnxpart.shapes import Shapes, infer

if TYPE_CHECKING:
    from onnxpart.layout import Layout
    from onnxpart.plan import Plan

CHAIN = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"))
"""Movements that may be replaced as a chain by one selection (channel shuffle)."""
MOVED = CHAIN | {"Cast", "Identity", "Slice", "Split"}
"""Operators whose results are pieces of their first input; a Concat is made of all of its inputs."""


@dataclass
class Analysis:
    """What is known of a model before K is chosen.

    `ops` are the operators in graph order, `rules` their rules (None: a barrier), `virtual` the tensors within a
    shuffle (tensor -> the tensor where the shuffle starts), `consumers` the operators that read a tensor, `layout` the
    layout of the plan that was last asked for.
    """

    model: Model
    shapes: Shapes
    state: State
    layout: tuple[Plan, Layout] | None = None
    ops: list[Op] = field(default_factory=list)
    rules: list[rules.Rule | None] = field(default_factory=list)
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
        return list({id(f): f for fields in self.state.fields.values() for f in fields}.values())

    def inputs(self, index: int) -> list[str]:
        """Tensors that an operator reads, those of its subgraphs included."""
        return self.ops[index].reads


def analyse(model: Model) -> Analysis:
    """Walk the graph once and collect labels, ties and choices.

    :returns: the analysis; every operator without a rule is in `barriers`.
    :raises ModelError: when the model's shapes contradict each other.
    """
    shapes = infer(model)
    trainable = set(filter(model.trainable, model.initializers))
    state = State(model, shapes, pure=set(model.initializers), trained=trainable)
    analysis = Analysis(model, shapes, state)
    for name in model.inputs:
        state.fields[name] = ()
    for index, node in enumerate(model.flat.nodes):
        op = Op(state, index, node)
        analysis.ops.append(op)
        for name in op.reads:
            analysis.consumers.setdefault(name, []).append(index)
        for name in op.outputs:
            analysis.producer[name] = index
    state.read = analysis.consumers.keys() | set(model.outputs)
    valued = {name for op in analysis.ops if op.op_type not in ("Shape", "Size") for name in op.reads}
    state.shaped = state.read - valued - set(model.outputs)
    analysis.rules = _walk(analysis.ops, model.flat.starting())
    for name in model.outputs:
        for f in state.of(name):
            state.labels.share(f, -1, f"it is tied to the output {name!r}")
    _find_shuffles(analysis)
    return analysis


def _walk(ops: Sequence[Op], regions: Mapping[int, Region]) -> list[rules.Rule | None]:
    """Visit operators in order; `regions` are those among them by their first operator."""
    result = []
    for op in ops:
        if op.index in regions:
            _carry(op.state, regions[op.index], regions)
        op.state.labels.node = op.index
        rule = _visit(op)
        result.append(rule)
        if rule is not None and rule.kind == "source":
            op.state.pure.update(op.outputs)
        else:
            _propagate(op)
    return result


def _carry(state: State, region: Region, regions: Mapping[int, Region]) -> None:
    """Find what the states of a loop carry: its body is walked until nothing is added."""
    states = {borders.state_of(m): m.input[0] for m in region.leaves if borders.state_of(m)}
    found = dict.fromkeys(states, Carried())
    inner = {i: r for i, r in regions.items() if region.start < i < region.stop}
    known = state.shapes.shape
    while states:
        trial = state.trial()
        trial.carried.update(found)
        ops = [Op(trial, i, state.model.flat.nodes[i]) for i in range(region.start, region.stop)]
        _walk(ops, inner)
        now = dict(found)
        for op in ops[: len(region.enters)]:
            for name in now.keys() & set(op.outputs):
                axes = control.steady(control.incoming(op), known[name]) if name in known else []
                now[name] = now[name].joined(axes, op.inputs[0] in trial.trained)
        for name, result in states.items():
            axes = control.steady(trial.fields.get(result, ()), known[name]) if name in known else []
            now[name] = now[name].joined(axes, result in trial.trained)
        if now == found:
            break
        found = now
    state.carried.update(found)


def _visit(op: Op) -> rules.Rule | None:
    """Apply the operator's rule; make it a barrier where there is none or it can't tell."""
    rule = rules.find(op)
    outputs: list[Fields] = []
    reason = rule if isinstance(rule, str) else ""
    if isinstance(rule, rules.Rule):
        try:
            outputs = _labels(op, rule)
        except Barrier as barrier:
            reason = str(barrier)
    if reason:
        op.state.barriers[op.index] = reason
        for name in op.reads:
            op.share(op.state.of(name), f"it flows into {op.title}, where {reason}")
        outputs = [()] * len(op.outputs)
    for name, fields in zip(op.outputs, outputs, strict=False):
        if name:
            op.state.fields[name] = fields if name in op.state.shapes.shape else ()
    return None if reason or isinstance(rule, str) else rule


def _labels(op: Op, rule: rules.Rule) -> list[Fields]:
    """What the rule makes of the operator's outputs.

    :raises Barrier: where it can't tell. :raises ModelError: where shapes contradict each other, or are absurd.
    """
    known, read = op.state.shapes.shape, op.state.read  # the shapes of values that nothing reads don't matter
    missing = [name for name in (*op.reads, *op.outputs) if name not in known and name in read]
    if missing:
        raise Barrier(f"the shape of {missing[0]!r} isn't known")
    try:
        outputs = rule.labels(op)
        return [tight(fields) for fields in outputs] if rule.kind == "movement" else outputs
    except TooMany as many:
        raise ModelError(
            f"{op.state.model.name}: what {op.title} makes is too large ({many}); "
            "cut the network in front of it with --outputs."
        ) from None
    except (ValueError, IndexError) as error:
        name = op.state.model.name
        raise ModelError(f"{name}: the shapes at {op.title} contradict each other; fix the export.") from error


def _propagate(op: Op) -> None:
    """Carry purity, training and the source initializers to the outputs."""
    state, names = op.state, op.reads
    outputs = [name for name in op.outputs if name]
    carried = state.carried.keys() & outputs
    state.trained.update(name for name in carried if state.carried[name].trained)
    changes = op.domain == LEAVE or bool(carried)
    pure = bool(names) and state.pure.issuperset(names) and not changes
    if pure:
        state.pure.update(outputs)
    if not state.trained.isdisjoint(names) or (pure and op.index in state.barriers):  # nobody knows what comes out
        state.trained.update(outputs)
    moved = op.op_type in MOVED or (op.domain == ENTER and not changes)
    pieces = op.inputs if op.op_type == "Concat" else op.inputs[:1] if moved else ()
    found = [state.sources(name) for name in pieces]
    if found and all(found):
        state.source.update(dict.fromkeys(outputs, frozenset().union(*found)))


def _several_axes(fields: Fields) -> bool:
    return any(len(varying(f)) > 1 for f in fields)


def _find_shuffles(analysis: Analysis) -> None:
    """Find tensors within chains of movements that start and end with units along one and the same axis."""
    outputs = set(analysis.model.outputs)
    for index in reversed(range(len(analysis.ops))):
        op = analysis.ops[index]
        if op.op_type not in CHAIN or analysis.rules[index] is None:
            continue
        name = op.outputs[0]
        if not _several_axes(analysis.fields(name)) or name in outputs:
            continue
        root = _chain_start(analysis, index)
        if root is None:
            continue
        shape = analysis.shapes.shape[root]
        users = analysis.consumers.get(name, [])
        if all(
            analysis.ops[u].op_type in CHAIN
            and (
                analysis.ops[u].outputs[0] in analysis.virtual
                or _ends(analysis, root, shape, analysis.ops[u].outputs[0])
            )
            for u in users
        ):
            analysis.virtual[name] = root


def _chain_start(analysis: Analysis, index: int) -> str | None:
    """The nearest earlier tensor of the chain whose units lie along one axis."""
    name: str = analysis.ops[index].inputs[0]
    while _several_axes(analysis.fields(name)):
        producer = analysis.producer.get(name)
        if producer is None or analysis.ops[producer].op_type not in CHAIN:
            return None
        name = analysis.ops[producer].inputs[0]
    return name


def _ends(analysis: Analysis, root: str, shape: tuple[int, ...], name: str) -> bool:
    """Whether the chain from `root` to `name` rearranges the units of one axis and nothing else."""
    if _several_axes(analysis.fields(name)) or analysis.shapes.shape[name] != shape:
        return False
    axes = {axis for f in analysis.fields(root) for axis in varying(f)}
    if len(axes) != 1:
        return False
    (axis,) = axes
    for a, size in enumerate(shape):
        if size == 1:
            continue
        moved = permutation(analysis, root, name, a)
        if moved is None or (a != axis and not np.array_equal(moved, np.arange(size))):
            return False
    return True


def permutation(analysis: Analysis, root: str, name: str, axis: int) -> Field | None:
    """Where each index along `axis` of `name` comes from along the same axis of `root`; None if not from there.

    :returns: int32 [size of the axis].
    """
    chain = []
    current = name
    while current != root:
        index = analysis.producer[current]
        chain.append(index)
        current = analysis.ops[index].inputs[0]
    shape = analysis.shapes.shape[root]
    trial = State(analysis.model, analysis.shapes)
    trial.fields[root] = (
        np.arange(shape[axis], dtype=np.int32).reshape([-1 if a == axis else 1 for a in range(len(shape))]),
    )
    for index in reversed(chain):
        rule = analysis.rules[index]
        assert rule is not None
        op = Op(trial, index, analysis.ops[index].node)
        trial.fields[op.outputs[0]] = rule.labels(op)[0]
    (moved,) = trial.fields[name]
    if varying(moved) != frozenset((axis,)):
        return None
    return moved.reshape(-1)
