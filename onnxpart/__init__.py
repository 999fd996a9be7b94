"""onnxpart: cut a network across its width into parts that train alone, and merge them again.

Importing this is instant: each public name is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpart.analyse import Analysis, analyse
    from onnxpart.cut import cut
    from onnxpart.edges import draw_edges
    from onnxpart.errors import MergeError, ModelError, OnnxpartError, PartitionError, UsageError
    from onnxpart.levels import merge_states_to, merge_to, within
    from onnxpart.merge import merge, scatter, unmerge
    from onnxpart.model import Model, arrays, load
    from onnxpart.moments import OptimizerState, merge_states
    from onnxpart.plan import Plan
    from onnxpart.planner import plan
    from onnxpart.split import Split, split
    from onnxpart.verify import Verdict, verify
    from onnxpart.why import Why, why
    from onnxpart.widen import widen

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
    "Why",
    "analyse",
    "arrays",
    "cut",
    "draw_edges",
    "load",
    "merge",
    "merge_states",
    "merge_states_to",
    "merge_to",
    "plan",
    "scatter",
    "split",
    "unmerge",
    "verify",
    "why",
    "widen",
    "within",
]
__version__ = "0.1.0"

_HOMES = {
    "analyse": ("Analysis", "analyse"),
    "cut": ("cut",),
    "edges": ("draw_edges",),
    "errors": ("MergeError", "ModelError", "OnnxpartError", "PartitionError", "UsageError"),
    "levels": ("merge_states_to", "merge_to", "within"),
    "merge": ("merge", "scatter", "unmerge"),
    "model": ("Model", "arrays", "load"),
    "moments": ("OptimizerState", "merge_states"),
    "plan": ("Plan",),
    "planner": ("plan",),
    "split": ("Split", "split"),
    "verify": ("Verdict", "verify"),
    "why": ("Why", "why"),
    "widen": ("widen",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """Loads public names on demand, and keeps a verb the function when the module of that name is imported."""

    def __getattr__(self, name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{self.__name__}.{_HOME[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
