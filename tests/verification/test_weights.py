"""Weights that keep what flows through a network from growing: which there are, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart import analyse, load
from onnxpart.verification.weights import BRANCH, damping, scaled
from tests.networks.net import Net


def residual(norm: bool = False) -> ModelProto:
    """Conv ``stem``, a branch of conv ``branch`` (and a batch norm) added to it, pooling, linear ``y``."""
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.op("Relu", n.conv("x", 2, 6, name="stem"), name="trunk")
    branch = n.conv(h, 6, 6, name="branch")
    if norm:
        statistics = n.random("mean", 6), n.positive("var", 6)
        branch = n.op(
            "BatchNormalization", branch, n.positive("scale", 6), n.random("shift", 6), *statistics, name="norm"
        )
    h = n.op("Add", h, branch, name="sum")
    h = n.op("Flatten", n.op("GlobalAveragePool", h), axis=1)
    return n.model(n.linear(h, 6, 3, name="y"), shape=("N", 3))


def test_what_scales_each_result() -> None:
    weights = {name: f"{name}.weight" for name in ("stem", "branch", "y")}
    assert scaled(analyse(load(residual()))) == weights
    assert scaled(analyse(load(residual(norm=True)))) == weights | {"norm": "scale"}


@pytest.mark.parametrize(
    ("stem", "branch", "factors"),
    [
        (1.0, 1.0, (BRANCH, BRANCH)),
        (4.0, 1.0, (BRANCH / 4, BRANCH)),
        (1.0, 4.0, (BRANCH, BRANCH / 4)),
        (4.0, 16.0, (BRANCH / 4, BRANCH / 4)),
    ],
)
def test_a_branch_is_made_as_large_as_what_it_is_made_of(
    stem: float, branch: float, factors: tuple[float, float]
) -> None:
    found = damping(analyse(load(residual())), {"stem": stem, "branch": branch, "y": 1.0})
    assert (found["stem.weight"], found["branch.weight"]) == pytest.approx(factors)


def test_a_norm_is_damped_by_its_scale() -> None:
    found = damping(analyse(load(residual(norm=True))), {"stem": 1.0, "norm": 2.0})
    assert found == pytest.approx({"stem.weight": BRANCH, "scale": BRANCH / 2})


def test_what_is_not_finite_is_left_alone() -> None:
    assert damping(analyse(load(residual())), {"branch": np.inf, "stem": np.nan}) == {}
