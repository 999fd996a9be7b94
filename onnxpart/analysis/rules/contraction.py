"""Contractions: operators with a weight between units (Conv, Gemm, MatMul), and products of activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxpart.analysis.joins import combine, follow, follow_channels, meet, mix
from onnxpart.analysis.labels import Field, Fields, Groups, varying
from onnxpart.analysis.op import Barrier, Op, Weight
from onnxpart.analysis.rewrite import Indices, Rewrite
from onnxpart.analysis.rules.mix import slides
from onnxpart.analysis.rules.table import operator
from onnxpart.errors import PartitionError
from onnxpart.ir.einsum import parse


@dataclass(frozen=True)
class Operand:
    """Fields of one operand and the letter of each of its axes; a `constant` one may be cut to any part's share."""

    fields: Fields
    letters: str
    constant: bool = False

    def along(self, f: Field) -> frozenset[str]:
        """Letters along which a field varies."""
        return frozenset([self.letters[axis] for axis in varying(f)])

    def keep(self, letters: frozenset[str]) -> list[int]:
        """Axes of the given letters."""
        return [axis for axis, letter in enumerate(self.letters) if letter in letters]


def place(f: Field, letters: str, out: str) -> Field:
    """A field seen from the result: its axes in the order of `out`, 1 where it has none."""
    axes = [letters.find(letter) for letter in out]
    shape = [1 if axis < 0 else f.shape[axis] for axis in axes]
    order = [axis for axis, size in zip(axes, shape, strict=True) if size > 1]
    if order != sorted(order):
        f = f.transpose([*order, *(axis for axis in range(f.ndim) if axis not in order)])
    return f.reshape(shape)


def weighted(op: Op, x: Operand, w: Operand, contracted: str, out: str) -> Fields:
    """Fields of a contraction of activations with a weight; its output axis is where units come into being.

    :param x: the activations. :param w: the weight. :param contracted: the letters of both that are summed over.
    :param out: the letters of the result. Letters of `x` that are in neither are those of a window, whose places are
        tied.
    """
    summed, passed = [], []
    for f in x.fields:
        v = x.along(f)
        if v & set(contracted):
            keep = v & set(contracted)
            summed.append((keep, place(op.labels.tie_along(f, x.keep(keep)), x.letters, contracted)))
        elif v:
            keep = v & set(out)
            passed.append((keep, place(op.labels.tie_along(f, x.keep(keep)), x.letters, out)))
    result = [f for _, f in passed]
    met: set[frozenset[str]] = set()
    for f in w.fields:
        met |= _weight_field(op, f, w, x, summed, passed, contracted, out, result)
    op.share((f for keep, f in summed if keep not in met), "its weight has no axis of its own for them")
    return tuple(result)


def _weight_field(
    op: Op,
    f: Field,
    w: Operand,
    x: Operand,
    summed: list[tuple[frozenset[str], Field]],
    passed: list[tuple[frozenset[str], Field]],
    contracted: str,
    out: str,
    result: list[Field],
) -> set[frozenset[str]]:
    """What becomes of one of the weight's fields; returns the letters of the summed fields that it meets."""
    v = w.along(f)
    window = v - set(contracted + out + x.letters)
    if window and v > window:  # an axis that was merged with those of the window
        v -= window
        f = op.labels.tie_along(f, w.keep(v))
    if v and v <= set(contracted):
        meets = [(keep, g) for keep, g in summed if v <= keep or keep < v]  # exactly, or a part of a merged axis
        for _, g in meets:
            op.labels.tie(g, place(f, w.letters, contracted))
        if not meets and not x.constant:
            op.share([f])
        return {keep for keep, _ in meets}
    if v and v <= set(out):
        g = place(f, w.letters, out)
        for letters, e in passed:
            if letters == v:
                op.labels.tie(e, g)
                return set()
        if v & set(x.letters):
            op.share([f])
            return set()
        op.labels.root(g, op.index)
        meet(op, result, g)
    else:
        op.share([f])
    return set()


def product(op: Op, a: Operand, b: Operand, contracted: str, out: str) -> Fields:
    """Fields of a product of two activations; units that are summed are tied softly.

    Two weights make another one, whose axes are theirs.

    :param a: one factor. :param b: the other. :param contracted: the letters that are summed over.
    :param out: the letters of the result.
    """
    result: list[Field] = []
    sums: list[Field] = []
    for operand in (a, b):
        found = []
        for f in operand.fields:
            over = operand.along(f) & set(contracted)
            if not over:
                found.append(place(f, operand.letters, out))
            elif not _meets(op, sums, place(f, operand.letters, contracted + out), len(contracted)):
                r = op.choose_whole("units are summed without a weight", f, operand.keep(over))
                found.append(place(r, operand.letters, out))
        if op.weights_only(0) and op.weights_only(1):
            combine(op, result, found)
        else:
            for f in found:
                meet(op, result, f)
    return tuple(result)


def _meets(op: Op, sums: list[Field], f: Field, contracted: int) -> bool:
    """Tie factors to those that they are multiplied with before the sum; whether the sum's units are known by that.

    The first `contracted` axes are summed over. A factor that is the same along other axes meets all of them.
    """
    known = False
    for e in sums:
        if varying(e) & varying(f) & frozenset(range(contracted)):
            op.labels.tie(e, f)
            known = known or (varying(f) <= varying(e) and not op.labels.is_mixed(e))
    sums.append(f)
    return known


def letters(op: Op) -> tuple[list[str], str]:
    """Letters of the axes of both operands and of the result of a MatMul, Gemm or Einsum."""
    if op.op_type == "Gemm":
        turned = bool(op.attributes.get("transA")), bool(op.attributes.get("transB"))
        return ["ji" if turned[0] else "ij", "kj" if turned[1] else "jk"], "ik"
    ranks = [len(op.shape(i)) for i in range(len(op.inputs))]
    if op.op_type == "Einsum":
        return einsum_letters(op.attributes["equation"].decode(), ranks)
    batch = "abcdefgh"[: max(0, max(ranks) - 2)]
    a = (batch + "ij")[-ranks[0] :] if ranks[0] > 1 else "j"
    b = (batch + "jk")[-ranks[1] :] if ranks[1] > 1 else "j"
    return [a, b], batch + ("i" if ranks[0] > 1 else "") + ("k" if ranks[1] > 1 else "")


def rewrite_contraction(r: Rewrite) -> None:
    """Gemm, MatMul, Einsum: an operand that is shared along the summed axis is cut to the other's share of it."""
    op = r.op
    terms, out = letters(op)
    if len(terms) < 2:
        return
    want: dict[str, Indices | None] = dict(zip(out, r.kept_out(), strict=True))
    for i in (0, 1):
        for letter, kept in zip(terms[i], r.kept_in(i), strict=True):
            if letter not in out and kept is not None:
                before = want.get(letter)
                want[letter] = kept if before is None or len(kept) < len(before) else before
    for i in (0, 1):
        r.narrow_broadcast(i, tuple(map(want.get, terms[i])))
    if op.op_type == "Gemm" and op.has(2):
        r.narrow_broadcast(2, r.kept_out())


@operator("MatMul", versions=(1, 9, 13), kind="contraction", rewrite=rewrite_contraction, zero="scale")
def matmul(op: Op) -> list[Fields]:
    """MatMul, and Gemm's product: `...ij, ...jk -> ...ik` with numpy's broadcasting."""
    (a, b), out = letters(op)
    return [_either(op, a, b, "j", out)]


def _either(op: Op, left: str, right: str, contracted: str, out: str) -> Fields:
    """Fields of a contraction of two operands: with a weight if just one of them is trainable, else a product."""
    terms = left, right
    batch = set(left) & set(right) & set(out)
    weights = [i for i in (0, 1) if op.trainable(i) and not _computed_in_batches(op, i, terms[i], batch)]
    scaled = not contracted and any(op.constant(i) for i in (0, 1))
    if len(weights) != 1 or scaled:  # constants are no weights, and two weights make another, as does a scaled one
        a, b = (Operand(() if op.constant(i) else op.fields(i), terms[i]) for i in (0, 1))
        return product(op, a, b, contracted, out)
    weight, other = weights[0], 1 - weights[0]
    constant = op.constant(other)
    x = Operand(() if constant else op.fields(other), terms[other], constant)
    _note(op, weight, terms[weight], contracted)
    return weighted(op, x, Operand(op.fields(weight), terms[weight]), contracted, out)


def _computed_in_batches(op: Op, i: int, letters: str, batch: set[str]) -> bool:
    """Whether an operand is made of weights alone and divided over the batch, as keys of relative positions by head."""
    if op.state.sources(op.inputs[i]):
        return False
    return any({letters[axis] for axis in varying(f)} & batch for f in op.fields(i))


def _note(op: Op, i: int, letters: str, contracted: str) -> None:
    outputs = tuple(axis for axis, letter in enumerate(letters) if letter not in contracted)
    note_weight(op, i, outputs)


def note_weight(op: Op, i: int, outputs: tuple[int, ...], gain: float = 2.0) -> None:
    """Remember that the initializers behind input `i` are a contraction's weight."""
    name = op.inputs[i]
    for source in op.state.sources(name):
        op.state.weights.setdefault(source, Weight(name, outputs, gain))


def note_bias(op: Op, i: int) -> None:
    """Remember that the initializers behind input `i` are a contraction's bias."""
    op.state.biases.update(op.state.sources(op.inputs[i]))


@operator("Gemm", versions=(7, 9, 11, 13), kind="contraction", rewrite=rewrite_contraction, zero="scale")
def gemm(op: Op) -> list[Fields]:
    """Gemm: `alpha A' B' + beta C`."""
    (fields,) = matmul(op)
    if op.has(2):
        note_bias(op, 2)
        follow(op, fields, 2)
    return [fields]


def rewrite_conv(r: Rewrite) -> None:
    """Conv, ConvTranspose: `group` becomes the number of groups that the part keeps; a shared bias is cut."""
    op = r.op
    r.narrow_channels(2)
    group = int(op.attributes.get("group", 1))
    if group == 1:
        return
    channels, units = op.shape(0)[1], op.out_shape()[1]
    kept_in, kept_out = r.kept_in(0)[1], r.kept_out()[1]
    if kept_in is None and kept_out is None:
        return
    ins = np.arange(channels) if kept_in is None else kept_in
    outs = np.arange(units) if kept_out is None else kept_out
    out_groups, counts = np.unique(outs // (units // group), return_counts=True)
    wanted = ins[np.isin(ins // (channels // group), out_groups)]
    in_groups, in_counts = np.unique(wanted // (channels // group), return_counts=True)
    if len(set(counts)) != 1 or len(set(in_counts)) != 1 or not np.array_equal(in_groups, out_groups):
        raise PartitionError(f"{op.title}: the part's groups differ in size; try another order or K.")
    r.narrow(0, (None, wanted, *[None] * (len(op.shape(0)) - 2)))
    r.set("group", len(out_groups))


def rewrite_deform_conv(r: Rewrite) -> None:
    """DeformConv: a shared bias is cut."""
    r.narrow_channels(3)


@operator("Conv", versions=(1, 11, 22), kind="contraction", rewrite=rewrite_conv, zero="scale")
def conv(op: Op) -> list[Fields]:
    """Conv: `n c *, o c/g * -> n o *`."""
    return _convolution(op, transposed=False)


@operator("ConvTranspose", versions=(1, 11, 22), kind="contraction", rewrite=rewrite_conv, zero="scale")
def conv_transpose(op: Op) -> list[Fields]:
    """ConvTranspose: `n c *, c o/g * -> n o *`."""
    return _convolution(op, transposed=True)


def _convolution(op: Op, transposed: bool) -> list[Fields]:
    """Fields of a convolution; a window ties the places that it sees unless it slides over units.

    :raises Barrier: when its kernel is no weight.
    """
    spatial = len(op.shape(0)) - 2
    group = int(op.attributes.get("group", 1))
    sliding = slides(op)
    kernel, results = "wxyz"[:spatial], "pqrl"[:spatial]
    places = "".join(r if i + 2 in sliding else s for i, (r, s) in enumerate(zip(results, "stuv", strict=False)))
    note_weight(op, 1, (1,) if transposed else (0,))
    if not op.weights_only(1) and op.fields(1):
        raise Barrier("its kernel is computed from activations")
    if not op.trainable(1) and (group == 1 or 1 not in (op.shape(0)[1] // group, op.out_shape()[1] // group)):
        raise Barrier("its kernel is no trained weight")
    if group == 1:
        x = Operand(op.fields(0), "nc" + places)
        w = Operand(op.fields(1), ("co" if transposed else "oc") + kernel)
        fields = weighted(op, x, w, "c", "no" + results)
    else:
        fields = _grouped(op, group, transposed)
    _bias(op, fields)
    return [fields]


@operator("DeformConv", versions=(19, 22), kind="contraction", rewrite=rewrite_deform_conv)
def deform_conv(op: Op) -> list[Fields]:
    """DeformConv: a Conv at places that every part takes alike."""
    if int(op.attributes.get("group", 1)) > 1 or int(op.attributes.get("offset_group", 1)) > 1:
        raise Barrier("a deformable convolution in groups has no rule")
    if not op.weights_only(1) and op.fields(1):
        raise Barrier("its kernel is computed from activations")
    for i in (2, 4):
        op.share(op.fields(i), "it says where to sample")
    note_weight(op, 1, (0,))
    fields = weighted(op, Operand(op.fields(0), "ncst"), Operand(op.fields(1), "ocwx"), "c", "nopq")
    _bias(op, fields, 3)
    return [fields]


def _bias(op: Op, fields: Fields, i: int = 2) -> None:
    """Let the bias go with the units that it is added to, along axis 1."""
    if not op.has(i):
        return
    note_bias(op, i)
    follow_channels(op, fields, i)


def _channels(op: Op) -> Field | None:
    """Labels of the input's channels, int32 [C], or None where they are shared."""
    result: Field | None = None
    for f in op.fields(0):
        v = varying(f)
        if 1 in v:
            g = op.labels.tie_along(f, [1]).reshape(-1)
            if result is None:
                result = g
            else:
                op.labels.tie(result, g)
        elif v:
            op.share([f], "a convolution in groups slides over it")
    return result


def _grouped(op: Op, group: int, transposed: bool) -> Fields:
    """A grouped convolution: each weight connects the units of one group.

    The weight's rows carry one label field, its columns labels that depend on the row's group as well.
    """
    rank = len(op.shape(1))
    channels = _channels(op)
    op.followed.add(1)
    if op.inputs[1] in op.state.model.initializers:
        row, column = _group_labels(op, group, transposed)
    elif (repeated := _repeated(op, group)) is not None:
        row, column = repeated
    else:
        return _whole_groups(op, group, transposed, channels)
    inputs, outputs = (row, column) if transposed else (column, row)
    if channels is None:
        op.share([inputs])
    else:
        op.labels.tie(inputs.reshape(-1), channels)
    out = outputs.reshape((1, -1) + (1,) * (rank - 2))
    if channels is not None and min(inputs.shape[1], outputs.shape[1]) == 1:
        # one channel to a group on one side (depthwise): the group is the unit
        op.labels.tie(inputs[:, :1], outputs)
        op.labels.tie(outputs[:, :1], inputs)
    else:
        op.labels.groups.append(Groups(op.index, None if channels is None else inputs, outputs))
        op.labels.root(out, op.index)
    return (out,) if out.size > 1 else ()


def _group_labels(op: Op, group: int, transposed: bool) -> tuple[Field, Field]:
    """Labels of a grouped weight's rows and columns, [groups, width] both; a weight has one pair of them.

    :raises Barrier: when it has them for other groups already, or labels of another kind.
    """
    name, shape = op.inputs[1], op.shape(1)
    if name not in op.state.grouped:
        if name in op.state.fields:
            raise Barrier("its grouped weight is shared with another operator")
        rows, width = shape[0] // group, shape[1]
        row, column = op.labels.fresh((group, rows)), op.labels.fresh((group, width))
        row_field = row.reshape((-1,) + (1,) * (len(shape) - 1))
        column_field = np.repeat(column, rows, axis=0).reshape((shape[0], width) + (1,) * (len(shape) - 2))
        op.state.fields[name] = tuple(f for f in (row_field, column_field) if f.size > 1)
        if not op.state.model.has_labels(name):
            op.state.fields[name] = ()
        op.state.grouped[name] = row, column, transposed
    row, column, turned = op.state.grouped[name]
    if len(row) != group or turned != transposed:
        raise Barrier("its grouped weight is shared with another operator")
    return row, column


def _repeated(op: Op, group: int) -> tuple[Field, Field] | None:
    """The same of a computed weight that all groups have alike; None where they haven't."""
    rows, columns = ([f for f in op.fields(1) if axis in varying(f)] for axis in (0, 1))
    if [*map(varying, (*rows, *columns))] != [{0}, {1}]:
        return None
    row, column = rows[0].reshape(group, -1), columns[0].reshape(1, -1)
    if row.shape[1] == 1 or (row != row[0]).any():
        return None
    op.share(f for f in op.fields(1) if not varying(f) & {0, 1})
    return row, np.repeat(column, group, axis=0)


def _whole_groups(op: Op, group: int, transposed: bool, channels: Field | None) -> Fields:
    """A grouped convolution whose weight is computed (or no parameter): the group is the unit."""
    shape, made = op.shape(1), op.out_shape()[1]
    found = [f for f in op.fields(1) if varying(f) == {0}]
    op.share([f for f in op.fields(1) if varying(f) != {0}])
    if channels is None or not found:
        op.share([*found, *(() if channels is None else (channels,))], "its groups are computed in every part")
        return ()
    unit = op.labels.tie_along(found[0].reshape(group, shape[0] // group), [0])
    for f in (*found, channels):
        op.labels.tie(unit, f.reshape(group, -1))
    out = np.broadcast_to(unit, (group, made // group)) if transposed else found[0].reshape(group, -1)
    return (out.reshape((1, -1) + (1,) * (len(shape) - 2)),)


def einsum_letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters of each operand and of the result of an einsum equation; the ellipsis becomes letters of its own.

    :raises Barrier: for a repeated letter within one operand (a diagonal).
    """
    terms, out = parse(equation)
    dots = max(r - len(t.replace("...", "")) if "..." in t else 0 for t, r in zip(terms, ranks, strict=True))
    fill = "ABCDEFGH"[:dots]
    letters = []
    for term, rank in zip(terms, ranks, strict=True):
        size = rank - len(term.replace("...", ""))
        letters.append(term.replace("...", fill[dots - size :] if size else ""))
    out = out.replace("...", fill)
    if any(len(set(term)) < len(term) for term in letters):
        raise Barrier("its equation takes a diagonal")
    return letters, out


@operator("Einsum", versions=(12, 28), kind="contraction", rewrite=rewrite_contraction)
def einsum(op: Op) -> list[Fields]:
    """Einsum: its equation, of one operand (axes are exchanged and summed) or of two."""
    terms, out = letters(op)
    if len(terms) == 1:
        (a,) = terms
        summed = [axis for axis, letter in enumerate(a) if letter not in out]
        return [tuple(place(f, a, out) for f in mix(op, op.fields(0), summed, "sums units"))]
    if len(terms) != 2:
        raise Barrier("its equation sums over an ellipsis")
    a, b = terms
    if any(c not in out and not (c in a and c in b) for c in a + b):
        raise Barrier("its equation sums one operand alone")
    contracted = "".join(c for c in a if c in b and c not in out)
    return [_either(op, a, b, contracted, out)]
