"""If, Loop and Scan: what goes into their graphs and comes out (see `ir.flatten` for the markers).

A state is the same units before, in and behind the loop. Which axes it has units along is found by walking the body
before it is analysed (`op.Carried`). Iterations lie along an axis of their own, which is never divided.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxpart.analysis.joins import join
from onnxpart.analysis.labels import Field, Fields, drop_axes, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Kept, Rewrite
from onnxpart.analysis.rules.table import operator, register
from onnxpart.ir.flatten import ENTER, LEAVE, Role, role_of, state_of
from onnxpart.ir.shapes import Shape


def axes(op: Op, rank: int) -> list[int]:
    """The axes that a marker takes away or adds, counted from the front of the outer tensor of the given rank."""
    return sorted(int(axis) % rank for axis in op.attributes.get("axes", ()))


@register("condition", "count", "going", "lengths", domain=ENTER, versions=(), kind="control flow")
@register("going", domain=LEAVE, versions=(), kind="control flow")
def setting(op: Op) -> list[Fields]:
    """A condition or a count: every part has it."""
    for i in range(len(op.inputs)):
        op.share(op.fields(i), "it says what is run, and how often")
    return [()] * len(op.outputs)


def rewrite_enter_state(r: Rewrite) -> None:
    """A first state of which the part holds more than its share."""
    gone = axes(r.op, len(r.op.shape(0)))
    _cut(r, 0, r.kept_out(), gone)


@register("state", domain=ENTER, versions=(), kind="control flow", rewrite=rewrite_enter_state)
def enter_state(op: Op) -> list[Fields]:
    """A state as the body sees it: the first one and what the body makes of it are the same units."""
    if op.outputs[0] not in op.state.shapes.shape:
        return [()]
    shape, carried = op.out_shape(), op.state.carried[op.outputs[0]]
    made = tuple(
        op.labels.fresh([n if axis in along else 1 for axis, n in enumerate(shape)])
        for along in sorted(carried.axes, key=sorted)
    )
    _same(op, made, _alike(op, incoming(op), shape))
    return [made]


def rewrite_leave_state(r: Rewrite) -> None:
    """A state of which the body makes more than the part's share."""
    _cut(r, 0, r.kept(state_of(r.op.node)), ())


@operator(
    "Loop", versions=(1, 11, 13, 16, 19, 21, 23, 24, 25), kind="control flow", rewrite=rewrite_leave_state, mean="data"
)
@operator(
    "Scan", versions=(8, 9, 11, 16, 19, 21, 23, 24, 25), kind="control flow", rewrite=rewrite_leave_state, mean="data"
)
@register("state", domain=LEAVE, versions=(), kind="control flow", rewrite=rewrite_leave_state)
def leave_state(op: Op) -> list[Fields]:
    """States are the same units before, in and behind the body; iterations are in every part."""
    state = state_of(op.node)
    made = op.state.of(state)
    for i in range(1, len(op.inputs)):
        op.share(op.fields(i), "it says how often the body is run")
    inner, outer = op.shape(0), op.state.shapes.shape.get(state, ())
    if len(inner) != len(outer):
        raise Barrier("the shape of its state isn't known")
    for f in _same(op, made, _alike(op, op.fields(0), outer)):
        op.share([f], "the body makes something of its state that every part has")
    return [_with(op, made)]


@register("each", domain=ENTER, versions=(), kind="control flow", mean="data")
def enter_each(op: Op) -> list[Fields]:
    """What one iteration sees of a sequence."""
    return [incoming(op)]


@register("each", domain=LEAVE, versions=(), kind="control flow", mean="data")
def leave_each(op: Op) -> list[Fields]:
    """The results of all iterations, along an axis of their own."""
    for i in range(1, len(op.inputs)):
        op.share(op.fields(i), "it says how often the body is run")
    return [_with(op, op.fields(0))]


def differ(op: Op) -> bool:
    """Whether a marker is of what two branches give with different numbers of axes."""
    if op.domain != LEAVE or role_of(op.node) != Role.BRANCHES:
        return False
    known = op.state.shapes.shape
    return len({len(known[n]) for n in op.inputs[:2] if n in known}) > 1


def rewrite_branches(r: Rewrite) -> None:
    """Branches that give more than the part's share."""
    for i in (0, 1):
        _cut(r, i, r.kept_out(), ())


@operator("If", versions=(1, 11, 13, 16, 19, 21, 23, 24, 25), kind="control flow", rewrite=rewrite_branches, mean="sum")
@register("branches", domain=LEAVE, versions=(), kind="control flow", rewrite=rewrite_branches, mean="sum")
def branches(op: Op) -> list[Fields]:
    """What both branches give meets place by place, and every part takes the same branch."""
    op.share(op.fields(2), "it says which branch is taken")
    if op.shape(0) != op.shape(1):
        op.share([*op.fields(0), *op.fields(1)], "the branches give tensors of different sizes")
        return [()]
    return [join(op, [0, 1], len(op.out_shape()))]


def steady(fields: Fields, shape: Shape) -> list[frozenset[int]]:
    """Along which axes each field varies that aren't longer or shorter than a state of the given shape."""
    return [frozenset(axis for axis in varying(f) if f.shape[axis] == shape[axis]) for f in fields]


def _alike(op: Op, fields: Fields, shape: Shape) -> Fields:
    """The fields as they are for a state of the given shape: what lies along axes that grow stays together."""
    result = []
    for f, kept in zip(fields, steady(fields, shape), strict=True):
        if not kept:
            op.share([f], "its state grows along the axis that its units lie along")
        else:
            result.append(op.labels.tie_along(f, kept))
    return tuple(result)


def _same(op: Op, made: Fields, fields: Fields) -> list[Field]:
    """Tie the fields of a state to those of what it comes from; returns those of the state that meet none."""
    lonely = list(made)
    for f in fields:
        along = [e for e in made if varying(f) <= varying(e)]
        if not along:
            op.share([f], "its state isn't divided along that axis")
            continue
        op.labels.tie(along[0], f)
        lonely = [e for e in lonely if e is not along[0]]
    return lonely


def incoming(op: Op) -> Fields:
    """Fields of what goes into a body, without the axes along which iterations lie; these are in every part."""
    gone = axes(op, len(op.shape(0)))
    result = []
    for f in op.fields(0):
        kept = varying(f) - frozenset(gone)
        if kept:
            result.append(drop_axes(op.labels.tie_along(f, kept), gone))
        else:
            op.share([f], "" if op.weights_only(0) else "every part runs all iterations")
    return tuple(result)


def _with(op: Op, fields: Fields) -> Fields:
    """Fields with the axes along which iterations lie."""
    result = []
    for f in fields:
        shape = list(f.shape)
        for axis in axes(op, f.ndim + len(op.attributes.get("axes", ()))):
            shape.insert(axis, 1)
        result.append(f.reshape(shape))
    return tuple(result)


def _cut(r: Rewrite, i: int, want: Kept, gone: Sequence[int]) -> None:
    wanted = list(want)
    for axis in gone:
        wanted.insert(axis, None)
    r.narrow_broadcast(i, tuple(wanted))
