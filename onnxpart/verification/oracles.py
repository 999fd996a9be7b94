"""Two oracles in ONNX Runtime: the ensemble identity and the block identity, on weights that hide no mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxpart.analysis.analysis import Analysis
from onnxpart.emission.part import draft_part
from onnxpart.emission.whole import draft_whole
from onnxpart.errors import OnnxpartError, check_seed
from onnxpart.ir.trainable import FLOATS
from onnxpart.merging.merge import merge
from onnxpart.planning.division import Division, NotAGrid
from onnxpart.planning.partition import Partition, partition_of
from onnxpart.planning.plan import Plan
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Array
from onnxpart.verification.feeds import inputs
from onnxpart.verification.float32 import HALF, arrays_to_float32, to_float32
from onnxpart.verification.runtime import Session, assemble
from onnxpart.verification.weights import MASKED, damping, draw, scaled

TOLERANCE = 1e-4
"""Largest deviation allowed, relative to the spread (standard deviation) of what is compared."""
TOLERANCE_DOUBLE = 1e-11
"""The same limit for models that are computed in float64 throughout."""
FLAT = 0.1
"""If values spread less than this share of the largest, that share is the measure: rounding isn't a deviation."""


@dataclass(frozen=True)
class Finding:
    """One comparison: which oracle, on which weights and batch, the worst tensor, its relative deviation, its limit."""

    oracle: str
    weights: str
    batch: int
    compared: int
    worst: str
    deviation: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return bool(self.deviation <= self.tolerance)


@dataclass(frozen=True)
class Verdict:
    """What the oracles say.

    `against`: the graph that was compared with the parts. `behind`: outputs of the network that aren't the mean of the
    parts' outputs but are computed from it, such as the result of an output function.
    """

    against: str
    findings: tuple[Finding, ...]
    behind: tuple[str, ...] = ()

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
    parts: Sequence[onnx.ModelProto | Draft] | None = None,
    whole: onnx.ModelProto | Draft | None = None,
    seed: int = 0,
    fresh: bool = True,
) -> Verdict:
    """Check that the merged whole is the parts' ensemble, and that its blocks behave as the parts side by side.

    *Ensemble identity*: right after merging, the whole's linear outputs are the mean over the parts'. *Block identity*:
    with every weight between parts at zero, each hidden tensor of the whole holds, at a part's indices, what the part
    computes. Both on the parts' own weights and on freshly drawn ones, for several batch sizes where the batch is
    symbolic. Half types are merged and computed in float32, so that a deviation isn't rounding. A model that is
    float64 throughout is computed in float64, to `TOLERANCE_DOUBLE`, unless ONNX Runtime lacks a kernel.

    :param analysis: the analysis that `plan` was made from.
    :param parts: the emitted parts; emitted here when omitted.
    :param whole: the duplicated whole; emitted here when omitted.
    :param seed: of fresh weights and inputs.
    :param fresh: also compare on freshly drawn weights, besides the parts' own.
    :returns: one finding per oracle, set of weights and batch size.
    :raises UsageError: when the seed is negative. :raises MergeError: when the plan is of another model.
    :raises OnnxpartError: when ONNX Runtime can't run the models.
    """
    check_seed(seed)
    partition = partition_of(analysis, plan)
    if parts is None:
        parts = [draft_part(partition, p) for p in range(plan.k)]
    if whole is None:
        whole = draft_whole(partition)
    drafts, joined = ([m if isinstance(m, Draft) else Draft(m) for m in models] for models in (parts, [whole]))
    rng = np.random.default_rng(seed)
    own = [draft.arrays() for draft in drafts]
    runs = _Runs(partition, joined[0], drafts)
    trials = (0, 1) if _symbolic(analysis) or analysis.model.flat.regions else (0,)
    findings = runs.compare("own", own, trials, rng)
    if fresh:
        drawn = [{**values, **draw(partition, p, rng)} for p, values in enumerate(own)]
        findings += _on_fresh(runs, drawn, trials, rng)
    against, trained = "original" if plan.same_graph else "duplicated whole", analysis.state.depends_on_parameters
    behind = tuple(n for n in analysis.model.outputs if n in trained and n not in plan.mean)
    return Verdict(against, tuple(findings), behind)


def growth_deviation(analysis: Analysis, shallow: Draft, deep: Draft, *, seed: int = 0) -> float | None:
    """How far the outputs of a deep network are from those of its shallow one.

    :param analysis: of the deep network.
    :param seed: of the inputs, at two sizes of every symbolic dimension.
    :returns: the largest deviation of an output of floats, relative to its standard deviation; None if no output has
        floats.
    :raises UsageError: when the seed is negative. :raises OnnxpartError: when ONNX Runtime can't run the models.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    feeds = [inputs(analysis, trial, rng) for trial in ((0, 1) if _symbolic(analysis) else (0,))]
    before, after = (Session(*assemble(draft.proto, draft.arrays())).run_all(feeds) for draft in (shallow, deep))
    names = [name for name in analysis.model.outputs if analysis.shapes.dtype.get(name) in FLOATS]
    deviations = (_deviation(new[n], old[n]) for old, new in zip(before, after, strict=True) for n in names)
    return max(deviations, default=None)


def _on_fresh(
    runs: _Runs, drawn: Sequence[dict[str, Array]], trials: Iterable[int], rng: np.random.Generator
) -> list[Finding]:
    """The findings on freshly drawn weights, which are damped if rounding grew with the activations."""
    found = runs.compare("fresh", drawn, trials, rng)
    if all(f.holds for f in found):
        return found
    factors = runs.damping(drawn[0], rng)
    calm = [{n: v * v.dtype.type(factors.get(n, 1)) for n, v in values.items()} for values in drawn]
    return runs.compare("fresh", calm, trials, rng)


def _symbolic(analysis: Analysis) -> bool:
    """Whether the inputs have a symbolic dimension."""
    dims = [d for v in analysis.model.proto.graph.input for d in v.type.tensor_type.shape.dim]
    return any(not d.HasField("dim_value") for d in dims)


class _Runs:
    """Runs the whole and the parts, one after the other; the compared tensors are outputs there.

    `types` are the element types that are computed in float32.
    """

    def __init__(self, partition: Partition, whole: Draft, parts: Sequence[Draft]) -> None:
        self.analysis, self.plan, self.division = partition.analysis, partition.plan, partition.division
        self.whole, self.parts = whole, parts
        protos = [whole.proto, *(part.proto for part in parts)]
        self.hidden = [] if self.plan.k == 1 else _hidden(partition, protos)
        self.mean = list(self.plan.mean)
        self.types, floats = HALF, _float_types(self.analysis)
        if TensorProto.DOUBLE in floats and not self._loads(whole):
            self.types |= {TensorProto.DOUBLE}
        self.tolerance = TOLERANCE_DOUBLE if floats - self.types == {TensorProto.DOUBLE} == floats else TOLERANCE

    def _loads(self, draft: Draft) -> bool:
        try:
            self._session(draft, draft.arrays())
        except OnnxpartError:
            return False
        return True

    def _session(self, draft: Draft, values: Mapping[str, Array], taps: Iterable[str] | None = None) -> Session:
        model, outside = assemble(draft.proto, values)
        tap(model, [*self.mean, *self.hidden] if taps is None else list(taps), self.analysis)
        to_float32(model, self.types)
        return Session(_smooth(model), outside)

    def compare(
        self, label: str, values: Sequence[Mapping[str, Array]], trials: Iterable[int], rng: np.random.Generator
    ) -> list[Finding]:
        """Compare the merged whole with the parts.

        :param label: the name of the weights.
        :param values: for each part, initializer name -> array.
        :param trials: which sizes symbolic dimensions have.
        :param rng: draws the inputs.
        :returns: one finding per oracle and trial.
        """
        values = [arrays_to_float32(arrays, self.types) for arrays in values]
        feeds = [arrays_to_float32(inputs(self.analysis, trial, rng), self.types) for trial in trials]
        wholes = self._session(self.whole, merge(self.plan, values)).run_all(feeds)
        parts = [self._session(draft, v).run_all(feeds) for draft, v in zip(self.parts, values, strict=True)]
        each = zip(feeds, wholes, zip(*parts, strict=True), strict=True)
        return [finding for results in each for finding in self._findings(label, *results)]

    def damping(self, values: Mapping[str, Array], rng: np.random.Generator) -> dict[str, float]:
        """Factors on weights that keep the activations of the first part from growing (see `weights.damping`)."""
        present = {n for node in self.parts[0].proto.graph.node for n in node.output}
        taps = [n for n in scaled(self.analysis) if n in present]
        feed = arrays_to_float32(inputs(self.analysis, 0, rng), self.types)
        results = self._session(self.parts[0], arrays_to_float32(values, self.types), taps).run(feed)
        return damping(self.analysis, {n: _spread(results[n]) for n in taps})

    def _findings(
        self, label: str, feed: Mapping[str, Array], whole: Mapping[str, Array], parts: Sequence[Mapping[str, Array]]
    ) -> list[Finding]:
        """What each oracle says of one run.

        :param whole: tensor name -> what the whole computed.
        :param parts: the same for each part.
        """
        batch = next(iter(feed.values())).shape[:1]
        size = int(batch[0]) if batch else 1
        ensemble = {n: _deviation(whole[n], np.mean([p[n] for p in parts], axis=0)) for n in self.mean}
        findings = [_finding("ensemble identity", label, size, ensemble, self.tolerance)]
        if self.hidden:
            blocks = {}
            for name in self.hidden:
                spread = _spread(whole[name])
                blocks[name] = max(
                    _deviation(_at(whole[name], self.division, name, p), part[name], spread)
                    for p, part in enumerate(parts)
                )
            findings.append(_finding("block identity", label, size, blocks, self.tolerance))
        return findings


def _float_types(analysis: Analysis) -> frozenset[int]:
    """Element types of the floating-point numbers that are computed and trained."""
    names = {n for op in analysis.ops for n in op.outputs} | {
        n for n in analysis.model.initializers if analysis.model.trainable(n)
    }
    return FLOATS & {analysis.shapes.dtype.get(name, TensorProto.UNDEFINED) for name in names}


def _finding(oracle: str, label: str, batch: int, deviations: Mapping[str, float], tolerance: float) -> Finding:
    worst = max(deviations, key=lambda n: deviations[n]) if deviations else ""
    return Finding(oracle, label, batch, len(deviations), worst, deviations.get(worst, 0.0), tolerance)


def _deviation(a: Array, b: Array, spread: float | None = None) -> float:
    """Largest difference relative to the spread of `b`, or to the given one for a tensor that isn't an output."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not a.size and not b.size:  # the rank may be unknown if a loop has no iterations
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    alike = (np.abs(b) > MASKED) & (np.abs(a) > MASKED) & (np.sign(a) == np.sign(b))
    if spread is not None and not np.isnan(a).all():  # in between, a softmax over masks alone is NaN
        alike |= np.isnan(a) & np.isnan(b)
    a, b = a[~alike], b[~alike]
    scale = _spread(b) if spread is None else spread
    difference = float(np.max(np.abs(a - b), initial=0.0))
    if not np.isfinite(difference):
        return float("inf")
    return difference / max(scale, FLAT * float(np.max(np.abs(b), initial=0.0)), 1e-30)


def _spread(value: Array) -> float:
    """Standard deviation of the elements that aren't masks."""
    value = value[np.abs(value) <= MASKED]
    return float(np.std(value, dtype=np.float64)) if value.size else 0.0


def _at(value: Array, division: Division, name: str, part: int) -> Array:
    kept = division.kept(name, part)
    if not value.size:
        return value
    return value[np.ix_(*[_batchwise(k, n) for k, n in zip(kept, value.shape, strict=True)])]


def _batchwise(kept: Array | None, size: int) -> Array:
    return np.arange(size) if kept is None else kept


def _hidden(partition: Partition, models: Iterable[onnx.ModelProto]) -> list[str]:
    """The tensors that the block identity compares: divided ones that the whole holds over all units, and every part.

    Tensors that the whole holds divided by K, in front of a reduction (see `Upstream`), are left out.
    """
    present = set.intersection(*({n for node in model.graph.node for n in node.output} for model in models))
    result = []
    analysis, division, placement = partition.analysis, partition.division, partition.placement
    upstream = placement.scaling.upstream
    reduced = set().union(*(way.values for i, way in upstream.items() if i in placement.reductions))
    present -= reduced
    for index, op in enumerate(analysis.ops):
        for name in op.outputs:
            if name not in present or placement.modes[index] != "joint" or name in analysis.state.weights_only:
                continue
            if not division.divided(name) or analysis.shapes.dtype.get(name) not in FLOATS:
                continue
            if name in analysis.virtual or any(_on_dynamic(division, name)):
                continue
            try:
                for p in range(division.k):
                    division.kept(name, p)
            except NotAGrid:
                continue
            result.append(name)
    return result


def _on_dynamic(division: Division, name: str) -> list[bool]:
    dynamic = division.analysis.shapes.dynamic_dims(name)
    return [d and k is not None for d, k in zip(dynamic, division.kept(name, 0), strict=True)]


def _smooth(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the rounding of quantized activations, if one scale is for all of them.

    A deviation in the last digit before rounding would be a whole step after it.
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
    """Make tensors outputs of a model.

    :param model: changed in place.
    :param names: of the tensors; outputs of the model are left out.
    :param analysis: knows their element types.
    :returns: the model.
    """
    have = {v.name for v in model.graph.output}
    for name in names:
        if name not in have:
            elem = analysis.shapes.dtype.get(name, TensorProto.FLOAT)
            model.graph.output.append(helper.make_tensor_value_info(name, elem, None))
    return model
