"""Only activations between residual blocks are kept, and those within a block are computed again for the gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from onnxpart.errors import UsageError
from onnxpart.torch.importer.graph_module import Program


@dataclass(frozen=True)
class _Block:
    """Some calls of a graph in order, as a program of the values that they read; the last call gives the results."""

    program: Program
    inputs: Sequence[str]
    outputs: Sequence[str]
    tensors: Sequence[str]
    layers: Sequence[str]

    def buffers(self, module: nn.Module) -> list[Tensor]:
        """The buffers that the calls may write."""
        named = dict(module.named_buffers())
        inner = [buffer for layer in self.layers for buffer in module.get_submodule(layer).buffers()]
        return [*(named[name] for name in self.tensors if name in named), *inner]


class Checkpointed(Program):
    """A program that keeps one tensor between residual blocks for the gradients, and computes the rest twice.

    :param trained: names of the calls whose results depend on parameters; a block ends where later calls read only one
        of these results.
    :raises UsageError: for a graph without residual blocks.
    """

    def __init__(self, graph: fx.Graph, trained: Collection[str]) -> None:
        self.graph, self.trained, self.plain = graph, sorted(trained), Program(graph)
        self.code, self.blocks, self.run = self.plain.code, _blocks(graph, set(trained)), self._run
        if len(self.blocks) < 2:
            raise UsageError(
                "the network has no residual blocks, between which one tensor is handed on; train it without "
                "activation checkpointing."
            )

    def __reduce__(self) -> Any:
        """Return the graph as rows, and the names of calls that depend on parameters."""
        return _restored, (self.plain, self.trained)

    def _run(self, module: nn.Module, *inputs: Any) -> Any:
        """Compute the outputs from the inputs, both in graph order."""
        if not (module.training and torch.is_grad_enabled()):
            return self.plain.run(module, *inputs)
        names = [node.name for node in self.graph.nodes if node.op == "placeholder"]
        values: dict[str, Any] = dict(zip(names, inputs, strict=True))
        for block in self.blocks[:-1]:
            found = checkpoint(
                partial(block.program.run, module), *(values[name] for name in block.inputs), use_reentrant=False,
                context_fn=partial(_contexts, block.buffers(module)),
            )  # fmt: skip
            values.update(zip(block.outputs, found, strict=True))
        last = self.blocks[-1]
        return last.program.run(module, *(values[name] for name in last.inputs))

    def failed(self, error: Exception) -> str | None:
        """Return which node of the model failed (see `Program.failed`)."""
        programs = (self.plain, *(block.program for block in self.blocks))
        return next(filter(None, (program.failed(error) for program in programs)), None)


def _restored(plain: Program, trained: Collection[str]) -> Checkpointed:
    return Checkpointed(plain.graph, trained)


def _contexts(buffers: Sequence[Tensor]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts in which a block is computed, and computed again."""
    return contextlib.nullcontext(), _unwritten(buffers)


@contextlib.contextmanager
def _unwritten(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Restore buffers afterwards, so that a batch that is computed again counts once in running statistics."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _blocks(graph: fx.Graph, trained: Collection[str]) -> list[_Block]:
    """The graph's calls, cut after each residual block."""
    calls = [node for node in graph.nodes if node.op.startswith("call")]
    place = {node: i for i, node in enumerate(calls)}
    last = {node: max((place.get(user, len(calls)) for user in node.users), default=-1) for node in calls}
    pieces: list[list[fx.Node]] = [[]]
    alive, branched = set[fx.Node](), False
    for i, node in enumerate(calls):
        pieces[-1].append(node)
        alive = {n for n in {*alive, node} if n.name in trained and last[n] > i}
        branched = branched or len(alive) > 1
        if branched and len(alive) == 1 and i + 1 < len(calls):
            pieces.append([])
            branched = False
    return [_block(piece, graph, place, end=piece is pieces[-1]) for piece in pieces]


def trained_calls(graph: fx.Graph, module: nn.Module) -> set[str]:
    """Return the names of the calls whose results depend on parameters of the graph's module."""
    parameters, found = dict(module.named_parameters()), set[str]()
    for node in graph.nodes:
        own = node.op == "call_module" and any(True for _ in module.get_submodule(str(node.target)).parameters())
        read = any(n.name in found or (n.op == "get_attr" and n.target in parameters) for n in node.all_input_nodes)
        if node.op.startswith("call") and (own or read):
            found.add(node.name)
    return found


def _block(calls: Sequence[fx.Node], graph: fx.Graph, place: dict[fx.Node, int], end: bool) -> _Block:
    """A piece of a graph, with the values that it reads and, unless it is the end, those that later pieces read."""
    (results,) = (node for node in graph.nodes if node.op == "output")
    readers = [*calls, results] if end else calls
    read = dict.fromkeys(n for node in readers for n in node.all_input_nodes)
    inputs = [n for n in read if n.op != "get_attr" and n not in set(calls)]
    tensors = [n for n in read if n.op == "get_attr"]
    own = fx.Graph()
    copies = {n: own.placeholder(n.name) for n in inputs}
    for node in (*tensors, *calls):
        copies[node] = own.node_copy(node, copies.__getitem__)
    outputs = [] if end else [n for n in calls if any(place.get(u, len(place)) > place[calls[-1]] for u in n.users)]
    own.output(fx.node.map_arg(results.args[0], copies.__getitem__) if end else tuple(copies[n] for n in outputs))
    layers = [str(n.target) for n in calls if n.op == "call_module"]
    read_names, made_names = ([n.name for n in nodes] for nodes in (inputs, outputs))
    return _Block(Program(own), read_names, made_names, [str(n.target) for n in tensors], layers)
