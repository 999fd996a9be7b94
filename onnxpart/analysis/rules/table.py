"""The rule table: for every operator what happens to labels, and how its node is rewritten for a part.

An operator, or a version of it, that isn't in the table is a barrier: nothing that flows into it is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import onnx

from onnxpart.analysis.labels import Fields
from onnxpart.analysis.op import Op
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.analysis.rules import (
    attention,
    contraction,
    control_flow,
    elementwise,
    indexing,
    mix,
    movement,
    recurrent,
    sources,
)
from onnxpart.analysis.rules.opaque import opaque
from onnxpart.analysis.rules.versions import VERSIONS
from onnxpart.ir.flatten import ENTER, GRAPHS, LEAVE, Role, opaque_reason, role_of
from onnxpart.ir.protos import is_onnx

Kind = Literal["contraction", "recurrent", "elementwise", "movement", "mix", "source", "control flow"]
Mean = Literal["no", "data", "sum", "scale"]
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
    rewrite: Callable[[Rewrite], None] | None = None
    mean: Mean = "no"


def _all(names: str, kind: Kind, rule: Callable[[Op], list[Fields]], mean: Mean = "no") -> dict[str, Rule]:
    adapt = elementwise.rewrite_operands if rule is elementwise.broadcast else None
    return {name: Rule(kind, VERSIONS[name], rule, adapt, mean) for name in names.split()}


_ROWS: dict[str, tuple[Kind, Callable[[Op], list[Fields]], Callable[[Rewrite], None] | None, Mean]] = {
    "Conv": ("contraction", contraction.conv, contraction.rewrite_conv, "no"),
    "ConvTranspose": ("contraction", contraction.conv_transpose, contraction.rewrite_conv, "no"),
    "Gemm": ("contraction", contraction.gemm, contraction.rewrite_contraction, "no"),
    "MatMul": ("contraction", contraction.matmul, contraction.rewrite_contraction, "no"),
    "Einsum": ("contraction", contraction.einsum, contraction.rewrite_contraction, "no"),
    "Attention": ("contraction", attention.attention, attention.adapt, "no"),
    "RotaryEmbedding": ("mix", attention.rotary, attention.adapt, "no"),
    **dict.fromkeys(recurrent.GATES, ("recurrent", recurrent.recurrent, recurrent.rewrite, "no")),
    "DeformConv": ("contraction", contraction.deform_conv, None, "no"),
    "PRelu": ("elementwise", elementwise.prelu, elementwise.rewrite_operands, "no"),
    "BatchNormalization": ("elementwise", elementwise.per_channel, None, "no"),
    "QuantizeLinear": ("elementwise", elementwise.quantize, elementwise.rewrite_quantize, "no"),
    "DequantizeLinear": ("elementwise", elementwise.quantize, elementwise.rewrite_quantize, "no"),
    "GridSample": ("elementwise", elementwise.sample, None, "data"),
    "Reshape": ("movement", movement.reshape, movement.rewrite_reshape, "data"),
    "Flatten": ("movement", movement.reshape, None, "data"),
    "Squeeze": ("movement", movement.reshape, None, "data"),
    "Unsqueeze": ("movement", movement.reshape, None, "data"),
    "Transpose": ("movement", movement.transpose, None, "data"),
    "Concat": ("movement", movement.concat, movement.rewrite_concat, "sum"),
    "Split": ("movement", movement.split, movement.rewrite_split, "data"),
    "Slice": ("movement", movement.slice_, movement.rewrite_slice, "data"),
    "Gather": ("movement", movement.gather, movement.rewrite_gather, "data"),
    "Expand": ("movement", movement.expand, movement.rewrite_expand, "data"),
    "Tile": ("movement", movement.tile, movement.rewrite_tile, "data"),
    "Pad": ("movement", movement.pad, movement.rewrite_pad, "data"),
    "DepthToSpace": ("movement", movement.depth_to_space, None, "data"),
    "SpaceToDepth": ("movement", movement.space_to_depth, None, "data"),
    "Col2Im": ("movement", movement.col2im, None, "data"),
    "CenterCropPad": ("movement", movement.center_crop_pad, movement.rewrite_center_crop_pad, "data"),
    "GatherElements": ("movement", indexing.elements, indexing.narrow_elements, "data"),
    "GatherND": ("movement", indexing.gather_nd, None, "data"),
    "Scatter": ("movement", indexing.elements, indexing.narrow_elements, "no"),
    "ScatterElements": ("movement", indexing.elements, indexing.narrow_elements, "no"),
    "TensorScatter": ("movement", indexing.elements, indexing.narrow_elements, "no"),
    "ScatterND": ("movement", indexing.scatter_nd, indexing.narrow_blocks, "no"),
    "Trilu": ("movement", indexing.triangle, None, "data"),
    "ReverseSequence": ("movement", indexing.reverse_sequence, None, "data"),
    "OneHot": ("movement", indexing.one_hot, None, "no"),
    "DFT": ("mix", indexing.fourier, None, "data"),
    "Resize": ("elementwise", elementwise.pool, elementwise.rewrite_resize, "data"),
    "Upsample": ("elementwise", elementwise.pool, None, "data"),
    "LRN": ("mix", mix.channels, None, "no"),
    "LayerNormalization": ("mix", mix.layer_norm, mix.rewrite_layer_norm, "no"),
    "RMSNormalization": ("mix", mix.layer_norm, mix.rewrite_layer_norm, "no"),
    "InstanceNormalization": ("mix", mix.instance_norm, None, "no"),
    "GroupNormalization": ("mix", mix.group_norm, mix.rewrite_group_norm, "no"),
    "MeanVarianceNormalization": ("mix", mix.mean_variance, None, "no"),
    "ReduceMean": ("mix", mix.reduce, None, "data"),
    "ReduceSum": ("mix", mix.reduce, None, "data"),
    "ArgMax": ("mix", mix.arg, None, "no"),
    "ArgMin": ("mix", mix.arg, None, "no"),
    "TopK": ("mix", mix.top_k, None, "no"),
    "Shape": ("source", elementwise.source, sources.rewrite_shape, "no"),
    "Size": ("source", elementwise.source, sources.rewrite_shape, "no"),
    "If": ("control flow", control_flow.branches, control_flow.cut_branches, "sum"),
    "Loop": ("control flow", control_flow.leave_state, control_flow.cut_back, "data"),
    "Scan": ("control flow", control_flow.leave_state, control_flow.cut_back, "data"),
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
    **{name: Rule(kind, VERSIONS[name], labels, adapt, mean) for name, (kind, labels, adapt, mean) in _ROWS.items()},
}
Marker = tuple[Callable[[Op], list[Fields]], Callable[[Rewrite], None] | None, Mean]
MARKERS: dict[tuple[str, Role], Marker] = {
    (ENTER, Role.CONDITION): (control_flow.setting, None, "no"),
    (ENTER, Role.COUNT): (control_flow.setting, None, "no"),
    (ENTER, Role.GOING): (control_flow.setting, None, "no"),
    (ENTER, Role.LENGTHS): (control_flow.setting, None, "no"),
    (ENTER, Role.STATE): (control_flow.enter_state, control_flow.cut_in, "no"),
    (ENTER, Role.EACH): (control_flow.enter_each, None, "data"),
    (LEAVE, Role.GOING): (control_flow.setting, None, "no"),
    (LEAVE, Role.STATE): (control_flow.leave_state, control_flow.cut_back, "no"),
    (LEAVE, Role.EACH): (control_flow.leave_each, None, "data"),
    (LEAVE, Role.BRANCHES): (control_flow.branches, control_flow.cut_branches, "sum"),
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
    if not is_onnx(op.node) and not marker:
        return f"operators of the domain {op.domain!r} have no rule"
    rule = TABLE.get(op.op_type)
    if rule is None:
        reason = opaque(op.op_type)
        return f"the operator {op.op_type} has no rule" + (f": {reason}" if reason else "")
    version = _version(op.op_type, op.opset)
    if version not in rule.versions:
        return f"version {version} of {op.op_type} has no rule"
    if marker:
        if control_flow.differ(op):
            return "its branches give tensors with different numbers of axes"
        labels, adapt, mean = MARKERS[op.domain, role_of(op.node)]
        return Rule("control flow", rule.versions, labels, adapt, mean)
    if op.op_type in GRAPHS:
        return opaque_reason(op.node)
    return rule
