"""Operators without a rule, and why: nothing that flows into one is divided.

Every version of every operator of the default domain either has a row in the table or a reason here.
"""

from __future__ import annotations

from functools import cache

import onnx

from onnxpart.ir.model import OLDEST_OPSET
from onnxpart.ir.protos import normal_domain

_REASONS = {
    "what its sequence holds isn't known": (
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SequenceMap SplitToSequence"
    ),
    "whether its optional holds a value isn't known": "Optional OptionalGetElement OptionalHasElement",
    "it carries a state along a sequence": "CausalConvWithState LinearAttention",
    "it cuts a signal into frames": "STFT",
    "it decodes a file": "ImageDecoder",
    "it handles strings": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "it is for training, and compares all classes": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "it needs its whole matrix": "AffineGrid Det",
    "its integer weights neither train nor divide by K": "ConvInteger MatMulInteger QLinearConv QLinearMatMul",
    "its positions count over all channels": "MaxUnpool",
    "its scale depends on all units": "DynamicQuantizeLinear",
    "its size depends on the data": "Compress NonMaxSuppression NonZero Unique",
    "ONNX Runtime can't run it, so no rule can be verified": "SwiGLU",
    "the parts would draw different random numbers": "Bernoulli Multinomial RandomNormalLike RandomUniformLike",
}
_OPERATORS = {name: reason for reason, names in _REASONS.items() for name in names.split()}
_DEPRECATED = {("GroupNormalization", 18), ("Scatter", 11)}
"""Versions that onnx's own checker refuses."""


@cache
def history() -> dict[str, tuple[int, ...]]:
    """The operators of ONNX's default domain with all their versions, ascending."""
    found: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not normal_domain(schema.domain):
            found.setdefault(schema.name, set()).add(schema.since_version)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


def opaque(op_type: str, version: int | None = None) -> str | None:
    """Why an operator, or a version of it, is known to have no rule; None where nothing is known."""
    if op_type in _OPERATORS:
        return _OPERATORS[op_type]
    if (op_type, version) in _DEPRECATED:
        return "deprecated"
    later = [v for v in history().get(op_type, ()) if version is not None and v > version]
    return f"replaced by opset {OLDEST_OPSET}, the oldest" if later and later[0] <= OLDEST_OPSET else None
