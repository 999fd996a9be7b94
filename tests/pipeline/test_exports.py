"""Networks as PyTorch's two exporters write them, from opset 11 to the newest that each knows."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch

import onnxpart
from onnxpart.inspection.sizes import measure
from onnxpart.verification.check import check
from tests.networks.exported import NETWORKS, export
from tests.networks.plain import GPT2

FORMS = (
    ("torchscript", 11, True),
    ("torchscript", 17, True),
    ("torchscript", 20, False),
    ("dynamo", 18, True),
    ("dynamo", 20, False),
    ("dynamo", 23, True),
    ("dynamo", 25, True),
)
USUAL = (("torchscript", 17, True), ("dynamo", 20, False))
EVERY_FORM = ("resnet", "mlp", "group_norm")
"""Networks that are tried in every form; the others in the usual ones."""
INTERIOR = {"resnet": 0.30, "vgg": 0.28, "grouped": 0.33, "unet": 0.30, "mlp": 0.36, "attention": 0.31}
"""Largest share of the parameters that a part of two may have: between 1/4 (hidden) and 1/2 (input, output)."""


CASES = [(name, *form) for name in NETWORKS for form in FORMS if form in USUAL or name in EVERY_FORM]


@pytest.mark.parametrize(("name", "exporter", "opset", "dynamic"), CASES)
def test_exported_network_splits_and_verifies(name: str, exporter: str, opset: int, dynamic: bool) -> None:
    result = onnxpart.split(export(name, exporter, opset, dynamic), 2)
    for model in (*result.parts, result.whole):
        onnx.checker.check_model(model, full_check=True)
    verdict = onnxpart.verify(result.analysis, result.plan, parts=result.parts, whole=result.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    assert not result.plan.blocked
    share = result.plan.parameters(0) / result.plan.parameters()
    assert share <= INTERIOR.get(name, 0.5)


@pytest.mark.parametrize("name", ["resnet", "shufflenet_v2", "group_norm", "attention"])
def test_four_parts(name: str) -> None:
    result = onnxpart.split(export(name, "torchscript", 17), 4)
    verdict = onnxpart.verify(result.analysis, result.plan, parts=result.parts, whole=result.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    sizes = [result.plan.parameters(p) for p in range(4)]
    assert max(sizes) == min(sizes)


def language_model(places: int) -> onnx.ModelProto:
    """A GPT with so many positions, exported with a length that is symbolic."""
    axes = {"tokens": {0: "N", 1: "T"}}
    torch.manual_seed(0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one exporter deprecates the other
        torch.onnx.export(
            GPT2(16, places).eval(), (torch.zeros(2, 6, dtype=torch.int64),), file, dynamo=False,
            input_names=["tokens"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def test_a_short_table_of_positions_is_divided_and_checked_as_a_long_one() -> None:
    long, short = (onnxpart.split(language_model(places), 2) for places in (64, 8))
    for result in (long, short):
        assert check(result, measure(result.analysis, result.plan)).deviation is not None
    shapes = [{i.name: i.part_shape(0) for i in result.plan.initializers} for result in (long, short)]
    tables = {name for name, shape in shapes[0].items() if 64 in shape and shape != shapes[1][name]}
    assert all(shapes[1][name] == shape for name, shape in shapes[0].items() if name not in tables)
    assert tables == {"wpe.weight", "layers.0.mask"}
    assert not long.plan.blocked + long.plan.replicated
