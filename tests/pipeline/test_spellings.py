"""One function is divided as far in every spelling, by both of torch's exporters, and the parts are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import onnxpart
from onnxpart.inspection.explain import Advice, Axis
from onnxpart.torch import export
from tests.networks.ensemble import deviation
from tests.networks.spellings import HEADS, NETWORKS, GraphAttention

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


class JoinedHeads(GraphAttention):
    """Each head averages by the weights of the head before it, so all of them move together."""

    def weighted(self, scores: torch.Tensor) -> torch.Tensor:
        return super().weighted(scores).roll(1, 1)


def why_projected(network: GraphAttention, folder: Path, k: int) -> Axis:
    """What is said of the units of a graph attention."""
    file, x = folder / "network.onnx", torch.randn(NETWORKS["graph attention"][1])
    export(network.eval(), x, file, exporter="torchscript")
    found = onnxpart.why(onnxpart.analyse(onnxpart.load(file)), "project.weight", k)
    return next(axis for axis in found.axes if axis.axes == (0,))


def test_why_shows_what_joins_heads(tmp_path: Path) -> None:
    found = why_projected(JoinedHeads("product and sum"), tmp_path, 2)
    assert found.cause is not None
    assert (found.undivided, found.cause.classes) == (found.units, 1)
    steps = [(step.node.split(" ")[0], step.reason) for step in found.chain]
    once = [("MatMul", ""), ("Add", ""), ("ReduceSum", "reduces over units")]  # from a head to the one before it
    assert steps == once * (HEADS // 2)
    assert found.chain[0].source == found.chain[-1].target == "project.weight axis 0"


def test_why_shows_what_holds_the_units_of_a_head_together(tmp_path: Path) -> None:
    found = why_projected(GraphAttention("product and sum"), tmp_path, 2 * HEADS)
    assert [step.node.split(" ")[0] for step in found.chain] == ["MatMul"] * 2
    assert found.cause is not None
    assert found.cause.reason == f"its units move in {HEADS} classes, too few for {2 * HEADS} parts"
    assert found.advice == (Advice(HEADS),)
