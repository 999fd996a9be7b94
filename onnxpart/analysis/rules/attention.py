"""Attention and RotaryEmbedding as single operators: heads are units, as they are where the same is written out."""

from __future__ import annotations

import numpy as np

from onnxpart.analysis.joins import follow, meet
from onnxpart.analysis.labels import Field, Fields, align, drop_axes, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Indices, Rewrite
from onnxpart.analysis.rules.contraction import Operand, product
from onnxpart.analysis.rules.table import operator


def heads(op: Op, i: int) -> int:
    """Number of heads of input `i` (0: queries; 1, 2: keys and values)."""
    shape = op.shape(i)
    if len(shape) == 4:
        return shape[1]
    name = "num_heads" if op.op_type == "RotaryEmbedding" else "q_num_heads" if i == 0 else "kv_num_heads"
    return int(op.attributes[name])


def _by_head(op: Op, fields: Fields, count: int) -> Fields:
    """Fields of [B, T, H * d] as those of [B, H, T, d]; those of four axes as they are."""
    result = []
    for f in fields:
        if f.ndim == 3:
            b, t, c = f.shape
            f = f.reshape((b, t, count, c // count) if c > 1 else (b, t, 1, 1)).transpose(0, 2, 1, 3)
            op.labels.grids.append((f, op.index))
        result.append(f)
    return tuple(result)


def _joined(op: Op, f: Field, width: int) -> Field:
    """A field of [B, H, T, d] as that of [B, T, H * d]."""
    if not varying(f) & {1, 3}:
        return drop_axes(f.transpose(0, 2, 1, 3), (3,))
    b, _, t, _ = f.shape
    count = heads(op, 0)
    return np.broadcast_to(f, (b, count, t, width)).transpose(0, 2, 1, 3).reshape(b, t, count * width)


def rewrite_heads(r: Rewrite) -> None:
    """The number of heads that the part keeps, and the scale of the whole's heads."""
    op = r.op
    if op.op_type == "Attention" and "scale" not in op.attributes:
        r.set("scale", (op.shape(0)[-1] / (1 if len(op.shape(0)) == 4 else heads(op, 0))) ** -0.5)
    if len(op.shape(0)) == 4:
        return
    names = {0: "num_heads"} if op.op_type == "RotaryEmbedding" else {0: "q_num_heads", 1: "kv_num_heads"}
    for i, name in names.items():
        kept: Indices | None = r.kept_in(i)[-1]
        if kept is not None:
            r.set(name, len(np.unique(kept // (op.shape(i)[-1] // heads(op, i)))))


@operator("Attention", versions=(23, 24, 25), kind="contraction", rewrite=rewrite_heads)
def attention(op: Op) -> list[Fields]:
    """Attention: `bhid,bhjd->bhij`, softmax, `bhij,bhje->bhie`; key/value heads go with all their query heads."""
    queries = _by_head(op, op.fields(0), heads(op, 0))
    placed = op.has(3) or op.has(6) or bool(op.attributes.get("is_causal"))
    repeated, present = [], []
    for i in (1, 2):
        count = heads(op, i)
        fields = _with_past(op, i, _by_head(op, op.fields(i), count))
        if placed and any(2 in varying(f) for f in fields):
            raise Barrier("the positions that it tells apart are divided")
        present.append(fields)
        copies = heads(op, 0) // count
        repeated.append(tuple(np.repeat(f, copies, axis=1) if f.shape[1] > 1 else f for f in fields))
    keys, values = repeated
    if not (queries and keys and values):
        for fields in (queries, *present):
            op.share(fields, "it meets queries, keys or values that are in every part")
        return [()] * len(op.outputs)
    scores = product(op, Operand(queries, "bhid"), Operand(keys, "bhjd"), "d", "bhij")
    if op.has(3):
        scores = _masked(op, scores)
    result = product(op, Operand(scores, "bhij"), Operand(values, "bhje"), "j", "bhie")
    if len(op.shape(0)) == 3:
        width = op.out_shape()[-1] // heads(op, 0)
        result = tuple(_joined(op, f, width) for f in result)
    return [result, *present, scores][: len(op.outputs)]


def _with_past(op: Op, i: int, fields: Fields) -> Fields:
    """Keys or values behind those of earlier steps."""
    past = i + 3
    if not op.has(past):
        return fields
    if not op.fields(past):
        op.share(fields, f"the past that it is appended to, {op.inputs[past]!r}, is in every part")
        return ()
    follow(op, fields, past)
    return fields


def _masked(op: Op, scores: Fields) -> Fields:
    result = list(scores)
    for f in op.fields(3):
        meet(op, result, align(f, 4), follows=op.weights_only(3))
    return tuple(result)


@operator("RotaryEmbedding", versions=(23,), kind="mix", rewrite=rewrite_heads)
def rotary(op: Op) -> list[Fields]:
    """RotaryEmbedding: turns pairs of units, by angles that are the same for every head."""
    count, rank = heads(op, 0), len(op.shape(0))
    width = op.shape(0)[-1] // (count if rank == 3 else 1)
    turned = int(op.attributes.get("rotary_embedding_dim", 0)) or width
    fields = _by_head(op, op.fields(0), count)
    for f in fields:
        if varying(f) & {0, 2}:
            raise Barrier("its batch or its positions are divided")
        if f.shape[3] == 1:
            continue
        if turned != width:
            op.share([f], "it turns some of the units of a head only")
            return [()]
        first, second = (f[..., ::2], f[..., 1::2]) if op.attributes.get("interleaved") else np.split(f, 2, axis=3)
        op.labels.tie(first, second)
        if any(not op.fields(i) and not op.constant(i) for i in (1, 2)):
            op.share([f], "its angles are in every part")
            return [()]
        for i in (1, 2):
            follow(op, (first,), i, tuple(align(g, 4) for g in op.fields(i) if varying(g) == {g.ndim - 1}))
    for i in (1, 2):
        op.share(g for g in op.fields(i) if varying(g) != {g.ndim - 1})
    if any(not op.weights_only(i) and op.fields(i) for i in (1, 2)):
        raise Barrier("its angles are divided")
    return [op.fields(0)]
