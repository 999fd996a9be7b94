"""A node whose settings are known only at run time: its entry in the table works on the tensors themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import onnx
import torch
from torch import nn

from onnxpart.ir.protos import normal_domain
from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import find
from onnxpart.torch.importer.values import Constant, Info, Integers, Value
from onnxpart.torch.tensors import ELEMENT_TYPES, to_array, to_tensor


class Interpreted(nn.Module):
    """A node that is imported again at every call; `results`: what is known of its outputs."""

    def __init__(self, proto: onnx.NodeProto, opset: int, results: Sequence[Info]) -> None:
        super().__init__()
        self.proto, self.opset, self.results = proto, opset, list(results)

    def forward(self, *inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Compute the outputs from the inputs; an input that isn't given is None."""
        return computed(self.proto, self.opset, inputs, self.results, self.training)


def computed(
    proto: onnx.NodeProto,
    opset: int,
    inputs: Sequence[torch.Tensor | None],
    results: Sequence[Info],
    training: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Compute the outputs of a node from its inputs; its operator has an entry."""
    handler = find(normal_domain(proto.domain), proto.op_type, opset)
    assert handler is not None  # the import looked it up
    builder = _Eager(training, next((x for x in inputs if x is not None), None))
    infos = [Info() if x is None else _info(x) for x in inputs]
    result = handler(_EagerNode(proto, opset, inputs, infos, results, builder))
    return tuple(builder.tensor(value) for value in (result if isinstance(result, tuple) else (result,)))


def _info(x: torch.Tensor) -> Info:
    return Info(tuple(x.shape), ELEMENT_TYPES[x.dtype])


class _EagerNode(Node):
    def constant(self, index: int) -> np.ndarray | None:
        value = self.inputs[index] if self.has(index) else None
        return None if value is None else to_array(self.builder.tensor(value))


class _Eager:
    """Computes at once; the importer's own builder enters calls in a graph instead."""

    def __init__(self, training: bool, anchor: torch.Tensor | None) -> None:
        self.training, self._anchor = training, anchor

    def emit(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> torch.Tensor:
        return cast(torch.Tensor, function(*args, **kwargs))

    def module(self, module: nn.Module, args: tuple[object, ...]) -> torch.Tensor:
        result: torch.Tensor = module.train(self.training)(*args)
        return result

    def tensor(self, value: Value) -> torch.Tensor:
        if isinstance(value, Constant):
            return to_tensor(value.array).to(self.anchor().device)
        if isinstance(value, Integers):
            items = value.items[0] if value.scalar else list(value.items)
            return torch.tensor(items, dtype=torch.int64, device=self.anchor().device)
        return value

    def statistic(self, node: Node, index: int) -> torch.Tensor:
        """Return a copy: training must not change what the model was fed."""
        return node.tensor(index).clone()

    def anchor(self) -> torch.Tensor:
        return torch.empty(0) if self._anchor is None else self._anchor

    def take(self, node: Node, then: bool) -> tuple[Value, ...]:
        raise NotImplementedError(node.name, then)  # control flow takes everything at run time as it is

    def body(self, graph: onnx.GraphProto) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        raise NotImplementedError(graph.name)  # control flow takes everything at run time as it is
