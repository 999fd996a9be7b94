"""A graph of torch.fx that is pickled as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn


@dataclass(frozen=True)
class _Result:
    """The result of a node of the graph, by the node's name."""

    name: str


_Row = tuple[str, str, Any, Any, Any]
"""Kind, name, target, arguments and keyword arguments of a node."""


class Body(fx.GraphModule):
    """A graph with what it calls. fx itself would trace its code anew, into the functions that it calls."""

    def __reduce__(self) -> Any:
        """Return the graph as rows."""
        root = nn.Module()
        for name, child in self.named_children():
            root.add_module(name, child)
        return _restored, (root, [_row(node) for node in self.graph.nodes], self.training)


def _row(node: fx.Node) -> _Row:
    args, kwargs = (
        fx.node.map_arg(values, lambda n: cast(fx.node.Argument, _Result(n.name)))
        for values in (node.args, node.kwargs)
    )
    return node.op, node.name, node.target, args, kwargs


def _restored(root: nn.Module, rows: list[_Row], training: bool) -> Body:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for kind, name, target, *values in rows:
        args, kwargs = (fx.node.map_aggregate(value, lambda v: _looked_up(v, nodes)) for value in values)
        nodes[name] = graph.create_node(kind, target, args, kwargs, name)
    body = Body(root, graph)
    body.training = training
    return body


def _looked_up(value: Any, nodes: dict[str, fx.Node]) -> Any:
    return nodes[value.name] if isinstance(value, _Result) else value
