"""Convolutions and poolings of several parts at once give what each part alone gives, gradients too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from onnxpart.torch.importer.graph_module import Body, Program
from onnxpart.torch.importer.layers import use_layers
from onnxpart.torch.importer.tree import plant
from onnxpart.torch.training.grouped_kernels import use_grouped_kernels

PARTS = 3


def layer(
    function: Callable[..., Tensor],
    weight: tuple[int, ...] | None,
    bias: bool,
    rest: tuple[object, ...],
    called: bool = False,
) -> Body:
    """A graph whose only call is one of torch's functions, or of a layer that is torch's own."""
    graph, tensors = fx.Graph(), {}
    arguments: list[object] = [graph.placeholder("x")]
    if weight:
        tensors["conv.weight"] = nn.Parameter(torch.rand(weight, generator=GENERATOR))
        arguments.append(graph.get_attr("conv.weight"))
        if bias:
            tensors["conv.bias"] = nn.Parameter(torch.rand(weight[0], generator=GENERATOR))
        arguments.append(graph.get_attr("conv.bias") if bias else None)
    graph.output(graph.call_function(function, (*arguments, *rest)))  # type: ignore[arg-type]
    body = Body()
    plant(body, tensors)
    if called:
        use_layers(graph, body)
        assert type(body.conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        graph.eliminate_dead_code(lambda node: node.op == "output")
    body.program = Program(graph)
    return body


GENERATOR = torch.Generator().manual_seed(0)
CASES = {
    "conv1d": (F.conv1d, (4, 2, 3), True, ([1], [1], [1], 1), (2, 2, 9)),
    "conv2d": (F.conv2d, (4, 2, 3, 3), True, ([1, 2], [1, 1], [1, 1], 1), (2, 2, 8, 8)),
    "conv2d_grouped": (F.conv2d, (6, 2, 3, 3), False, ([1, 1], [0, 0], [2, 2], 2), (2, 4, 8, 8)),
    "conv3d": (F.conv3d, (4, 2, 2, 2, 2), True, ([1] * 3, [0] * 3, [1] * 3, 1), (2, 2, 4, 4, 4)),
    "max_pool1d": (torch.max_pool1d, None, False, ([2], [2], [0], [1], False), (2, 3, 9)),
    "max_pool2d": (torch.max_pool2d, None, False, ([3, 3], [2, 2], [1, 1], [1, 1], True), (2, 3, 8, 8)),
    "avg_pool2d": (F.avg_pool2d, None, False, ([2, 2], [2, 2], [1, 1], False, False), (2, 3, 8, 8)),
}
ALL = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("name", "shared", "called"),
    [(name, shared, called) for name, case in CASES.items() for shared, called in (ALL if case[1] else ALL[:1])],
)
def test_parts_side_by_side_give_what_each_gives(name: str, shared: bool, called: bool) -> None:
    function, weight, bias, rest, shape = CASES[name]
    layers = [layer(function, weight, bias, rest, called) for _ in range(PARTS)]
    xs = torch.rand(1 if shared else PARTS, *shape, generator=GENERATOR).requires_grad_()
    expected = torch.stack([module(xs[0 if shared else p]) for p, module in enumerate(layers)])
    gradient = torch.rand(expected.shape, generator=GENERATOR)
    parameters = [parameter for module in layers for parameter in module.parameters()]
    wanted = torch.autograd.grad(expected, [xs, *parameters], gradient)

    base = layer(function, weight, bias, rest, called)
    plain = base.program.code
    use_grouped_kernels(base)
    assert base.program.code != plain
    stacked, buffers = stack_module_state(layers) if weight else ({}, {})
    lanes = vmap(lambda p, x: functional_call(base, (p, buffers), (x,)), in_dims=(0, None if shared else 0))
    result = lanes(stacked, xs[0] if shared else xs)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(result, [xs, *stacked.values()], gradient)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    count = len(stacked)
    for i in range(count):
        torch.testing.assert_close(found[1 + i], torch.stack(wanted[1 + i :: count]), rtol=1e-4, atol=1e-5)
