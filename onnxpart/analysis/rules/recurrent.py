"""Recurrent operators: LSTM, GRU, RNN. A unit is one hidden unit, with all its gates and in both directions.

The rows of W, R and B belong to units gate by gate, the columns of R to the units whose states they read, and the
columns of W to the features of X. With weights that are block diagonal over parts no unit reads another part's state.
"""

from __future__ import annotations

import numpy as np

from onnxpart.analysis.labels import Field, Fields, varying
from onnxpart.analysis.op import Barrier, Op
from onnxpart.analysis.rewrite import Indices, Rewrite
from onnxpart.analysis.rules.contraction import note_bias, note_weight
from onnxpart.analysis.rules.table import operator

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
"""How many gates each unit has."""
PEEPHOLES = 3
"""How many gates of an LSTM may see its cell."""
_X, _W, _R, _B, LENGTHS, _H, _C, _P = range(8)
_PLACEWISE = frozenset(
    (
        "affine", "elu", "hardsigmoid", "leakyrelu", "relu", "scaledtanh", "sigmoid", "softplus", "softsign", "tanh",
        "thresholdedrelu",
    )
)  # fmt: skip
"""The activations that ONNX has; of each the result at a unit depends on that unit alone."""


def rewrite_recurrent(r: Rewrite) -> None:
    """As many hidden units as the part keeps; what is shared along a divided axis is cut to the part's share of it."""
    op = r.op
    size = op.shape(_R)[2]
    units = next(r.kept_out(j)[-1] for j, name in enumerate(op.outputs) if name)
    features = _fewer(r.kept_in(_X)[2], r.kept_in(_W)[2])
    rows = _gates(units, size, GATES[op.op_type])
    want = {
        _X: (None, None, features),
        _W: (None, rows, features),
        _R: (None, rows, units),
        _B: (None, _gates(units, size, 2 * GATES[op.op_type])),
        _H: (None, None, units),
        _C: (None, None, units),
        _P: (None, _gates(units, size, PEEPHOLES)),
    }
    for i, kept in want.items():
        if op.has(i):
            r.narrow(i, kept)
    if units is not None:
        r.set("hidden_size", len(units))


@operator("RNN", "GRU", "LSTM", versions=(7, 14, 22), kind="recurrent", rewrite=rewrite_recurrent)
def recurrent(op: Op) -> list[Fields]:
    """LSTM, GRU and RNN, in any direction and with any optional input; `layout` moves other axes than the units'."""
    _check(op)
    gates, (directions, _, size) = GATES[op.op_type], op.shape(_R)
    made = op.labels.fresh((directions, size)) if size > 1 else np.zeros((1, 1), np.int32)
    units = op.labels.tie_along(made, [1]).reshape(-1)
    rows = np.tile(units, gates)
    tie(op, _W, {1: rows, 2: _features(op)})
    tie(op, _R, {1: rows, 2: units})
    tie(op, _B, {1: np.tile(rows, 2)})
    tie(op, _P, {1: np.tile(units, PEEPHOLES)})
    tie(op, _H, {2: units})
    tie(op, _C, {2: units})
    op.share(op.fields(LENGTHS), "its sequences' lengths are divided")
    note_weight(op, _W, (0, 1))
    note_weight(op, _R, (0, 1), gain=1.0)
    if op.has(_B):
        note_bias(op, _B)
    if size == 1:
        return [()] * len(op.outputs)
    op.labels.root(made, op.index)
    sequence = units.reshape(1, 1, 1, size)
    return [(sequence,), *[(sequence[0],)] * (len(op.outputs) - 1)]


def _check(op: Op) -> None:
    unknown = {a.decode() for a in op.attributes.get("activations", ()) if a.decode().lower() not in _PLACEWISE}
    if unknown:
        raise Barrier(f"the activation {min(unknown)} has no rule")
    if any(op.has(i) and not op.weights_only(i) for i in (_W, _R, _B, _P)):
        raise Barrier("its weights are computed from activations")
    if op.constant(_W) or op.constant(_R):
        raise Barrier("its weights are constants")


def _features(op: Op) -> Field:
    """Labels of the features of X, int32 [I] (or [1]: every part has them)."""
    result = np.zeros(1, np.int32)
    for f in op.fields(_X):
        if 2 not in varying(f):
            op.share([f], "its sequences are divided along another axis than the features")
            continue
        g = op.labels.tie_along(f, [2]).reshape(-1)
        if result.size == 1:
            result = g
        else:
            op.labels.tie(result, g)
    return result


def tie(op: Op, i: int, along: dict[int, Field]) -> None:
    """Tie the labels of input `i` along each axis in `along` to those given; those along others are in every part."""
    for f in op.fields(i):
        axes = varying(f) & along.keys()
        if len(axes) == 1:
            (axis,) = axes
            op.labels.tie(op.labels.tie_along(f, axes).reshape(-1), along[axis])
        else:
            op.share([f], "" if op.weights_only(i) else "its first state is divided along another axis than the units")


def _fewer(a: Indices | None, b: Indices | None) -> Indices | None:
    if a is None or b is None:
        return b if a is None else a
    return a if len(a) < len(b) else b


def _gates(units: Indices | None, size: int, gates: int) -> Indices | None:
    """The same units of each gate."""
    return None if units is None else np.concatenate([units + gate * size for gate in range(gates)])
