"""One run of an experiment: stages of parts and of the whole, from the first weights to the final error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

import onnxpart
from onnxpart import OptimizerState, Split
from onnxpart.merging.optimizer_state import unmerge_states
from onnxpart.torch import ImportedModule, import_onnx, load_weights, weights
from onnxpart.torch.data.batch import Loader
from onnxpart.torch.training.losses import Criterion
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import evaluate, train

Method = Literal["whole", "duplicated", "partition", "widen", "levels", "rounds"]
Rate = Literal["paper", "cosine", "restart"]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A network and what it learns. The test metric is a mean over samples, and better when lower.

    `settings`: those best for the baseline. `drops`: epochs at the end of rate `paper`, with a tenth and then a
    hundredth of the learning rate. `restart`: the whole's rate after a merge, as a share, where each stage has a
    schedule of its own. `every`: epochs between tests.
    """

    experiment: str
    network: str
    data: str
    metric: str
    model: Callable[[int], ModelProto]
    learn: Loader
    test: Loader
    loss: Criterion
    measure: Criterion
    settings: Settings
    every: int
    drops: tuple[int, int] = (1, 1)
    restart: float = 1.0


@dataclass(frozen=True)
class Stage:
    """`k` parts (1: the whole) that are trained for some epochs."""

    k: int
    epochs: int


@dataclass(frozen=True)
class Run:
    """What is done in a run. `edges`: standard deviation of the new edges, as a share of the trained weights'."""

    method: Method
    stages: tuple[Stage, ...]
    rate: Rate = "paper"
    edges: float = 0.0

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def header(self, task: Task, seed: int) -> Record:
        """What tells a run's record from others."""
        edges = {"edges": self.edges} if self.edges else {}
        return {
            "kind": "run", "experiment": task.experiment, "network": task.network, "data": task.data,
            "metric": task.metric, "method": self.method, "rate": self.rate, **edges, "seed": seed,
            "epochs": self.epochs, "stages": [{"k": stage.k, "epochs": stage.epochs} for stage in self.stages],
        }  # fmt: skip


@dataclass
class Networks:
    """The networks of a stage side by side: modules, what their optimisers remember, and how they came on."""

    modules: list[ImportedModule]
    states: list[OptimizerState] | None
    epoch: int
    stage: int = 0
    curve: list[Record] = field(default_factory=list)

    def arrays(self) -> list[dict[str, NDArray[Any]]]:
        """The weights of each, copied."""
        return [{name: np.array(array) for name, array in weights(module).items()} for module in self.modules]


class Experiment:
    """A task from one seed's first weights. What the runs have in common, parts above all, is trained once."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed, self.model = task, seed, task.model(seed)
        self._splits: dict[int, Split] = {}
        self._known: dict[tuple[int, Rate, int, int], Networks] = {}

    def split(self, k: int) -> Split:
        """The network in k parts, which start from slices of its weights."""
        if k not in self._splits:
            self._splits[k] = onnxpart.split(self.model, k)
        return self._splits[k]

    def run(self, run: Run) -> Record:
        """Train from the first weights to the end.

        :returns: the run's record: header, the curve of all networks, and the whole's final loss and metric.
        """
        ways = {"whole": self._alone, "duplicated": self._alone, "partition": self._partition, "widen": self._widen,
                "levels": self._levels, "rounds": self._rounds}  # fmt: skip
        whole = ways[run.method](run)
        last = whole.curve[-1]
        final = {name: last[name] for name in ("loss", "metric")}
        return {**run.header(self.task, self.seed), "curve": whole.curve, "final": final}

    def parts(self, run: Run) -> Networks:
        """The parts of the first stage when it ends."""
        stage = run.stages[0]
        length = stage.epochs if run.rate == "restart" else run.epochs
        key = (stage.k, run.rate, length, stage.epochs)
        if key not in self._known:
            started = Networks([import_onnx(part) for part in self.split(stage.k).parts], None, 0)
            earlier = [known for known in self._known if known[:3] == key[:3] and known[3] < stage.epochs]
            if earlier:
                known = self._known[max(earlier)]
                for module, arrays in zip(started.modules, known.arrays(), strict=True):
                    load_weights(module, arrays)
                started.states, started.epoch, started.curve = known.states, known.epoch, list(known.curve)
            self._learn(started, run, 0, stage.epochs)
            self._known[key] = started
        return self._known[key]

    def _alone(self, run: Run) -> Networks:
        k = run.stages[0].k
        model = self.model if run.method == "whole" else self.split(k).whole
        return self._to_the_end(Networks([import_onnx(model)], None, 0), run)

    def _partition(self, run: Run) -> Networks:
        parts = self.parts(run)
        split = self.split(run.stages[0].k)
        states = None if parts.states is None else [onnxpart.merge_states(split.plan, parts.states)]
        merged = onnxpart.merge(split.plan, parts.arrays())
        return self._go_on(
            parts, split, onnxpart.draw_edges(split.plan, merged, run.edges, seed=self.seed), states, run
        )

    def _widen(self, run: Run) -> Networks:
        split, parts = self.split(run.stages[0].k), self.parts(run)
        wide = onnxpart.widen(split.analysis, split.plan, parts.arrays()[0], seed=self.seed)
        first = replace(parts, curve=[point for point in parts.curve if point["part"] == 0])
        return self._go_on(first, split, wide, None, run)

    def _levels(self, run: Run) -> Networks:
        parts, split = self.parts(run), self.split(run.stages[0].k)
        for number, stage in enumerate(run.stages[1:-1], 1):
            larger = onnxpart.merge_to(split, parts.arrays(), stage.k)
            states = None if parts.states is None else onnxpart.merge_states_to(split.plan, larger.plan, parts.states)
            modules = [import_onnx(model) for model in larger.parts]
            parts = Networks(modules, states, parts.epoch, number, list(parts.curve))
            split = larger
            self._learn(parts, run, number, parts.epoch + stage.epochs)
        states = None if parts.states is None else [onnxpart.merge_states(split.plan, parts.states)]
        return self._go_on(parts, split, onnxpart.merge(split.plan, parts.arrays()), states, run)

    def _rounds(self, run: Run) -> Networks:
        """Parts of the network as it stands, divided anew at random before each round."""
        parts, split = Networks([], None, 0), self.split(run.stages[0].k)
        for number, stage in enumerate(run.stages[:-1]):
            before, last = parts, split.plan
            split = onnxpart.split(self.model, stage.k, order="random", seed=1000 * self.seed + number)
            parts = Networks([import_onnx(p) for p in split.parts], None, before.epoch, number, before.curve)
            if before.states is not None:
                merged = onnxpart.merge(last, before.arrays(), into="original")
                for module, mine in zip(parts.modules, onnxpart.unmerge(split.plan, merged), strict=True):
                    load_weights(module, mine)
                state = onnxpart.merge_states(last, before.states, into="original")
                parts.states = unmerge_states(split.plan, state)
            self._learn(parts, run, number, parts.epoch + stage.epochs)
        states = None if parts.states is None else [onnxpart.merge_states(split.plan, parts.states)]
        return self._go_on(parts, split, onnxpart.merge(split.plan, parts.arrays()), states, run)

    def _go_on(
        self, parts: Networks, split: Split, merged: Arrays, states: list[OptimizerState] | None, run: Run
    ) -> Networks:
        """Train the whole from merged weights on."""
        module = import_onnx(split.whole)
        load_weights(module, merged)
        whole = Networks([module], states, parts.epoch, len(run.stages) - 1, list(parts.curve))
        self._test(whole, whole=True)
        return self._to_the_end(whole, run)

    def _to_the_end(self, whole: Networks, run: Run) -> Networks:
        self._learn(whole, run, len(run.stages) - 1, run.epochs, whole=True)
        return whole

    def _learn(self, networks: Networks, run: Run, number: int, stop: int, *, whole: bool = False) -> None:
        """Train a stage to an epoch, with a test every few epochs and at the end."""
        task, start = self.task, networks.epoch
        marks = sorted({stop, *range(start + task.every - start % task.every, stop, task.every)})
        for mark in marks:
            for settings, epochs in self._pieces(run, number, networks.epoch, mark):
                results = train(
                    networks.modules,
                    task.learn,
                    task.loss,
                    settings,
                    engine="auto" if len(networks.modules) > 1 else "series",
                    epochs=epochs,
                    states=networks.states,
                )
                networks.states = [result.state for result in results]
            if mark > networks.epoch:
                networks.epoch = mark
                self._test(networks, whole=whole)

    def _pieces(self, run: Run, number: int, start: int, stop: int) -> Iterator[tuple[Settings, range]]:
        """Settings for the epochs from `start` to `stop`, which may change in between."""
        settings, total = replace(self.task.settings, seed=self.seed), run.epochs
        if run.rate == "restart":
            whole = number == len(run.stages) - 1 and number > 0
            lr = settings.lr * (self.task.restart if whole else 1.0)
            first, last = _schedule(run, number)
            yield replace(settings, first=first, epochs=last, lr=lr, schedule="cosine"), range(start, stop)
        elif run.rate == "cosine":
            yield replace(settings, epochs=total, schedule="cosine"), range(start, stop)
        else:
            first, second = self.task.drops
            ends = 0, total - first - second, total - second, total
            for (low, high), factor in zip(pairwise(ends), (1.0, 0.1, 0.01), strict=True):
                if max(low, start) < min(high, stop):
                    epochs = range(max(low, start), min(high, stop))
                    yield replace(settings, epochs=total, lr=settings.lr * factor, schedule="constant"), epochs

    def _test(self, networks: Networks, *, whole: bool) -> None:
        """Add a point of each network to the curve."""
        task = self.task
        for part, module in enumerate(networks.modules):
            loss, metric = evaluate(module, task.test, task.loss, task.measure, "cpu")
            point = {"epoch": networks.epoch, "stage": networks.stage, "part": None if whole else part}
            networks.curve.append({**point, "loss": round(loss, 5), "metric": round(metric or 0.0, 5)})


def _schedule(run: Run, number: int) -> tuple[int, int]:
    """Where the schedule of a stage begins and ends, which rounds with as many parts have in common."""
    alike = [i for i, stage in enumerate(run.stages) if stage.k == run.stages[number].k]
    return sum(stage.epochs for stage in run.stages[: alike[0]]), sum(s.epochs for s in run.stages[: alike[-1] + 1])
