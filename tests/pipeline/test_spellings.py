"""One function is divided as far in every spelling, by both of torch's exporters, and the parts are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import onnxpart
from onnxpart.torch import export
from tests.networks.ensemble import deviation
from tests.networks.spellings import NETWORKS

SHARES = {
    "graph attention": (0.51, 0.26),
    "additive attention": (0.51, 0.26),
    "bases": (0.35, 0.14),
    "low rank": (0.40, 0.18),
    "offset groups": (0.31, 0.11),
    "windows": (0.31, 0.11),
    "experts": (0.30, 0.10),
    "shared by groups": (0.49, 0.25),
    "splines": (0.40, 0.18),
    "state space": (0.51, 0.26),
}
"""Largest share of the parameters that a part of two, and one of four, may have."""
MIXED = {("offset groups", "-1"), ("offset groups", "sizes"), ("offset groups", "flatten"), ("experts", "gather")}
"""Where mixes are duplicated: the offsets have one weight for all groups, and gathered weights are no parameters."""
CASES = [(name, s, e) for name in NETWORKS for s in NETWORKS[name][2] for e in ("torchscript", "dynamo")]


@pytest.mark.parametrize(("name", "spelling", "exporter"), CASES)
def test_every_spelling_is_divided_as_far(name: str, spelling: str, exporter: str, tmp_path: Path) -> None:
    build, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    file = tmp_path / "network.onnx"
    export(build(spelling).eval(), torch.randn(shape), file, exporter=exporter)
    for k, most in zip((2, 4), SHARES[name], strict=True):
        done = onnxpart.split(file, k)
        for part in done.parts:
            onnx.checker.check_model(part, full_check=True)
        verdict = onnxpart.verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
        assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
        assert bool(done.plan.duplicated) == ((name, spelling) in MIXED)
        assert done.plan.parameters(0) / done.plan.parameters() <= most
        x, rng = done.analysis.model.inputs[0], np.random.default_rng(0)
        feeds = [{x: rng.standard_normal((size, *shape[1:])).astype(np.float32)} for size in (1, 2, 5)]
        assert deviation(done, *feeds) < 1e-5
