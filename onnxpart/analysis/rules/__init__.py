"""What every operator does to labels: the table, and a file for each kind of operator.

`register` enters a rule for an operator of a domain of one's own; README.md shows how.
"""

from onnxpart.analysis.rules import (
    attention,
    contraction,
    control_flow,
    elementwise,
    indexing,
    mix,
    movement,
    recurrent,
    sources,
)
from onnxpart.analysis.rules.table import Rule, find, register

__all__ = [
    "Rule",
    "attention",
    "contraction",
    "control_flow",
    "elementwise",
    "find",
    "indexing",
    "mix",
    "movement",
    "recurrent",
    "register",
    "sources",
]
