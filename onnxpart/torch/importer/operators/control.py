"""Control flow: bodies are modules that read outer values as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator
from onnxpart.torch.importer.operators.runtime import device_of
from onnxpart.torch.importer.values import Value


class If(nn.Module):
    """One of two bodies, each with the outer values that it reads."""

    def __init__(self, then: nn.Module, otherwise: nn.Module) -> None:
        super().__init__()
        self.then, self.otherwise = then, otherwise

    def forward(self, condition: Tensor, then: Sequence[Tensor], otherwise: Sequence[Tensor]) -> tuple[Any, ...]:
        """Run the body that the condition chooses, a tensor of one element."""
        result: tuple[Any, ...] = self.then(*then) if condition else self.otherwise(*otherwise)
        return result


def _graph(node: Node, name: str) -> onnx.GraphProto:
    graph: onnx.GraphProto | None = node.attribute(name, None)
    if graph is None:
        raise node.error(f"the body {name} is missing; check the model with onnx.checker")
    return graph


@operator("If")
def if_(node: Node) -> tuple[Value, ...]:
    """Compute one of two bodies; if the condition is known while importing, the other one is left out."""
    known = node.constant(0)
    if known is not None:
        return node.builder.take(node, bool(known.item()))
    then, otherwise = _graph(node, "then_branch"), _graph(node, "else_branch")
    bodies = [node.builder.body(graph) for graph in (then, otherwise)]
    result = node.module(If(bodies[0][0], bodies[1][0]), node.tensor(0), bodies[0][1], bodies[1][1])
    return tuple(result[i] for i in range(len(node.outputs)))


class Loop(nn.Module):
    """A body that is repeated; `shapes`: of the values that it collects, in case it isn't run at all."""

    def __init__(self, body: nn.Module, title: str, shapes: Sequence[tuple[int, ...] | None]) -> None:
        super().__init__()
        self.body, self.title, self.shapes = body, title, list(shapes)

    def forward(
        self,
        most: Tensor | None,
        condition: Tensor | None,
        carried: Sequence[Any],
        outer: Sequence[Any],
        anchor: Any,
    ) -> tuple[Any, ...]:
        """Repeat at most `most` times, as long as the condition holds; return the carried and the collected values.

        The anchor tells the device.
        """
        limit = None if most is None else int(most)
        going = condition is None or bool(condition)
        state, i = tuple(carried), 0
        collected: list[list[Tensor]] = [[] for _ in self.shapes]
        yes = torch.tensor(True, device=device_of(anchor))
        while going and (limit is None or i < limit):
            count = torch.tensor(i, device=device_of(anchor))
            more, *results = self.body(count, yes if condition is None else condition, *state, *outer)
            state, going, i = tuple(results[: len(state)]), bool(more), i + 1
            condition = more
            for values, value in zip(collected, results[len(state) :], strict=True):
                values.append(value)
        return (*state, *(self._joined(n, values, anchor) for n, values in enumerate(collected)))

    def _joined(self, number: int, values: list[Tensor], anchor: Any) -> Tensor:
        if values:
            return torch.stack(values)
        shape = self.shapes[number]
        if shape is None:
            raise OnnxpartError(
                f"{self.title}: it collects nothing, and the shape is unknown; repeat it at least once."
            )
        return torch.empty((0, *shape), device=device_of(anchor))


@operator("Loop")
def loop(node: Node) -> tuple[Tensor, ...]:
    """Repeat a body, which carries some values on and collects others."""
    graph = _graph(node, "body")
    carried = tuple(node.tensor(index) for index in range(2, len(node.inputs)))
    shapes = [_known_shape(value) for value in graph.output[1 + len(carried) :]]
    body, outer = node.builder.body(graph)
    module = Loop(body, node.title, shapes)
    result = node.module(module, node.optional(0), node.optional(1), carried, outer, node.builder.anchor())
    return tuple(result[i] for i in range(len(node.outputs)))


def _known_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of a float whose sizes are all known."""
    tensor = value.type.tensor_type
    known = tensor.elem_type == onnx.TensorProto.FLOAT and tensor.HasField("shape")
    if not known or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


class Scan(nn.Module):
    """A body that is run along axes; `scanned`, `collected`: for each input and output, its axis and direction."""

    def __init__(
        self, body: nn.Module, scanned: Sequence[tuple[int, bool]], collected: Sequence[tuple[int, bool]]
    ) -> None:
        super().__init__()
        self.body, self.scanned, self.collected = body, list(scanned), list(collected)

    def forward(self, carried: Sequence[Tensor], inputs: Sequence[Tensor], outer: Sequence[Any]) -> tuple[Any, ...]:
        """Run over the inputs, starting from the carried values; return their last ones, and the collected values."""
        slices = [
            list(reversed(x.unbind(axis))) if backwards else list(x.unbind(axis))
            for x, (axis, backwards) in zip(inputs, self.scanned, strict=True)
        ]
        state, found = tuple(carried), []
        for step in zip(*slices, strict=True):
            results = self.body(*state, *step, *outer)
            state = tuple(results[: len(state)])
            found.append(results[len(state) :])
        if not found and self.collected:
            raise ValueError("a sequence of length 0 gives nothing to collect")
        columns = zip(*found, strict=True)
        pairs = zip(columns, self.collected, strict=True)
        return (*state, *(torch.stack(v[::-1] if backwards else v, axis) for v, (axis, backwards) in pairs))


@operator("Scan", since=9)
def scan(node: Node) -> tuple[Tensor, ...]:
    """Run a body, which carries some values on and collects others, along axes of its inputs."""
    graph, count = _graph(node, "body"), node.attribute("num_scan_inputs", 0)
    states = len(node.inputs) - count
    kinds = []
    for kind, number in (("input", count), ("output", len(node.outputs) - states)):
        axes = node.attribute(f"scan_{kind}_axes", [0] * number)
        directions = node.attribute(f"scan_{kind}_directions", [0] * number)
        kinds.append([(axis, bool(direction)) for axis, direction in zip(axes, directions, strict=True)])
    body, outer = node.builder.body(graph)
    values = [node.tensor(index) for index in range(len(node.inputs))]
    result = node.module(Scan(body, *kinds), tuple(values[:states]), tuple(values[states:]), outer)
    return tuple(result[i] for i in range(len(node.outputs)))


class BatchScan(nn.Module):
    """The Scan of opset 8: samples one after the other, each along its first axis up to its own length."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.scan = scan

    def forward(
        self, lengths: Tensor | None, carried: Sequence[Tensor], inputs: Sequence[Tensor], outer: Sequence[Any]
    ) -> tuple[Tensor, ...]:
        """Run over inputs [N, T, ...] from states [N, ...]."""
        if lengths is not None and (lengths != inputs[0].shape[1]).any():
            raise OnnxpartError("a Scan of opset 8 with sequences of different lengths isn't imported; use opset 9.")
        samples = [
            self.scan([state[n] for state in carried], [x[n] for x in inputs], outer) for n in range(len(inputs[0]))
        ]
        return tuple(torch.stack(values) for values in zip(*samples, strict=True))


@operator("Scan", since=8)
def batch_scan(node: Node) -> tuple[Tensor, ...]:
    """Run a body along the sequences of each sample."""
    count = node.attribute("num_scan_inputs", 0)
    states, directions = len(node.inputs) - 1 - count, node.attribute("directions", [0] * count)
    body, outer = node.builder.body(_graph(node, "body"))
    module = Scan(body, [(0, bool(d)) for d in directions], [(0, False)] * (len(node.outputs) - states))
    values = [node.tensor(index) for index in range(1, len(node.inputs))]
    result = node.module(BatchScan(module), node.optional(0), tuple(values[:states]), tuple(values[states:]), outer)
    return tuple(result[i] for i in range(len(node.outputs)))
