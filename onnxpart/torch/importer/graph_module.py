"""A graph of torch.fx that is pickled as it is, and knows of which node of the model each of its calls is."""

from __future__ import annotations

from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any, cast

from torch import fx, nn


@dataclass(frozen=True)
class _Result:
    """The result of a node of the graph, by the node's name."""

    name: str


_Row = tuple[str, str, Any, Any, Any, str]
"""Kind, name, target, arguments, keyword arguments and origin of a node."""
ORIGIN = "origin"
"""Key under which a call's `meta` says which node of the model it stands for."""


class Body(fx.GraphModule):
    """A graph with what it calls. fx itself would trace its code anew, into the functions that it calls."""

    def __reduce__(self) -> Any:
        """Return the graph as rows."""
        root = nn.Module()
        for name, child in self.named_children():
            root.add_module(name, child)
        return _restored, (root, [_row(node) for node in self.graph.nodes], self.training)

    def failed(self, error: Exception) -> str | None:
        """Return which node of the model `forward` failed in; None where the error is not of this graph's code.

        `forward` keeps each call's result under the call's name, so the first call without one is what failed.
        """
        frame = _frame_of(self.forward.__code__, error.__traceback__)
        if frame is None:
            return None
        calls = (node for node in self.graph.nodes if node.op.startswith("call"))
        return next((node.meta.get(ORIGIN) for node in calls if node.name not in frame.f_locals), None)


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


def _restored(root: nn.Module, rows: list[_Row], training: bool) -> Body:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for kind, name, target, *values, origin in rows:
        args, kwargs = (fx.node.map_aggregate(value, lambda v: _looked_up(v, nodes)) for value in values)
        nodes[name] = graph.create_node(kind, target, args, kwargs, name)
        nodes[name].meta[ORIGIN] = origin
    body = Body(root, graph)
    body.training = training
    return body


def _looked_up(value: Any, nodes: dict[str, fx.Node]) -> Any:
    return nodes[value.name] if isinstance(value, _Result) else value
