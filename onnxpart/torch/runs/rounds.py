"""The parts' training, in one round or in several: independent subnet training (Yuan et al., VLDB 2022).

After each round but the last the parts are merged into the original graph, which is divided anew, at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import onnxpart
from onnxpart.emission.initial import INITS
from onnxpart.emission.split import Split, split
from onnxpart.errors import UsageError
from onnxpart.ir.model import Model
from onnxpart.merging.merge import Into, unmerge
from onnxpart.merging.optimizer_state import OptimizerState, merge_states, unmerge_states
from onnxpart.planning.plan import ORDERS
from onnxpart.storage.rows import Array
from onnxpart.torch.importer.import_onnx import import_onnx
from onnxpart.torch.importer.module import load_weights, weights
from onnxpart.torch.part_random import seed_of
from onnxpart.torch.runs.task import Recipe, Task, learn
from onnxpart.torch.training.events import Epoch, OnEvent
from onnxpart.torch.training.job import Result

RANDOM = ORDERS[2]


@dataclass(frozen=True)
class Rounds:
    """How a network is divided in each round of its parts' epochs: `spans`, one behind the other.

    A single round has the order, the seed and the first weights that were asked for. Several are divided at random, by
    seeds of their own; from the second on the first weights are those merged before.
    """

    model: Model
    k: int
    spans: Sequence[range]
    order: str
    seed: int
    init: str

    def split(self, number: int) -> Split:
        """Return the split of a round, counted from 0."""
        seed = self.seed if len(self.spans) == 1 else seed_of(self.seed, number)
        return split(self.model, self.k, order=self.order, seed=seed, init=INITS[0] if number else self.init)

    @cached_property
    def last(self) -> Split:
        """The split of the last round, which the whole is merged from."""
        return self.split(len(self.spans) - 1)


def rounds_of(model: Model, k: int, epochs: int, count: int, order: str | None, seed: int, init: str) -> Rounds:
    """Return `count` rounds of `epochs` in all, as even as they go.

    :param order: contiguous when omitted, random in several rounds.
    :raises UsageError: for fewer epochs than rounds, or another order than random in several rounds.
    """
    if not 1 <= count <= epochs:
        raise UsageError(f"{count} rounds aren't possible in {epochs} epochs of the parts; choose 1 to {epochs}.")
    if count > 1 and order not in (None, RANDOM):
        raise UsageError(f"several rounds are divided at random, not {order}; leave out --order.")
    ends = [epochs * number // count for number in range(count + 1)]
    spans = [range(start, stop) for start, stop in pairwise(ends)]
    return Rounds(model, k, spans, order or (RANDOM if count > 1 else ORDERS[0]), seed, init)


@dataclass(frozen=True)
class Parts:
    """Parts that were trained: their split, their modules, and a result for each."""

    split: Split
    task: Task
    results: Sequence[Result]

    def weights(self, into: Into) -> dict[str, Array]:
        """Return the merged weights (see `merge.merge`)."""
        return onnxpart.merge(self.split.plan, [weights(module) for module in self.task.modules], into=into)

    def state(self, into: Into) -> OptimizerState:
        """Return the merged state of the optimisers."""
        return merge_states(self.split.plan, [result.state for result in self.results], into=into)


def train_parts(
    rounds: Rounds, task: Task, recipe: Recipe, folder: Path, on_event: OnEvent
) -> tuple[Parts, list[list[Epoch]]]:
    """Train the parts, round by round; return those of the last one, and for each part its epochs of all rounds.

    :param task: its modules are the parts of the last round. :param folder: each round gets one in it for checkpoints.
    """
    parts: Parts | None = None
    curves: list[list[Epoch]] = [[] for _ in range(rounds.k)]
    for number, span in enumerate(rounds.spans):
        divided, mine = rounds.last, task
        if span != rounds.spans[-1]:
            divided = rounds.split(number)
            mine = replace(task, modules=[import_onnx(task.objective.cut(part)) for part in divided.parts])
        states = None if parts is None else _go_on(mine, divided, parts)
        results = learn(
            mine,
            recipe,
            span,
            folder / f"round{number}",
            on_event,
            plan=divided.plan.digest,
            states=states,
            seconds=max(curve[-1].seconds if curve else 0.0 for curve in curves),
        )
        parts = Parts(divided, mine, results)
        for curve, result in zip(curves, results, strict=True):
            curve += result.curve
    assert parts is not None
    return parts, curves


def _go_on(task: Task, divided: Split, before: Parts) -> list[OptimizerState]:
    """Let the parts of a split start from what those of another were merged to; return their optimisers' states."""
    plan = divided.plan
    for module, arrays in zip(task.modules, unmerge(plan, before.weights("original")), strict=True):
        load_weights(module, arrays)
    return unmerge_states(plan, before.state("original"))
