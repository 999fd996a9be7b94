"""How labels of several operands meet: joined, followed, mixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxpart.analysis.labels import (
    SHARED,
    Field,
    Fields,
    Pair,
    align,
    alike,
    collapse,
    drop_axes,
    first_along,
    varying,
)
from onnxpart.analysis.op import Op


def join(op: Op, operands: Iterable[int], rank: int) -> Fields:
    """Fields of a result whose elements each come from the operands' elements at the same place.

    :param operands: indices of the operator's inputs, which broadcast as in numpy. :param rank: number of axes of the
        result.
    :returns: the fields. Along the same axes units are tied; parameters follow the activations, and make no units.
    """
    order = sorted(operands, key=op.weights_only)
    activations = any(not op.weights_only(i) for i in order)
    result: list[Field] = []
    for i in order:
        fields = tuple(align(f, rank) for f in op.fields(i))
        if not activations:
            combine(op, result, fields)
        elif op.weights_only(i):
            _follow(op, result, fields)
        else:
            for f in fields:
                meet(op, result, f)
    return tuple(result)


def combine(op: Op, result: list[Field], fields: Sequence[Field]) -> None:
    """Add the fields of a parameter to those of others that it makes a weight with: rows and columns are no product.

    Axes that were merged to one have a field each: what fits another operand's is tied to that alone.
    """
    before = list(result)
    for f in fields:
        near = [e for e in before if varying(e) & varying(f)]
        for e in [e for e in near if alike(e, f)][:1] or near:
            op.labels.tie(e, f)
        if not any(varying(f) <= varying(e) for e in near) and not any(np.array_equal(e, f) for e in before):
            result.append(f)


def follow(op: Op, fields: Fields, i: int, parameters: Fields | None = None) -> None:
    """Tie the labels of input `i`, a parameter, to those of the activations that it applies to.

    One that is made of activations can't leave its own units. So it is shared where those that it applies to are a
    mixture, which may be in every part, or lie along other axes.

    :param fields: the activations'. :param parameters: the parameter's, when they aren't as the input has them; their
        shapes broadcast to the activations'.
    """
    parameters = op.fields(i) if parameters is None else parameters
    rank = max([f.ndim for f in (*fields, *parameters)], default=0)
    result, following = [align(f, rank) for f in fields], [align(f, rank) for f in parameters]
    if op.weights_only(i):
        _follow(op, result, following)
    elif any(map(op.labels.is_mixed, fields)):
        op.share(following, "it applies to a mixture of units")
    elif {*map(varying, following)} <= {*map(varying, result)}:
        _follow(op, result, following)
    else:
        op.share(following, "what it applies to has other units, or none")


def follow_channels(op: Op, fields: Fields, i: int) -> None:
    """The same for a parameter of shape [C] that applies along axis 1 of input 0's rank."""
    behind = (1,) * (len(op.shape(0)) - 2)
    follow(op, fields, i, tuple(f.reshape((1, f.size, *behind)) for f in op.fields(i)))


def _follow(op: Op, result: list[Field], parameters: Sequence[Field]) -> None:
    """Tie the fields of a parameter to those in `result`, which have the same rank.

    Where a parameter has several axes for what is one field of units, a plan decides along which it is divided.
    """
    for wide in list(result) if len(parameters) > 1 else ():
        inside = [f for f in parameters if varying(f) and varying(f) <= varying(wide)]
        if len(inside) < 2 or any(e is not wide and varying(e) == varying(f) for e in result for f in inside):
            continue
        rest = collapse(wide, varying(wide).difference(*map(varying, inside)))
        shared = np.full((1,) * wide.ndim, SHARED, np.int32)
        alternatives = tuple(((wide, f), *((shared, g) for g in inside if g is not f)) for f in inside)
        dropped = np.concatenate(inside, axis=None)
        op.choose("the parameter has several axes for these units", *alternatives, drop=dropped, otherwise=rest)
        parameters = [f for f in parameters if not any(f is g for g in inside)]
    for f in parameters:
        meet(op, result, f, follows=True)


def meet(op: Op, result: list[Field], f: Field, follows: bool = False, apart: bool = False) -> None:
    """Add a field to those of a result, in place: along the same axes units are tied, along others a plan decides.

    :param result: the fields so far. :param f: the field that joins them, of the same rank.
    :param follows: it is a parameter's, which makes no units beside those of activations.
    :param apart: the result is a parameter, which may have units along several axes.
    """
    v = varying(f)
    for i, e in enumerate(result):
        if e is f:
            return
        if varying(e) == v and (v or not follows):
            op.labels.tie(e, f)
            if follows or not op.labels.is_mixed(e):
                return
            f = _despite(op, result.pop(i), f)
            break
    if follows:
        wider = [e for e in result if v < varying(e)]
        if wider:
            rest = collapse(wider[0], varying(wider[0]) - v)
            op.choose("the parameter is the same for several units", ((wider[0], f),), drop=f, otherwise=rest)
        else:
            op.share([f])
        return
    for e in result:
        common = v & varying(e)
        if not v or not varying(e) or (apart and not common):
            continue
        if common in (v, varying(e)):
            op.labels.tie(e, f)
        else:
            op.choose(
                "the product of two divided axes",
                (*collapse(e, common), *collapse(f, common), *_both(e, f, common)),
                sides=(e, f),
            )
    result.append(f)


def _despite(op: Op, e: Field, f: Field) -> Field:
    """A field that says what is divided along the axes of `e` and `f` even where the mix in `e` is duplicated."""
    if not op.labels.is_mixed(f):
        return f
    both = op.labels.mix(e.shape)
    op.labels.tie(both, e)
    op.labels.tie(both, f)
    return both


def _both(e: Field, f: Field, keep: Iterable[int]) -> tuple[Pair, ...]:
    return ((first_along(e, keep), first_along(f, keep)),)


def mix(op: Op, fields: Fields, axes: Iterable[int], reason: str, keepdims: bool = True) -> Fields:
    """Fields of a result in which everything along `axes` is mixed without a weight in between.

    :param fields: of what is mixed. :param axes: the axes that are mixed, counted from the front.
    :param reason: why, as reports say it. :param keepdims: the result has size 1 along `axes`, else not even that.
    :returns: the fields. Units that are mixed are tied softly; where that leaves a plan too few classes, the node is
        duplicated.
    """
    mixed = frozenset(axes)
    result = []
    for f in fields:
        if not varying(f) & mixed:
            result.append(f)
            continue
        result.append(op.choose_whole(reason, f, mixed))
    if keepdims:
        return tuple(result)
    return tuple(drop_axes(f, mixed) for f in result)
