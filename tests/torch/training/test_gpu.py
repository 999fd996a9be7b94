"""What holds on a GPU: `scripts/gpu` runs these tests."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.train import EngineKind, Result, Settings, train
from tests.networks.training import parts, small, stripes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
SETTINGS = Settings(epochs=3, lr=0.01, optimizer="adam", device="cuda", seed=3)


def curves(results: list[Result]) -> list[list[float]]:
    return [[epoch.train_loss for epoch in result.curve] for result in results]


@pytest.mark.parametrize("engine", ["series", "fused", "processes"])
def test_parts_are_trained_as_on_a_cpu(engine: EngineKind) -> None:
    here, there = parts(small(norm=True)), parts(small(norm=True))
    expected = train(here, stripes(), F.cross_entropy, replace(SETTINGS, device="cpu"), engine="series")
    found = train(there, stripes(), F.cross_entropy, SETTINGS, engine=engine)
    for one, other in zip(curves(expected), curves(found), strict=True):
        assert other == pytest.approx(one, rel=1e-2)


@pytest.mark.parametrize(
    ("engine", "given"),
    [
        *product(["series", "fused"], [{"amp": True}, {"compile": True}]),
        ("series", {"amp": True, "amp_dtype": "float16"}),
    ],
)
def test_what_makes_it_fast_learns(engine: EngineKind, given: dict[str, Any]) -> None:
    settings = replace(SETTINGS, epochs=6, **given)
    for curve in curves(train(parts(small()), stripes(), F.cross_entropy, settings, engine=engine)):
        assert curve[-1] < 0.5 * curve[0]


def test_memory_is_that_of_the_parts_and_more() -> None:
    modules = parts(small())
    results = train(modules, stripes(), F.cross_entropy, replace(SETTINGS, epochs=1), engine="series")
    assert results[0].gpu_memory is not None
    again = train(modules, stripes(), F.cross_entropy, replace(SETTINGS, epochs=1), engine="series")
    assert again[0].gpu_memory == pytest.approx(results[0].gpu_memory, rel=0.5)
    assert results[0].gpu_memory > sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_a_run_goes_on_from_the_checkpoint_of_another_device(engine: EngineKind, tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    first = train(
        parts(small()), stripes(), F.cross_entropy, replace(SETTINGS, epochs=2), engine=engine, checkpoints=kept
    )
    settings, kept = replace(SETTINGS, device="cpu"), replace(kept, resume=True)
    then = train(parts(small()), stripes(), F.cross_entropy, settings, engine=engine, checkpoints=kept)
    assert [curve[:2] for curve in curves(then)] == curves(first)
    assert all(curve[2] < curve[0] for curve in curves(then))
