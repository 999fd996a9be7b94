"""The table of operators."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxpart.torch.importer.node import Handler

_REGISTRY: dict[tuple[str, str], dict[int, Handler]] = {}
NEWEST = 28
"""The opset up to which the table knows what each operator means."""


def operator(*op_types: str, since: int = 1, domain: str = "") -> Callable[[Handler], Handler]:
    """Enter a module-level function for operators, valid from opset `since` to the next entry."""

    def enter(handler: Handler) -> Handler:
        for op_type in op_types:
            _REGISTRY.setdefault((domain, op_type), {})[since] = handler
        return handler

    return enter


def find(domain: str, op_type: str, opset: int) -> Handler | None:
    """Return the entry with the highest `since` up to the opset, or None; also None for a newer meaning."""
    versions = _REGISTRY.get((domain, op_type), {})
    since = max((version for version in versions if version <= opset), default=None)
    if since is None or (not domain and opset > NEWEST and _since(op_type, opset) > NEWEST):
        return None
    return versions[since]


def _since(op_type: str, opset: int) -> int:
    return onnx.defs.get_schema(op_type, opset).since_version if onnx.defs.has(op_type) else opset
