"""Blocks that repeat are found whatever they are made of, whatever order their nodes have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto

from models import BUILDERS
from onnxpart import load
from onnxpart.analysis.stacks import stacks
from tests.networks.deep import residual_mlp
from tests.networks.net import Net

GOLDEN = Path(__file__).parents[1] / "golden_stacks.txt"


def counts(model: ModelProto) -> list[int]:
    return [len(stack.blocks) for stack in stacks(load(model))]


def shuffled(model: ModelProto, seed: int) -> ModelProto:
    """The same graph in another order of its nodes."""
    rng, result = np.random.default_rng(seed), onnx.ModelProto()
    result.CopyFrom(model)
    made = {name for node in model.graph.node for name in node.output}
    waiting, ready, nodes = list(model.graph.node), set[str](), list[NodeProto]()
    while waiting:
        free = [node for node in waiting if all(name in ready or name not in made for name in node.input)]
        nodes.append(free[rng.integers(len(free))])
        waiting.remove(nodes[-1])
        ready.update(nodes[-1].output)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def text(name: str, model: ModelProto) -> str:
    """The stacks of a model: the operators of a block, and what each block gives and reads of parameters."""
    loaded = load(model)
    lines = [name]
    for stack in stacks(loaded):
        operators = " ".join(loaded.proto.graph.node[i].op_type for i in stack.blocks[0])
        lines.append(f"  {len(stack.blocks)} blocks from {stack.entry}: {operators}")
        for exit_, names in zip(stack.exits, stack.initializers, strict=True):
            lines.append(f"    {exit_}: {' '.join(names)}")
    return "\n".join(lines) + "\n"


def test_golden(update_golden: bool) -> None:
    networks = {"residual MLP": residual_mlp(), "two branches": branching(), "ResNet-50": BUILDERS["light_resnet50"]()}
    found = "".join(text(*each) for each in networks.items())
    if update_golden:
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_nodes_does_not_matter(seed: int) -> None:
    (stack,) = stacks(load(shuffled(branching(), seed)))
    assert (stack.entry, len(stack.blocks), stack.exits[-1]) == ("first", 3, "add3")


def branching() -> ModelProto:
    """Three blocks of two branches each, which are multiplied by what all blocks share."""
    net = Net(("x", ("N", 5)))
    x = net.linear("x", 5, 6, name="first")
    shared = net.op("Sigmoid", net.linear("x", 5, 6, name="gate"))
    for _ in range(3):
        one, other = (net.op(act, net.linear(x, 6, 6)) for act in ("Relu", "Tanh"))
        x = net.op("Add", x, net.op("Mul", net.op("Add", one, other, name="sum"), shared))
    return net.model(net.linear(x, 6, 3, name="last"))


def test_what_all_blocks_read_may_be_computed_in_the_first() -> None:
    net = Net(("x", ("N", 6)))
    x, scale = "x", ""
    for _ in range(4):
        hidden = net.op("Relu", net.linear(x, 6, 6))
        scale = scale or net.op("Sigmoid", net.linear("x", 6, 6, name="gate"))
        x = net.op("Add", x, net.op("Mul", hidden, scale))
    (stack,) = stacks(load(net.model(x)))
    assert (stack.entry, len(stack.blocks)) == ("x", 4)


def test_a_block_begins_at_the_stream() -> None:
    """Each ends with the activation of the sum, as in ResNet, although the first one is preceded by one, too."""
    net = Net(("x", ("N", 6)))
    x = net.op("Relu", net.linear("x", 6, 6, name="first"))
    for _ in range(3):
        x = net.op("Relu", net.op("Add", x, net.linear(x, 6, 6)))
    (stack,) = stacks(load(net.model(x)))
    assert stack.entry == "relu"
    assert len(stack.blocks) == 3


def test_what_is_seen_elsewhere_is_in_no_stack() -> None:
    assert counts(residual_mlp()) == [4]
    assert counts(residual_mlp(seen=True)) == []


def test_blocks_without_parameters_are_none() -> None:
    net = Net(("x", ("N", 6)))
    x = net.linear("x", 6, 6)
    for _ in range(3):
        x = net.op("Tanh", net.op("Relu", x))
    assert counts(net.model(x)) == []


def test_other_constants_make_other_blocks() -> None:
    def network(*numbers: float) -> ModelProto:
        net = Net(("x", ("N", 6)))
        x = net.linear("x", 6, 6)
        for number in numbers:
            x = net.op("Add", x, net.op("Mul", net.linear(x, 6, 6), net.number(number)))
        return net.model(x)

    assert counts(network(0.5, 0.5, 0.5)) == [3]
    assert counts(network(0.5, 0.5, 0.25)) == [2]


def test_blocks_of_other_widths_are_other_stacks() -> None:
    net = Net(("x", ("N", 6)))
    x = net.linear("x", 6, 6, name="first")
    for width in (8, 8, 8, 4, 4):
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 6, width)), width, 6))
    assert counts(net.model(x)) == [3, 2]
