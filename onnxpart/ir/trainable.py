"""Which initializers training changes, by the operators and inputs that read them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from math import prod

from onnx import ModelProto, NodeProto, TensorProto

from onnxpart.ir.protos import is_onnx, metadata_of
from onnxpart.storage.json_text import from_json

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""The element types that are trained."""


FROZEN = "frozen_parameters"
"""Key under which a model names parameters that aren't trained, as a list in JSON."""


PADDING = "padding_rows"
"""Key under which a model gives the row of padding of embeddings, an object in JSON; lookups don't train that row."""


def frozen(proto: ModelProto) -> frozenset[str]:
    """The parameters that a model itself names as not trained."""
    names = _told(proto, FROZEN)
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def padding(proto: ModelProto) -> dict[str, int]:
    """The row of padding of embeddings, by their names, as a model itself gives it."""
    rows = _told(proto, PADDING)
    return {name: row for name, row in rows.items() if isinstance(row, int)} if isinstance(rows, dict) else {}


def told_of_copies(proto: ModelProto, copies: Mapping[str, Collection[str]]) -> dict[str, str]:
    """What a model says of its parameters under `FROZEN` and `PADDING`, extended to copies, which are given by name."""
    held, rows = frozen(proto), padding(proto)
    told: dict[str, object] = {}
    if not held.isdisjoint(copies):
        told[FROZEN] = sorted(held.union(*(copies[name] for name in held & copies.keys())))
    if not rows.keys().isdisjoint(copies):
        told[PADDING] = rows | {copy: row for name, row in rows.items() for copy in copies.get(name, ())}
    return {key: json.dumps(value) for key, value in told.items()}


def _told(proto: ModelProto, key: str) -> object:
    """What a model says under a key in JSON; None if it says nothing, or isn't to be read."""
    try:
        return from_json(metadata_of(proto).get(key, "null"))
    except ValueError:
        return None


class Kind(IntEnum):
    """What an initializer is; if several operators read it, the highest counts."""

    CONSTANT = 0
    """A number of a formula, such as an exponent or an epsilon, and everything that isn't floating-point."""
    STATISTIC = 1
    """What a layer keeps of the data that it has seen: it has units, and no gradient."""
    PARAMETER = 2
    """A weight, bias or scale: it has units, and a gradient."""
    SETTING = 3
    """A setting of an operator, such as bounds or scales."""


_P, _S = Kind.PARAMETER, Kind.SETTING
SLOTS: Mapping[str, Mapping[int, Kind]] = {
    "BatchNormalization": {1: _P, 2: _P, 3: Kind.STATISTIC, 4: Kind.STATISTIC},
    "Clip": {1: _S, 2: _S},
    "Conv": {1: _P, 2: _P},
    "ConvTranspose": {1: _P, 2: _P},
    "Dropout": {1: _S},
    "GRU": {1: _P, 2: _P, 3: _P, 5: _P},
    "Gemm": {0: _P, 1: _P, 2: _P},
    "GroupNormalization": {1: _P, 2: _P},
    "InstanceNormalization": {1: _P, 2: _P},
    "LSTM": {1: _P, 2: _P, 3: _P, 5: _P, 6: _P, 7: _P},
    "LayerNormalization": {1: _P, 2: _P},
    "MatMul": {0: _P, 1: _P},
    "OneHot": {1: _S, 2: _S},
    "PRelu": {1: _P},
    "Pad": {2: _S},
    "RMSNormalization": {1: _P},
    "RNN": {1: _P, 2: _P, 3: _P, 5: _P},
    "Range": {0: _S, 1: _S, 2: _S},
    "Resize": {1: _S, 2: _S},
    "Upsample": {1: _S},
}
"""What floats are, by operator and input. At other inputs several floats are a parameter, and one is a constant."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STEPS = frozenset(
    (
        "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero",
        "Shape", "Size",
    )
)  # fmt: skip
"""Operators that make no floats of floats, so that none of their inputs has a gradient; a Cast may be one."""
_MOVED = frozenset(("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators whose first input has a gradient if their output has one."""


def kinds(tensors: Collection[TensorProto], nodes: Iterable[NodeProto]) -> dict[str, Kind]:
    """What each initializer is, by name.

    :param nodes: all nodes that may read them, in order, with those inside others. The output of an Identity counts as
        its input.
    :returns: a kind for each initializer. One that nothing reads is a constant, unless it holds several floats.
    """
    floats = {tensor.name: tensor for tensor in tensors if tensor.data_type in FLOATS}
    read = [(node, node.op_type if is_onnx(node) else "", node.input[:]) for node in nodes]
    compared = _without_gradient(read)
    found: dict[str, Kind] = {}
    root: dict[str, str] = {}
    products: set[str] = set()
    for node, op_type, names in read:
        if op_type == "Identity":
            root[node.output[0]] = root.get(names[0], names[0])
            continue
        if op_type in _PRODUCTS:
            products.add(node.output[0])
        if floats.keys().isdisjoint(names) and root.keys().isdisjoint(names):
            continue
        slots, added = SLOTS.get(op_type, {}), op_type == "Add" and not products.isdisjoint(names)
        for i, name in enumerate(names):
            source = root.get(name, name)
            tensor = floats.get(source)
            if tensor is not None:
                kind = slots.get(i) or (Kind.CONSTANT if name in compared else _by_size(tensor, added))
                found[source] = max(kind, found.get(source, kind))
    unread = {name: _by_size(tensor, False) for name, tensor in floats.items() if name not in found}
    return dict.fromkeys([tensor.name for tensor in tensors], Kind.CONSTANT) | unread | found


def _without_gradient(read: Sequence[tuple[NodeProto, str, Sequence[str]]]) -> set[str]:
    """The values that have no gradient: those that are only compared, counted or the like.

    :param read: all nodes in order, each with its operator, empty for one that isn't ONNX's, and what it reads.
    """
    if all(op_type not in _STEPS and op_type != "Cast" for _, op_type, _ in read):
        return set()
    result: set[str] = set()
    flows: set[str] = set()
    for node, op_type, names in reversed(read):
        steps = op_type in _STEPS or (op_type == "Cast" and not any(a.i in FLOATS for a in node.attribute))
        if not steps:
            moves = op_type in _MOVED and node.output[0] in result and node.output[0] not in flows
            flows.update(names[1:] if moves else names)
        result.update(names)
    return result - flows


def _by_size(tensor: TensorProto, added: bool) -> Kind:
    """What floats are if the table doesn't list them; a vector that is `added` to a product is its bias."""
    size = prod(tensor.dims)
    return Kind.PARAMETER if size > 1 or (added and tensor.dims) else Kind.CONSTANT
