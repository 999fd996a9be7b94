"""onnxpart: cut a network across its width into parts that train alone, and merge them again."""

from __future__ import annotations

from onnxpart.analyse import Analysis, analyse
from onnxpart.errors import MergeError, ModelError, OnnxpartError, PartitionError, UsageError
from onnxpart.merge import merge, scatter
from onnxpart.model import Model, arrays, load
from onnxpart.plan import Plan
from onnxpart.planner import plan
from onnxpart.split import Split, split
from onnxpart.verify import Verdict, verify

__all__ = [
    "Analysis",
    "MergeError",
    "Model",
    "ModelError",
    "OnnxpartError",
    "PartitionError",
    "Plan",
    "Split",
    "UsageError",
    "Verdict",
    "analyse",
    "arrays",
    "load",
    "merge",
    "plan",
    "scatter",
    "split",
    "verify",
]
__version__ = "0.1.0"
