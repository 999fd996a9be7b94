"""Fresh random weights, on which mistakes show: a training run's first values, and what the oracles try."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxpart.analysis.analysis import Analysis
from onnxpart.emission.initial import fans
from onnxpart.ir.arrays import array_of
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import slice_array
from onnxpart.storage.rows import Array

MASKED = 1e30
"""Larger values are masks, infinite or nearly so: they compare by sign."""
SCATTER = 0.3
"""Standard deviation of the factors of fresh parameters, and of fresh parameters that were zero."""
BRANCH = 0.5
"""Size of a branch relative to the trunk that it is added to, if weights are damped."""


def draw(partition: Partition, part: int, rng: np.random.Generator) -> dict[str, Array]:
    """Draw fresh weights for a part that keep the variance of its activations, so that mistakes show.

    Weights of contractions are normal with variance 1 / fan-in, so that neither residual streams nor recurrent states
    grow until rounding hides mistakes. Other parameters are the whole's, each element scaled by a random factor: signs
    and masks stay.

    :param part: the part's index.
    :param rng: draws them.
    :returns: initializer name -> array in the part's shape and the whole's dtype, for each trained initializer.
    """
    analysis, result = partition.analysis, {}
    for initializer in partition.plan.initializers:
        name = initializer.name
        if not analysis.model.trainable(name):
            continue
        source = array_of(analysis.model, name)
        shape = initializer.part_shape(part)
        value: Array = rng.standard_normal(shape, np.float32)
        if name in analysis.state.weights:
            value *= np.sqrt(1 / fans(partition, name, part)[0])
        elif np.any(source):
            own = slice_array(initializer, part, source).astype(np.float64)
            value = np.where(np.abs(own) > MASKED, own, own * np.abs(1 + SCATTER * value))
        else:
            value *= SCATTER
        result[name] = value.astype(source.dtype)
    return result


def scaled(analysis: Analysis) -> dict[str, str]:
    """For each contraction with a weight and each batch normalisation, the tensor that scales its result.

    :returns: result -> tensor.
    """
    tensors = {weight.tensor for weight in analysis.state.weights.values()}
    result = {}
    for op, rule in zip(analysis.ops, analysis.rules, strict=True):
        if rule is None or not op.outputs:
            continue
        if op.op_type == "BatchNormalization" and op.inputs[1] in analysis.model.initializers:
            result[op.outputs[0]] = op.inputs[1]
        elif rule.kind == "contraction":
            result |= dict.fromkeys(op.outputs[:1], next((n for n in op.inputs[:2] if n in tensors), ""))
    return {output: name for output, name in result.items() if name}


def damping(analysis: Analysis, spread: Mapping[str, float]) -> dict[str, float]:
    """Factors on weights that keep a network's activations from growing with its depth.

    Without normalisation, sums of branches grow, and so does rounding if gates saturate. Each branch is scaled to at
    most `BRANCH` times the size of its input.

    :param spread: standard deviation in one run, by name, of the results that `scaled` lists.
    :returns: initializer -> factor.
    """
    made = scaled(analysis)
    reached: dict[str, float] = {}
    factors: dict[str, float] = {}
    for op in analysis.ops:
        before = max((reached[n] for n in op.reads if n in reached), default=1.0)
        for name in op.outputs:
            reached[name] = spread.get(name, before)
            if name in spread and np.isfinite(spread[name]):
                for source in analysis.state.sources(made[name]):
                    factors.setdefault(source, BRANCH * min(1.0, before / max(spread[name], 1e-30)))
    return factors
