"""onnxpart: cut a network across its width into parts that train alone, and merge them again.

Importing this is instant: each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpart.analysis import rules
    from onnxpart.analysis.analysis import Analysis
    from onnxpart.analysis.walk import analyse
    from onnxpart.emission.shallow import shallow
    from onnxpart.emission.split import Split, split
    from onnxpart.errors import MergeError, ModelError, OnnxpartError, PartitionError, UsageError, VerificationError
    from onnxpart.frontend import surgeon
    from onnxpart.frontend.extract import cut
    from onnxpart.frontend.load import arrays, load
    from onnxpart.inspection.explain import Why, why
    from onnxpart.ir.model import Model
    from onnxpart.merging.cross_weights import draw_edges
    from onnxpart.merging.deepen import deepen, deepen_state, growth
    from onnxpart.merging.hierarchy import merge_states_to, merge_to, within
    from onnxpart.merging.merge import merge, scatter, unmerge
    from onnxpart.merging.net2wider import widen
    from onnxpart.merging.optimizer_state import OptimizerState, merge_states
    from onnxpart.planning.plan import Plan
    from onnxpart.planning.planner import plan
    from onnxpart.verification import unit_graph as graph
    from onnxpart.verification.conditions import check_conditions
    from onnxpart.verification.oracles import Verdict, verify
    from onnxpart.verification.unit_graph import operator_graph, part_subgraph, unit_graph

__all__ = [
    "Analysis",
    "MergeError",
    "Model",
    "ModelError",
    "OnnxpartError",
    "OptimizerState",
    "PartitionError",
    "Plan",
    "Split",
    "UsageError",
    "Verdict",
    "VerificationError",
    "Why",
    "analyse",
    "arrays",
    "check_conditions",
    "cut",
    "deepen",
    "deepen_state",
    "draw_edges",
    "graph",
    "growth",
    "load",
    "merge",
    "merge_states",
    "merge_states_to",
    "merge_to",
    "operator_graph",
    "part_subgraph",
    "plan",
    "rules",
    "scatter",
    "shallow",
    "split",
    "surgeon",
    "unit_graph",
    "unmerge",
    "verify",
    "why",
    "widen",
    "within",
]
__version__ = "0.1.0"

_HOMES = {
    "analysis.analysis": ("Analysis",),
    "analysis.walk": ("analyse",),
    "emission.shallow": ("shallow",),
    "emission.split": (
        "Split",
        "split",
    ),
    "errors": (
        "MergeError",
        "ModelError",
        "OnnxpartError",
        "PartitionError",
        "UsageError",
        "VerificationError",
    ),
    "frontend.extract": ("cut",),
    "frontend.load": (
        "arrays",
        "load",
    ),
    "inspection.explain": (
        "Why",
        "why",
    ),
    "ir.model": ("Model",),
    "merging.cross_weights": ("draw_edges",),
    "merging.deepen": ("deepen", "deepen_state", "growth"),
    "merging.hierarchy": (
        "merge_states_to",
        "merge_to",
        "within",
    ),
    "merging.merge": (
        "merge",
        "scatter",
        "unmerge",
    ),
    "merging.net2wider": ("widen",),
    "merging.optimizer_state": (
        "OptimizerState",
        "merge_states",
    ),
    "planning.plan": ("Plan",),
    "planning.planner": ("plan",),
    "verification.conditions": ("check_conditions",),
    "verification.oracles": (
        "Verdict",
        "verify",
    ),
    "verification.unit_graph": (
        "operator_graph",
        "part_subgraph",
        "unit_graph",
    ),
}
_MODULES = {"graph": "verification.unit_graph", "rules": "analysis.rules", "surgeon": "frontend.surgeon"}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    value: object
    if name in _MODULES:
        value = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not; nothing else, so that completion shows just these."""
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
