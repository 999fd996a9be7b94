"""A plan with all that follows from it for its model."""

from __future__ import annotations

from dataclasses import dataclass

from onnxpart.analysis.analysis import Analysis
from onnxpart.errors import MergeError
from onnxpart.planning.division import Division
from onnxpart.planning.placement import Placement, place
from onnxpart.planning.plan import Plan


@dataclass(frozen=True, eq=False)
class Partition:
    """A model, a plan of it, what the parts hold of every tensor, and how often each operator stands in the whole."""

    analysis: Analysis
    plan: Plan
    division: Division
    placement: Placement

    def per_part(self, name: str) -> bool:
        """Whether a tensor is made once per part in the duplicated whole."""
        producer = self.analysis.producer.get(name)
        return producer is not None and self.placement.modes[producer] == "per_part"


def partition_of(analysis: Analysis, plan: Plan) -> Partition:
    """The partition that a plan implies for its model.

    :raises MergeError: when the plan is of another model.
    """
    if sum(n for _, n in plan.units) != analysis.labels.count:
        raise MergeError(f"the plan isn't one of {analysis.model.name}; split the model again.")
    division = Division(analysis, plan.parts_of_labels(), plan.k, frozenset(plan.duplicated_nodes))
    return Partition(analysis, plan, division, place(division))
