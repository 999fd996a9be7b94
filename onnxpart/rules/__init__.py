"""The rule table: for every operator what happens to labels, and how its node is rewritten for a part.

An operator, or a version of it, that isn't in the table is a barrier: nothing that flows into it is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import onnx

from onnxpart.control import ENTER, GRAPHS, LEAVE, opaque_reason
from onnxpart.labels import Fields
from onnxpart.rules import attention, control, elementwise, equation, mix, movement, positions, recurrent, rewrite
from onnxpart.rules.context import Op
from onnxpart.rules.opaque import opaque

Kind = Literal["equation", "recurrent", "elementwise", "movement", "mix", "source", "control flow"]
Linear = Literal["no", "data", "sum", "scale"]
"""Whether the mean over parts passes through: never; if the first input has it and the rest is the same in every part;
if every input has it or is the same in every part; if one input has it and the others are the same in every part."""


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    `versions` are the operator versions that it is right for, `labels` gives the outputs' fields, `rewrite` adapts the
    node to a part (None: the node stays as it is).
    """

    kind: Kind
    versions: tuple[int, ...]
    labels: Callable[[Op], list[Fields]]
    rewrite: Callable[[rewrite.Rewrite], None] | None = None
    linear: Linear = "no"


def _all(names: str, kind: Kind, rule: Callable[[Op], list[Fields]], linear: Linear = "no") -> dict[str, Rule]:
    adapt = rewrite.operands if rule is elementwise.broadcast else None
    return {name: Rule(kind, _VERSIONS[name], rule, adapt, linear) for name in names.split()}


_VERSIONS: dict[str, tuple[int, ...]] = {
    "Abs": (6, 13),
    "Acos": (7, 22),
    "Acosh": (9, 22),
    "Add": (7, 13, 14),
    "And": (7,),
    "ArgMax": (1, 11, 12, 13),
    "ArgMin": (1, 11, 12, 13),
    "Asin": (7, 22),
    "Asinh": (9, 22),
    "Atan": (7, 22),
    "Atanh": (9, 22),
    "Attention": (23, 24, 25),
    "AveragePool": (7, 10, 11, 19, 22),
    "BatchNormalization": (7, 9, 14, 15),
    "BitCast": (26,),
    "BitShift": (11, 28),
    "BitwiseAnd": (18,),
    "BitwiseNot": (18,),
    "BitwiseOr": (18,),
    "BitwiseXor": (18,),
    "BlackmanWindow": (17,),
    "Cast": (6, 9, 13, 19, 21, 23, 24, 25, 28),
    "CastLike": (15, 19, 21, 23, 24, 25),
    "Ceil": (6, 13),
    "Celu": (12, 28),
    "CenterCropPad": (18,),
    "Clip": (6, 11, 12, 13),
    "Col2Im": (18,),
    "Concat": (4, 11, 13),
    "Constant": (1, 9, 11, 12, 13, 19, 21, 23, 24, 25),
    "ConstantOfShape": (9, 20, 21, 23, 24, 25),
    "Conv": (1, 11, 22),
    "ConvTranspose": (1, 11, 22),
    "Cos": (7, 22),
    "Cosh": (9, 22),
    "CumProd": (26,),
    "CumSum": (11, 14),
    "DFT": (17, 20),
    "DeformConv": (19, 22),
    "DepthToSpace": (1, 11, 13, 28),
    "DequantizeLinear": (10, 13, 19, 21, 23, 24, 25, 28),
    "Div": (7, 13, 14),
    "Dropout": (7, 10, 12, 13, 22),
    "Einsum": (12, 28),
    "Elu": (6, 22),
    "Equal": (7, 11, 13, 19),
    "Erf": (9, 13),
    "Exp": (6, 13),
    "Expand": (8, 13),
    "EyeLike": (9, 22),
    "Flatten": (1, 9, 11, 13, 21, 23, 24, 25),
    "Floor": (6, 13),
    "GRU": (7, 14, 22),
    "Gather": (1, 11, 13),
    "GatherElements": (11, 13),
    "GatherND": (11, 12, 13),
    "Gelu": (20,),
    "Gemm": (7, 9, 11, 13),
    "GlobalAveragePool": (1, 22),
    "GlobalLpPool": (2, 22),
    "GlobalMaxPool": (1, 22),
    "Greater": (7, 9, 13),
    "GreaterOrEqual": (12, 16),
    "GridSample": (16, 20, 22),
    "GroupNormalization": (21,),
    "HammingWindow": (17,),
    "HannWindow": (17,),
    "HardSigmoid": (6, 22),
    "HardSwish": (14, 22),
    "Hardmax": (1, 11, 13),
    "If": (1, 11, 13, 16, 19, 21, 23, 24, 25),
    "Identity": (1, 13, 14, 16, 19, 21, 23, 24, 25),
    "InstanceNormalization": (6, 22),
    "IsInf": (10, 20),
    "IsNaN": (9, 13, 20),
    "LRN": (1, 13),
    "LSTM": (7, 14, 22),
    "LayerNormalization": (17,),
    "LeakyRelu": (6, 16),
    "Less": (7, 9, 13),
    "LessOrEqual": (12, 16),
    "Log": (6, 13),
    "LogSoftmax": (1, 11, 13),
    "Loop": (1, 11, 13, 16, 19, 21, 23, 24, 25),
    "LpNormalization": (1, 22),
    "LpPool": (2, 11, 18, 22),
    "MatMul": (1, 9, 13),
    "Max": (6, 8, 12, 13),
    "MaxPool": (1, 8, 10, 11, 12, 22),
    "MaxRoiPool": (1, 22),
    "Mean": (6, 8, 13),
    "MeanVarianceNormalization": (9, 13),
    "MelWeightMatrix": (17,),
    "Min": (6, 8, 12, 13),
    "Mish": (18, 22),
    "Mod": (10, 13, 28),
    "Mul": (7, 13, 14),
    "Neg": (6, 13),
    "Not": (1,),
    "OneHot": (9, 11, 28),
    "Or": (7,),
    "PRelu": (7, 9, 16),
    "Pad": (2, 11, 13, 18, 19, 21, 23, 24, 25),
    "Pow": (7, 12, 13, 15),
    "QuantizeLinear": (10, 13, 19, 21, 23, 24, 25, 28),
    "RMSNormalization": (23,),
    "RNN": (7, 14, 22),
    "RandomNormal": (1, 22),
    "RandomUniform": (1, 22),
    "Range": (11, 27),
    "Reciprocal": (6, 13),
    "ReduceL1": (1, 11, 13, 18),
    "ReduceL2": (1, 11, 13, 18),
    "ReduceLogSum": (1, 11, 13, 18, 28),
    "ReduceLogSumExp": (1, 11, 13, 18, 28),
    "ReduceMax": (1, 11, 12, 13, 18, 20),
    "ReduceMean": (1, 11, 13, 18),
    "ReduceMin": (1, 11, 12, 13, 18, 20),
    "ReduceProd": (1, 11, 13, 18),
    "ReduceSum": (1, 11, 13),
    "ReduceSumSquare": (1, 11, 13, 18),
    "Relu": (6, 13, 14),
    "Reshape": (5, 13, 14, 19, 21, 23, 24, 25),
    "Resize": (10, 11, 13, 18, 19),
    "ReverseSequence": (10, 28),
    "RoiAlign": (10, 16, 22),
    "RotaryEmbedding": (23,),
    "Round": (11, 22),
    "Scan": (8, 9, 11, 16, 19, 21, 23, 24, 25),
    "Scatter": (9,),
    "ScatterElements": (11, 13, 16, 18),
    "ScatterND": (11, 13, 16, 18),
    "Selu": (6, 22),
    "Shape": (1, 13, 15, 19, 21, 23, 24, 25),
    "Shrink": (9,),
    "Sigmoid": (6, 13),
    "Sign": (9, 13),
    "Sin": (7, 22),
    "Sinh": (9, 22),
    "Size": (1, 13, 19, 21, 23, 24, 25),
    "Slice": (1, 10, 11, 13),
    "Softmax": (1, 11, 13),
    "Softplus": (1, 22),
    "Softsign": (1, 22),
    "SpaceToDepth": (1, 13, 28),
    "Split": (2, 11, 13, 18),
    "Sqrt": (6, 13),
    "Squeeze": (1, 11, 13, 21, 23, 24, 25),
    "Sub": (7, 13, 14),
    "Sum": (6, 8, 13),
    "Swish": (24,),
    "Tan": (7, 22),
    "Tanh": (6, 13),
    "TensorScatter": (24,),
    "ThresholdedRelu": (10, 22),
    "Tile": (6, 13),
    "TopK": (1, 10, 11, 24),
    "Trilu": (14,),
    "Transpose": (1, 13, 21, 23, 24, 25),
    "Unsqueeze": (1, 11, 13, 21, 23, 24, 25),
    "Upsample": (7, 9, 10),
    "Where": (9, 16),
    "Xor": (7,),
}

_ROWS: dict[str, tuple[Kind, Callable[[Op], list[Fields]], Callable[[rewrite.Rewrite], None] | None, Linear]] = {
    "Conv": ("equation", equation.conv, rewrite.conv, "no"),
    "ConvTranspose": ("equation", equation.conv_transpose, rewrite.conv, "no"),
    "Gemm": ("equation", equation.gemm, rewrite.contraction, "no"),
    "MatMul": ("equation", equation.matmul, rewrite.contraction, "no"),
    "Einsum": ("equation", equation.einsum, rewrite.contraction, "no"),
    "Attention": ("equation", attention.attention, attention.adapt, "no"),
    "RotaryEmbedding": ("mix", attention.rotary, attention.adapt, "no"),
    **dict.fromkeys(recurrent.GATES, ("recurrent", recurrent.recurrent, recurrent.rewrite, "no")),
    "DeformConv": ("equation", equation.deform_conv, None, "no"),
    "PRelu": ("elementwise", elementwise.prelu, rewrite.operands, "no"),
    "BatchNormalization": ("elementwise", elementwise.per_channel, None, "no"),
    "QuantizeLinear": ("elementwise", elementwise.quantize, rewrite.quantize, "no"),
    "DequantizeLinear": ("elementwise", elementwise.quantize, rewrite.quantize, "no"),
    "GridSample": ("elementwise", elementwise.sample, None, "data"),
    "Reshape": ("movement", movement.reshape, rewrite.reshape, "data"),
    "Flatten": ("movement", movement.reshape, None, "data"),
    "Squeeze": ("movement", movement.reshape, None, "data"),
    "Unsqueeze": ("movement", movement.reshape, None, "data"),
    "Transpose": ("movement", movement.transpose, None, "data"),
    "Concat": ("movement", movement.concat, rewrite.concat, "sum"),
    "Split": ("movement", movement.split, rewrite.split, "data"),
    "Slice": ("movement", movement.slice_, rewrite.slice_, "data"),
    "Gather": ("movement", movement.gather, rewrite.gather, "data"),
    "Expand": ("movement", movement.expand, rewrite.expand, "data"),
    "Tile": ("movement", movement.tile, rewrite.tile, "data"),
    "Pad": ("movement", movement.pad, rewrite.pad, "data"),
    "DepthToSpace": ("movement", movement.depth_to_space, None, "data"),
    "SpaceToDepth": ("movement", movement.space_to_depth, None, "data"),
    "Col2Im": ("movement", movement.col2im, None, "data"),
    "CenterCropPad": ("movement", movement.center_crop_pad, rewrite.center_crop_pad, "data"),
    "GatherElements": ("movement", positions.elements, positions.narrow_elements, "data"),
    "GatherND": ("movement", positions.gather_nd, None, "data"),
    "Scatter": ("movement", positions.elements, positions.narrow_elements, "no"),
    "ScatterElements": ("movement", positions.elements, positions.narrow_elements, "no"),
    "TensorScatter": ("movement", positions.elements, positions.narrow_elements, "no"),
    "ScatterND": ("movement", positions.scatter_nd, positions.narrow_blocks, "no"),
    "Trilu": ("movement", positions.triangle, None, "data"),
    "ReverseSequence": ("movement", positions.reverse_sequence, None, "data"),
    "OneHot": ("movement", positions.one_hot, None, "no"),
    "DFT": ("mix", positions.fourier, None, "data"),
    "Resize": ("elementwise", elementwise.pool, rewrite.resize, "data"),
    "Upsample": ("elementwise", elementwise.pool, None, "data"),
    "LRN": ("mix", mix.channels, None, "no"),
    "LayerNormalization": ("mix", mix.layer_norm, rewrite.layer_norm, "no"),
    "RMSNormalization": ("mix", mix.layer_norm, rewrite.layer_norm, "no"),
    "InstanceNormalization": ("mix", mix.instance_norm, None, "no"),
    "GroupNormalization": ("mix", mix.group_norm, rewrite.group_norm, "no"),
    "MeanVarianceNormalization": ("mix", mix.mean_variance, None, "no"),
    "ReduceMean": ("mix", mix.reduce, None, "data"),
    "ReduceSum": ("mix", mix.reduce, None, "data"),
    "ArgMax": ("mix", mix.arg, None, "no"),
    "ArgMin": ("mix", mix.arg, None, "no"),
    "TopK": ("mix", mix.top_k, None, "no"),
    "Shape": ("source", elementwise.source, rewrite.shape, "no"),
    "Size": ("source", elementwise.source, rewrite.shape, "no"),
    "If": ("control flow", control.branches, control.cut_branches, "sum"),
    "Loop": ("control flow", control.leave_state, control.cut_back, "data"),
    "Scan": ("control flow", control.leave_state, control.cut_back, "data"),
}

TABLE: dict[str, Rule] = {
    **_all(
        "Relu LeakyRelu Elu Selu Celu Gelu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Mish Swish Abs Exp Log "
        "ThresholdedRelu Sqrt Reciprocal Floor Ceil Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh "
        "Erf Clip Not IsNaN IsInf Shrink BitwiseNot BitCast",
        "elementwise",
        elementwise.unary,
    ),
    **_all("Identity Cast CastLike Dropout Neg", "elementwise", elementwise.unary, "data"),
    **_all(
        "Pow Min Max Where Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Mod BitShift BitwiseAnd BitwiseOr "
        "BitwiseXor",
        "elementwise",
        elementwise.broadcast,
    ),
    **_all("Add Sub Sum", "elementwise", elementwise.broadcast, "sum"),
    **_all("Mul", "elementwise", elementwise.broadcast, "scale"),
    **_all("Div", "elementwise", elementwise.broadcast, "data"),
    **_all("Mean", "elementwise", elementwise.broadcast),
    **_all("AveragePool", "elementwise", elementwise.pool, "data"),
    **_all("MaxPool LpPool GlobalLpPool", "elementwise", elementwise.pool),
    **_all("GlobalAveragePool", "mix", mix.places, "data"),
    **_all("GlobalMaxPool", "mix", mix.places),
    **_all("Softmax LogSoftmax Hardmax", "mix", mix.softmax),
    **_all("LpNormalization CumSum CumProd", "mix", mix.along_axis),
    **_all(
        "ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare",
        "mix",
        mix.reduce,
    ),
    **_all("MaxRoiPool RoiAlign", "elementwise", elementwise.sample),
    **_all(
        "Constant ConstantOfShape Range RandomNormal RandomUniform EyeLike HannWindow HammingWindow BlackmanWindow "
        "MelWeightMatrix",
        "source",
        elementwise.source,
    ),
    **{
        name: Rule(kind, _VERSIONS[name], labels, adapt, linear)
        for name, (kind, labels, adapt, linear) in _ROWS.items()
    },
}

Marker = tuple[Callable[[Op], list[Fields]], Callable[[rewrite.Rewrite], None] | None, Linear]
MARKERS: dict[tuple[str, str], Marker] = {
    (ENTER, "condition"): (control.setting, None, "no"),
    (ENTER, "count"): (control.setting, None, "no"),
    (ENTER, "going"): (control.setting, None, "no"),
    (ENTER, "lengths"): (control.setting, None, "no"),
    (ENTER, "state"): (control.enter_state, control.cut_in, "no"),
    (ENTER, "each"): (control.enter_each, None, "data"),
    (LEAVE, "going"): (control.setting, None, "no"),
    (LEAVE, "state"): (control.leave_state, control.cut_back, "no"),
    (LEAVE, "each"): (control.leave_each, None, "data"),
    (LEAVE, "branches"): (control.branches, control.cut_branches, "sum"),
}
"""The same for the markers of what goes into If, Loop and Scan and of what comes out, by domain and role."""


@cache
def _version(op_type: str, opset: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return None


def find(op: Op) -> Rule | str:
    """The rule of an operator, or why there is none."""
    marker = op.domain in (ENTER, LEAVE)
    if op.domain not in ("", "ai.onnx") and not marker:
        return f"operators of the domain {op.domain!r} have no rule"
    rule = TABLE.get(op.op_type)
    if rule is None:
        reason = opaque(op.op_type)
        return f"the operator {op.op_type} has no rule" + (f": {reason}" if reason else "")
    version = _version(op.op_type, op.opset)
    if version not in rule.versions:
        return f"version {version} of {op.op_type} has no rule"
    if marker:
        if control.differ(op):
            return "its branches give tensors with different numbers of axes"
        labels, adapt, linear = MARKERS[op.domain, op.attributes["role"].decode()]
        return Rule("control flow", rule.versions, labels, adapt, linear)
    if op.op_type in GRAPHS:
        return opaque_reason(op.node)
    return rule
