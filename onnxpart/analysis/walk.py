"""Graph + rules -> units, and the reasons for what can't be divided.

The graph is walked once in topological order; nothing depends on K here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.labels import Fields, TooMany, tight
from onnxpart.analysis.op import Barrier, Carried, Op, State
from onnxpart.analysis.rules import control_flow
from onnxpart.analysis.rules.table import Rule, find
from onnxpart.analysis.shuffles import CHAIN, find_shuffles
from onnxpart.errors import ModelError
from onnxpart.ir.flatten import ENTER, LEAVE, Region, state_of
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model

MOVED = CHAIN | {"Cast", "Identity", "Slice", "Split"}
"""Operators whose results are pieces of their first input; a Concat is made of all of its inputs."""


def analyse(model: Model) -> Analysis:
    """Walk the graph once and collect labels, ties and choices.

    :returns: the analysis; every operator without a rule is in `barriers`.
    :raises ModelError: when the model's shapes contradict each other.
    """
    shapes = infer(model)
    trainable = set(filter(model.trainable, model.initializers))
    state = State(model, shapes, weights_only=set(model.initializers), depends_on_parameters=trainable)
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
    sizing = {op.index for op in analysis.ops if op.op_type in ("Shape", "Size")}
    sized = {name for index in sizing for name in analysis.ops[index].reads}
    state.shaped = {name for name in sized if sizing.issuperset(analysis.consumers[name])} - set(model.outputs)
    analysis.rules = _walk(analysis.ops, model.flat.starting())
    for name in model.outputs:
        for f in state.of(name):
            state.labels.share(f, -1, f"it is tied to the output {name!r}")
    find_shuffles(analysis)
    return analysis


def _walk(ops: Sequence[Op], regions: Mapping[int, Region]) -> list[Rule | None]:
    """Visit operators in order; `regions` are those among them by their first operator."""
    result = []
    for op in ops:
        if op.index in regions:
            _carry(op.state, regions[op.index], regions)
        op.state.labels.node = op.index
        rule = _visit(op)
        result.append(rule)
        if rule is not None and rule.kind == "source" and not _differs(op):
            op.state.weights_only.update(op.outputs)
        else:
            _propagate(op)
    return result


def _carry(state: State, region: Region, regions: Mapping[int, Region]) -> None:
    """Find what the states of a loop carry: its body is walked until nothing is added."""
    states = {state_of(m): m.input[0] for m in region.leaves if state_of(m)}
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
                axes = control_flow.steady(control_flow.incoming(op), known[name]) if name in known else []
                now[name] = now[name].joined(axes, op.inputs[0] in trial.depends_on_parameters)
        for name, result in states.items():
            axes = control_flow.steady(trial.fields.get(result, ()), known[name]) if name in known else []
            now[name] = now[name].joined(axes, result in trial.depends_on_parameters)
        if now == found:
            break
        found = now
    state.carried.update(found)


def _visit(op: Op) -> Rule | None:
    """Apply the operator's rule; make it a barrier where there is none or it can't tell."""
    rule = find(op)
    outputs: list[Fields] = []
    reason = rule if isinstance(rule, str) else ""
    if isinstance(rule, Rule):
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


def _labels(op: Op, rule: Rule) -> list[Fields]:
    """What the rule makes of the operator's outputs.

    :raises Barrier: where it can't tell. :raises ModelError: where shapes contradict each other, or are absurd.
    """
    if rule.kind == "control flow" and control_flow.differ(op):
        raise Barrier("its branches give tensors with different numbers of axes")
    known, read = op.state.shapes.shape, op.state.read  # the shapes of values that nothing reads don't matter
    missing = [name for name in (*op.reads, *op.outputs) if name not in known and name in read]
    if missing:
        raise Barrier(f"the shape of {missing[0]!r} isn't known")
    try:
        outputs = rule.labels(op)
        if len(op.followed) < len(op.inputs) and rule.kind != "source":  # of which a source reads the shape alone
            _share_rest(op)
        return [tight(fields) for fields in outputs] if rule.kind == "movement" else outputs
    except TooMany as many:
        raise ModelError(
            f"{op.state.model.name}: the output of {op.title} is too large ({many}); "
            "use --outputs to cut the network off before it."
        ) from None
    except (ValueError, IndexError) as error:
        name = op.state.model.name
        raise ModelError(f"{name}: the shapes at {op.title} contradict each other; fix the export.") from error


def _share_rest(op: Op) -> None:
    """Leave in every part what the rule hasn't asked for: positions, lengths, bounds and other settings."""
    for i, name in enumerate(op.inputs):
        if name and i not in op.followed and (fields := op.state.of(name)):
            op.share(fields, "" if op.weights_only(i) else f"it is input {i} of {op.title}")


def _differs(op: Op) -> bool:
    """Whether what a source gives differs from part to part: by numbers, or by the size of what each finds itself."""
    depends, shapes = op.state.depends_on_parameters, op.state.shapes
    sized = op.op_type in ("Shape", "Size", "EyeLike")
    return any(name in depends and (not sized or shapes.sized_by_data(name)) for name in op.reads)


def _propagate(op: Op) -> None:
    """Carry to the outputs whether they are weights only, whether they depend on parameters, and their initializers."""
    state, names = op.state, op.reads
    outputs = [name for name in op.outputs if name]
    carried = [name for name in outputs if name in state.carried] if state.carried else []
    state.depends_on_parameters.update([name for name in carried if state.carried[name].depends_on_parameters])
    changes = op.domain == LEAVE or bool(carried)
    weights_only = bool(names) and state.weights_only.issuperset(names) and not changes
    if weights_only:
        state.weights_only.update(outputs)
    unknown = weights_only and op.index in state.barriers and isinstance(find(op), str)  # nobody knows what comes out
    if unknown or not state.depends_on_parameters.isdisjoint(names):
        state.depends_on_parameters.update(outputs)
    moved = op.op_type in MOVED or (op.domain == ENTER and not changes)
    pieces = op.inputs if op.op_type == "Concat" else op.inputs[:1] if moved else ()
    found = [state.sources(name) for name in pieces]
    if found and all(found):
        state.source.update(dict.fromkeys(outputs, frozenset().union(*found)))
