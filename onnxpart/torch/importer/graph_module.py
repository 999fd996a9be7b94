"""A module that runs a graph of torch.fx. The graph can be pickled, and tells which node of the model failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from types import CodeType, FrameType, TracebackType
from typing import Any, cast

import torch
from torch import fx, nn


@dataclass(frozen=True)
class _Result:
    """The result of a node of the graph, by the node's name."""

    name: str


_Row = tuple[str, str, Any, Any, Any, str]
"""Kind, name, target, arguments, keyword arguments and origin of a node."""
_MARK = "\N{INTERROBANG}"
"""What keeps a keyword from being an identifier until the code is written."""
ORIGIN = "origin"
"""Key of a call's `meta`: the node of the model that it stands for."""


class Program:
    """A graph and its code. `run` takes the module whose tensors and layers the graph names, and the inputs."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.recompile()

    def recompile(self) -> None:
        """Make the code again, after the graph has changed."""
        self.code, names = _code(self.graph)
        exec(compile(self.code, "<graph of the model>", "exec"), names)
        self.run = cast("Callable[..., Any]", names["forward"])

    def __reduce__(self) -> Any:
        """Return the graph as rows."""
        return _restored, ([_row(node) for node in self.graph.nodes],)

    def failed(self, error: Exception) -> str | None:
        """Return which node of the model `run` failed in; None if the error isn't from this graph's code.

        `run` keeps each call's result under the call's name, so the first call without one failed.
        """
        frame = _frame_of(self.run.__code__, error.__traceback__)
        if frame is None:
            return None
        calls = (node for node in self.graph.nodes if node.op.startswith("call"))
        return next((node.meta.get(ORIGIN) for node in calls if node.name not in frame.f_locals), None)


class Body(nn.Module):
    """A graph with what it calls: one class for all graphs, so that modules that are alike can be stacked."""

    program: Program

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Compute the outputs from the inputs, both in graph order."""
        return self.program.run(self, *inputs)


def _code(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """Return a graph's code, and the names that it reads.

    Of a module named `in` fx writes `self.in`, which isn't Python; for what isn't an identifier it writes `getattr`.
    """
    held = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    targets = [str(node.target) for node in held]
    for node, target in zip(held, targets, strict=True):
        node.target = ".".join(f"{each}{_MARK}" if iskeyword(each) else each for each in target.split("."))
    try:
        written = graph.python_code("self")
    finally:
        for node, target in zip(held, targets, strict=True):
            node.target = target
    return written.src.replace(_MARK, ""), dict(written.globals)


def _frame_of(code: CodeType, traceback: TracebackType | None) -> FrameType | None:
    """Return the frame of a traceback that runs some code."""
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return traceback.tb_frame if traceback else None


def _row(node: fx.Node) -> _Row:
    args, kwargs = (
        fx.node.map_arg(values, lambda n: cast(fx.node.Argument, _Result(n.name)))
        for values in (node.args, node.kwargs)
    )
    return node.op, node.name, node.target, args, kwargs, node.meta.get(ORIGIN, "")


def _restored(rows: Sequence[_Row]) -> Program:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for kind, name, target, *values, origin in rows:
        args, kwargs = (fx.node.map_aggregate(value, lambda v: _looked_up(v, nodes)) for value in values)
        nodes[name] = graph.create_node(kind, target, args, kwargs, name)
        nodes[name].meta[ORIGIN] = origin
    return Program(graph)


def _looked_up(value: Any, nodes: dict[str, fx.Node]) -> Any:
    return nodes[value.name] if isinstance(value, _Result) else value
