"""Two oracles in ONNX Runtime: the ensemble identity and the block identity, on weights that hide nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxpart.analyse import Analysis
from onnxpart.emit import emit_part, emit_whole, layout_of, slice_array
from onnxpart.errors import OnnxpartError
from onnxpart.files import Array, to_array
from onnxpart.layout import Layout, NotAGrid
from onnxpart.merge import merge
from onnxpart.model import Model, arrays, with_arrays
from onnxpart.plan import Plan
from onnxpart.rules.recurrent import GATES, LENGTHS
from onnxpart.rules.rewrite import sizes
from onnxpart.shapes import input_shapes

TOLERANCE = 1e-4
"""Largest deviation allowed, relative to the spread (standard deviation) of what is compared."""
FLAT = 0.1
"""Values that spread less than this share of the largest are measured by that share: rounding isn't a deviation."""
MASKED = 1e30
"""Values beyond this are masks, infinite or as good as that: they compare by sign."""
SCATTER = 0.3
"""Standard deviation of the factors that fresh parameters are scaled by, and of those that were zero."""
SMALL_MODEL = 1 << 22
"""A model of fewer bytes is run by one thread: it is done before others have started."""


@dataclass(frozen=True)
class Finding:
    """One comparison: which oracle, on which weights and batch, the worst tensor and its relative deviation."""

    oracle: str
    weights: str
    batch: int
    compared: int
    worst: str
    deviation: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return bool(self.deviation <= TOLERANCE)


@dataclass(frozen=True)
class Verdict:
    """What the oracles say; `against` is the graph that was compared with the parts."""

    against: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether every comparison holds and each oracle compared something."""
        return all(f.holds and f.compared > 0 for f in self.findings) and bool(self.findings)

    @property
    def deviation(self) -> float:
        """The largest deviation of all."""
        return max(f.deviation for f in self.findings)


def verify(
    analysis: Analysis,
    plan: Plan,
    *,
    parts: Sequence[onnx.ModelProto] | None = None,
    whole: onnx.ModelProto | None = None,
    seed: int = 0,
) -> Verdict:
    """Check that the merged whole is the parts' ensemble, and that its blocks behave as the parts side by side.

    *Ensemble identity*: right after merging, the whole's linear outputs are the mean over the parts'. *Block identity*:
    with every weight between parts at zero, each hidden tensor of the whole holds, at a part's indices, what the part
    computes. Both on the parts' own weights and on freshly drawn ones, for several batch sizes where the batch is
    symbolic.

    :param parts: the emitted parts, :param whole: the duplicated whole; emitted here when omitted.
    :returns: one finding per oracle, set of weights and batch size.
    :raises OnnxpartError: when ONNX Runtime can't run the models.
    """
    layout = layout_of(analysis, plan)
    if parts is None:
        parts = [emit_part(analysis, plan, p) for p in range(plan.k)]
    if whole is None:
        whole = emit_whole(analysis, plan)
    own = [arrays(Model(part, f"part {p}", "")) for p, part in enumerate(parts)]
    rng = np.random.default_rng(seed)
    fresh = [draw(analysis, plan, layout, p, rng) for p in range(plan.k)]
    findings = []
    for label, values in (("own", own), ("fresh", fresh)):
        runs = _Runs(analysis, plan, layout, (parts, whole), values)
        for trial in (0, 1) if _dynamic_batch(analysis) else (0,):
            findings += runs.compare(label, trial, rng)
    return Verdict("original" if plan.same_graph else "duplicated whole", tuple(findings))


def _dynamic_batch(analysis: Analysis) -> bool:
    first = [d for v in analysis.model.proto.graph.input for d in v.type.tensor_type.shape.dim[:1]]
    return any(not d.HasField("dim_value") for d in first)


class _Runs:
    """Sessions of the whole and of the parts, with taps on what is compared."""

    def __init__(
        self,
        analysis: Analysis,
        plan: Plan,
        layout: Layout,
        models: tuple[Sequence[onnx.ModelProto], onnx.ModelProto],
        values: Sequence[Mapping[str, Array]],
    ) -> None:
        parts, whole = models
        self.analysis, self.plan, self.layout = analysis, plan, layout
        self.hidden = [] if plan.k == 1 else _hidden(layout, whole)
        self.mean = list(plan.mean)
        taps = [*self.mean, *self.hidden]
        merged = merge(plan, _full(plan, parts, values))
        self.whole, *self.parts = [
            Session(tap(_smooth(with_arrays(m, v)), taps, analysis))
            for m, v in zip((whole, *parts), (merged, *values), strict=True)
        ]

    def compare(self, label: str, trial: int, rng: np.random.Generator) -> list[Finding]:
        """One finding per oracle."""
        feed = inputs(self.analysis, trial, rng)
        batch = next(iter(feed.values())).shape[:1]
        whole = self.whole.run(feed)
        parts = [session.run(feed) for session in self.parts]
        size = int(batch[0]) if batch else 1
        ensemble = {n: _deviation(whole[n], np.mean([p[n] for p in parts], axis=0)) for n in self.mean}
        findings = [_finding("ensemble identity", label, size, ensemble)]
        if self.hidden:
            blocks = {}
            for name in self.hidden:
                spread = float(np.std(whole[name]))
                blocks[name] = max(
                    _deviation(_at(whole[name], self.layout, name, p), part[name], spread)
                    for p, part in enumerate(parts)
                )
            findings.append(_finding("block identity", label, size, blocks))
        return findings


def _full(
    plan: Plan, parts: Sequence[onnx.ModelProto], values: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """The arrays to merge: those given, and the parts' own for the rest (constants of the formula)."""
    result = []
    for part, given in zip(parts, values, strict=True):
        rest = {t.name: to_array(t, None) for t in part.graph.initializer
                if t.name in plan.by_name and t.name not in given}  # fmt: skip
        result.append({**rest, **given})
    return result


def _finding(oracle: str, label: str, batch: int, deviations: Mapping[str, float]) -> Finding:
    worst = max(deviations, key=lambda n: deviations[n]) if deviations else ""
    return Finding(oracle, label, batch, len(deviations), worst, deviations.get(worst, 0.0))


def _deviation(a: Array, b: Array, spread: float | None = None) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    masked = (np.abs(b) > MASKED) & (np.abs(a) > MASKED) & (np.sign(a) == np.sign(b))
    a, b = a[~masked], b[~masked]
    scale = float(np.std(b)) if spread is None and b.size else spread or 0.0
    difference = float(np.max(np.abs(a - b), initial=0.0))
    if not np.isfinite(difference):
        return float("inf")
    return difference / max(scale, FLAT * float(np.max(np.abs(b), initial=0.0)), 1e-30)


def _at(value: Array, layout: Layout, name: str, part: int) -> Array:
    kept = layout.kept(name, part)
    return value[np.ix_(*[_batchwise(k, n) for k, n in zip(kept, value.shape, strict=True)])]


def _batchwise(kept: Array | None, size: int) -> Array:
    return np.arange(size) if kept is None else kept


def _hidden(layout: Layout, whole: onnx.ModelProto) -> list[str]:
    """Divided tensors that the whole holds over all units: what the block identity compares."""
    present = {n for node in whole.graph.node for n in node.output}
    result = []
    for index, op in enumerate(layout.analysis.ops):
        for name in op.node.output:
            if name not in present or layout.modes[index] != "merged" or name in layout.analysis.state.pure:
                continue
            if not layout.divided(name) or layout.analysis.shapes.dtype.get(name) not in (1, 10, 11):
                continue
            if name in layout.analysis.virtual or any(_on_dynamic(layout, name)):
                continue
            try:
                for p in range(layout.k):
                    layout.kept(name, p)
            except NotAGrid:
                continue
            result.append(name)
    return result


def _on_dynamic(layout: Layout, name: str) -> list[bool]:
    dynamic = layout.analysis.shapes.dynamic_dims(name)
    return [d and k is not None for d, k in zip(dynamic, layout.kept(name, 0), strict=True)]


def draw(analysis: Analysis, plan: Plan, layout: Layout, part: int, rng: np.random.Generator) -> dict[str, Array]:
    """Fresh weights for a part that keep the variance of what flows through it, so that errors show.

    Weights of contractions are normal with variance 1 / fan-in, so that neither residual streams nor what is fed back
    outgrow rounding; other parameters are the whole's, each element scaled by a random factor: signs and masks stay.
    """
    result = {}
    for initializer in plan.initializers:
        name = initializer.name
        if not analysis.model.trainable(name):
            continue
        source = analysis.model.array(name)
        shape = initializer.part_shape(part)
        value: Array = rng.standard_normal(shape, np.float32)
        if name in analysis.state.weights:
            value *= np.sqrt(1 / fans(analysis, plan, layout, name, part)[0])
        elif np.any(source):
            own = slice_array(initializer, part, source).astype(np.float64)
            value = np.where(np.abs(own) > MASKED, own, own * np.abs(1 + SCATTER * value))
        else:
            value *= SCATTER
        result[name] = value.astype(source.dtype)
    return result


def fans(analysis: Analysis, plan: Plan, layout: Layout, name: str, part: int) -> tuple[int, int]:
    """Inputs to one unit, and units that one input feeds, of a contraction's weight in a part."""
    weight = analysis.state.weights[name]
    if weight.tensor == name:
        shape: Sequence[int] = plan.by_name[name].part_shape(part)
    else:
        shape = sizes(layout.kept(weight.tensor, part), analysis.shapes.shape[weight.tensor])
    total = int(np.prod(shape, dtype=np.int64))
    outputs = int(np.prod([shape[a] for a in weight.outputs], dtype=np.int64))
    inputs_axis = next((n for a, n in enumerate(shape) if a not in weight.outputs), 1)
    return max(1, total // max(1, outputs)), max(1, total // max(1, inputs_axis))


def _smooth(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with quantized activations let through as they are, where one scale is for all of them.

    A deviation in the last digit in front of a rounding would be a whole step behind it.
    """
    tensors = [
        (n.output[0], a.t) for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t")
    ]
    tensors += [(t.name, t) for t in model.graph.initializer]
    single = {name for name, tensor in tensors if np.prod(tensor.dims) == 1}
    given = {n.output[0]: n.input for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        quantized = given.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantized and quantized[1] == node.input[1] and quantized[1] in single:
            node.CopyFrom(helper.make_node("Identity", quantized[:1], node.output, name=node.name))
    return model


def tap(model: onnx.ModelProto, names: Sequence[str], analysis: Analysis) -> onnx.ModelProto:
    """The model with further outputs."""
    have = {v.name for v in model.graph.output}
    for name in names:
        if name not in have:
            elem = analysis.shapes.dtype.get(name, TensorProto.FLOAT)
            model.graph.output.append(helper.make_tensor_value_info(name, elem, None))
    return model


def inputs(analysis: Analysis, trial: int, rng: np.random.Generator) -> dict[str, Array]:
    """Random inputs for a model: normal floats, integers that are valid indices where they are used as such."""
    feed: dict[str, Array] = {}
    shapes = input_shapes(analysis.model, trial)
    for value in analysis.model.proto.graph.input:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        shape = shapes[value.name]
        if dtype == np.bool_:
            feed[value.name] = rng.random(shape) < 0.7
        elif np.issubdtype(dtype, np.integer):
            feed[value.name] = rng.integers(0, _limit(analysis, value.name), shape).astype(dtype)
        else:
            feed[value.name] = rng.normal(size=shape).astype(dtype)
    return feed


def _limit(analysis: Analysis, name: str) -> int:
    """One more than the largest number that look-ups and sequences allow that this input counts; 2 for another one."""
    limits = []
    for i in analysis.consumers.get(name, []):
        op = analysis.ops[i]
        if op.node.op_type == "Gather" and op.node.input[1] == name:
            limits.append(op.shape(0)[op.axis(0)])
        elif op.node.op_type == "Cast":
            limits.append(_limit(analysis, op.node.output[0]))
        elif op.node.op_type in GATES and op.has(LENGTHS) and op.node.input[LENGTHS] == name:
            limits.append(op.shape(0)[int(op.attributes.get("layout", 0))] + 1)
    return min(limits, default=2)


def _refused(verb: str, error: Exception) -> OnnxpartError:
    text = " ".join(str(error).split())[:300]
    return OnnxpartError(f"ONNX Runtime can't {verb} the model: {text}; check its operators.")


class Session:
    """A model in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if model.ByteSize() < SMALL_MODEL:
            options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("load", error) from None
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Output name -> array."""
        known = {i.name for i in self._session.get_inputs()}
        try:
            values = self._session.run(self._names, {n: v for n, v in feed.items() if n in known})
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("run", error) from None
        return dict(zip(self._names, values, strict=True))
