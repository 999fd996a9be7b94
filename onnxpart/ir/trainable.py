"""Which initializers training changes, told by the operators that read them and the inputs where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from math import prod

from onnx import NodeProto, TensorProto

from onnxpart.ir.protos import is_onnx

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))
"""The element types that are trained."""


class Kind(IntEnum):
    """What an initializer is; where several operators read it, the highest counts."""

    CONSTANT = 0
    """A number of a formula, as an exponent or an epsilon; and whatever isn't floating-point."""
    STATISTIC = 1
    """What a layer keeps of the data that it has seen: it has units, and no gradient."""
    PARAMETER = 2
    """A weight, bias or scale: it has units, and a gradient."""
    SETTING = 3
    """What an operator is told, as bounds or factors of size."""


_P, _S = Kind.PARAMETER, Kind.SETTING
SLOTS: Mapping[str, Mapping[int, Kind]] = {
    "BatchNormalization": {1: _P, 2: _P, 3: Kind.STATISTIC, 4: Kind.STATISTIC},
    "Clip": {1: _S, 2: _S},
    "Conv": {1: _P, 2: _P},
    "ConvTranspose": {1: _P, 2: _P},
    "Dropout": {1: _S, 2: _S},
    "GRU": {1: _P, 2: _P, 3: _P, 5: _P},
    "Gemm": {0: _P, 1: _P, 2: _P},
    "GroupNormalization": {1: _P, 2: _P},
    "InstanceNormalization": {1: _P, 2: _P},
    "LSTM": {1: _P, 2: _P, 3: _P, 5: _P, 6: _P, 7: _P},
    "LayerNormalization": {1: _P, 2: _P},
    "MatMul": {0: _P, 1: _P},
    "OneHot": {1: _S, 2: _S},
    "PRelu": {1: _P},
    "Pad": {1: _S, 2: _S, 3: _S},
    "RMSNormalization": {1: _P},
    "RNN": {1: _P, 2: _P, 3: _P, 5: _P},
    "Range": {0: _S, 1: _S, 2: _S},
    "Resize": {1: _S, 2: _S, 3: _S},
    "Upsample": {1: _S},
}
"""What floats are by operator and input. At any other input several are a parameter, and a single one is a constant."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def kinds(tensors: Iterable[TensorProto], nodes: Iterable[NodeProto]) -> dict[str, Kind]:
    """What each initializer is, by name.

    :param nodes: all that may read them, in order, those inside others included; what an Identity gives is what goes
        into it.
    :returns: constants for those that nothing reads, too, unless they hold several floats.
    """
    reads: dict[str, list[tuple[Kind | None, bool]]] = {}
    for name, use, added in _reads(nodes):
        reads.setdefault(name, []).append((use, added))
    return {tensor.name: _kind(tensor, reads.get(tensor.name, [(None, False)])) for tensor in tensors}


def _reads(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, Kind | None, bool]]:
    """Each value that is read, what the table says of that, and whether it is added to a product."""
    root: dict[str, str] = {}
    products: set[str] = set()
    for node in nodes:
        op_type, names = node.op_type if is_onnx(node) else "", node.input[:]
        if op_type == "Identity":
            root[node.output[0]] = root.get(names[0], names[0])
            continue
        if op_type in _PRODUCTS:
            products.add(node.output[0])
        slots, added = SLOTS.get(op_type, {}), op_type == "Add" and not products.isdisjoint(names)
        for i, name in enumerate(names):
            if name:
                yield root.get(name, name), slots.get(i), added


def _kind(tensor: TensorProto, reads: Iterable[tuple[Kind | None, bool]]) -> Kind:
    if tensor.data_type not in FLOATS:
        return Kind.CONSTANT
    several, vector = prod(tensor.dims) > 1, len(tensor.dims) > 0
    elsewhere = {added: Kind.PARAMETER if several or (added and vector) else Kind.CONSTANT for added in (False, True)}
    return max(elsewhere[added] if use is None else use for use, added in reads)
