"""Calls become one of torch's functions where they compute the same as that, and only there."""

from __future__ import annotations

import onnx
import pytest
import torch

from onnxpart.torch.importer.import_onnx import imported
from tests.networks.running import run_onnx

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
GROUPS = """
    three = Constant<value_ints = [ROWS, 2, -1]>()
    ones = Constant<value = float[2] {SCALE, 1}>()
    zeros = Constant<value = float[2] {0, 0}>()
    grouped = Reshape(x, three)
    normed = InstanceNormalization<epsilon = 0.001>(grouped, ones, zeros)
    shape = Constant<value_ints = [BACK]>()
    back = Reshape(normed, shape)
    axes = Constant<value_ints = [1, 2]>()
    w = Unsqueeze(weight, axes)
    b = Unsqueeze(bias, axes)
    scaled = Mul(w, back)
    y = Add(b, scaled)
"""
ROOTS = """
    two = Constant<value = float {POWER}>()
    few = Constant<value = float {0.001}>()
    squares = Pow(x, two)
    mean = ReduceMean<axes = [AXIS], keepdims = 1>(squares)
    more = Add(few, mean)
    root = Sqrt(more)
    inverse = Reciprocal(root)
    normed = Mul(inverse, x)
    y = Mul(weight, normed)
"""
SLOPES = """
    shape = Constant<value_ints = [SHAPE]>()
    slope = Reshape(weight, shape)
    h = Sin(x)
    y = PRelu(h, slope)
"""


def groups(scale: int = 1, back: str = "0, 8, 2, 3", rows: int = 0) -> str:
    return GROUPS.replace("SCALE", str(scale)).replace("BACK", back).replace("ROWS", str(rows))


def roots(power: int = 2, axis: int = -1) -> str:
    return ROOTS.replace("POWER", str(power)).replace("AXIS", str(axis))


def slopes(shape: str) -> str:
    return SLOPES.replace("SHAPE", shape)


FORMS = {
    "a group norm": ("8", groups(), "GroupNorm"),
    "groups that are scaled": ("8", groups(scale=2), "Container"),
    "groups of several samples": ("8", groups(rows=4, back="8, 8, 2, 3"), "Container"),
    "a group norm of turned images": ("8", groups(back="0, 8, 3, 2"), "Container"),
    "a group norm of other channels": ("4", groups(back="0, 4, 4, 3"), "Container"),
    "a group norm with one weight": ("1", groups(), "Container"),
    "an RMS norm": ("3", roots(), "RMSNorm"),
    "a norm of fourth powers": ("3", roots(power=4), "Container"),
    "a norm over channels": ("3", roots(axis=1), "Container"),
    "a norm with one weight": ("1", roots(), "Container"),
    "a slope for each channel": ("8", slopes("8, 1, 1"), "PReLU"),
    "one slope": ("1", slopes("1, 1, 1"), "PReLU"),
    "slopes of an input": ("8", slopes("8, 1, 1").replace("(h, ", "(x, "), "Container"),
    "slopes along the last axis": ("3", slopes("1, 3"), "Container"),
    "slopes along the first axis": ("8", slopes("8, 1, 1, 1"), "Container"),
}
"""The length of the parameters, the nodes, and the kind of layer."""


@pytest.mark.parametrize("form", FORMS)
def test_a_form_becomes_a_layer_where_it_computes_the_same(form: str) -> None:
    length, nodes, kind = FORMS[form]
    head = '<ir_version: 8, opset_import: ["": 17]> form (float[8, 8, 2, 3] x) => (float[N, C, H, W] y)'
    model = onnx.parser.parse_model(f"{head} {{{nodes}}}")
    draw = torch.Generator().manual_seed(0)
    for name in ("weight", "bias"):
        for node in model.graph.node:
            node.input[:] = [f"n.{name}" if read == name else read for read in node.input]
        if name in nodes:
            array = torch.rand(int(length), generator=draw).numpy()
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"n.{name}"))
    module, x = imported(model, ["n.weight", "n.bias"]), torch.randn(8, 8, 2, 3, generator=draw)
    (expected,) = run_onnx(model, {"x": x.numpy()})
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected))
    assert type(module.n).__name__ == kind
