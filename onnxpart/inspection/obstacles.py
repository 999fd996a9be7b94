"""What keeps the original graph, with the merged weights in it, from computing the mean of the parts."""

from __future__ import annotations

from onnxpart.emission.split import Split
from onnxpart.planning.partition import Partition


def obstacles(split: Split) -> dict[int, str]:
    """The operators that compute in the original graph something other than in the duplicated whole, and why.

    :param split: the original network divided.
    :returns: operator index -> reason. Empty where both compute the same; then the original graph with merged weights
        is exactly the mean of the parts, at the linear outputs.
    """
    partition, plan, placement = split.partition, split.plan, split.partition.placement
    apart = {i.name for i in plan.initializers if i.stored == "apart"}
    found = {}
    for i, op in enumerate(split.analysis.ops):
        if placement.modes[i] != "per_part":
            continue
        replicated = [name for name in op.reads if name in apart or _is_replicated(partition, name)]
        if i in partition.division.duplicated:
            found[i] = f"{op.title} mixes units, which are divided"
        elif i in placement.unscaled:
            found[i] = f"{op.title} has a weight that can't be divided by {plan.k}"
        elif replicated:
            found[i] = f"{op.title} reads {replicated[0]!r}, of which every part has its own"
    return found


def _is_replicated(partition: Partition, name: str) -> bool:
    """Whether every part computes its own values of the tensor, all of its elements."""
    state, division = partition.analysis.state, partition.division
    if name in state.weights_only:
        return name in partition.analysis.producer and division.replicated(name)
    return partition.per_part(name) and name in state.depends_on_parameters and not division.divided(name)
