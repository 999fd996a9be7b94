"""One run of an experiment: stages of parts and of the whole, from the first weights to the final error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import onnx
from onnx import ModelProto

import onnxpart
from onnxpart import Split
from onnxpart.merging.cross_weights import Edges
from onnxpart.merging.deepen import New
from onnxpart.torch import import_onnx, load_weights
from onnxpart.torch.data.batch import Loader
from onnxpart.torch.data.sources import Data
from onnxpart.torch.part_random import seed_of
from onnxpart.torch.runs import stages
from onnxpart.torch.runs.fit import fit
from onnxpart.torch.runs.recipe import Recipe
from onnxpart.torch.runs.stages import Networks
from onnxpart.torch.runs.task import RunOptions
from onnxpart.torch.training.events import ignore
from onnxpart.torch.training.job import Result
from onnxpart.torch.training.losses import Criterion
from onnxpart.torch.training.settings import EngineKind, Settings
from onnxpart.torch.training.train import evaluate, train

Method = Literal[
    "whole",
    "duplicated",
    "partition",
    "widen",
    "levels",
    "rounds",
    "own order",
    "shallow",
    "deepen",
    "deepen from zero",
    "fit",
]
"""`own order` is `partition` with batches in an order of its own for each part. `fit` is onnxpart's command with no
option but K and the epochs of its only stage.
"""
Rate = Literal["paper", "cosine", "restart", "recipe"]
Record: TypeAlias = dict[str, Any]
RECIPE = Recipe()
"""What `fit` does by itself; a rate of that name trains so."""


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

    @property
    def options(self) -> RunOptions:
        """The options that tell `fit` and `estimate` how it is trained; the data they are given apart."""
        return RunOptions("", f"{self.loss.__module__}:{self.loss.__name__}", self.settings)

    @property
    def samples(self) -> Data:
        """Its data as `fit` and `estimate` take them."""
        return Data(self.learn, self.test)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stage:
    """`k` parts (1: the whole) that are trained for some epochs, with the first `blocks` of their blocks (0: all)."""

    k: int
    epochs: int
    blocks: int = 0

    def header(self) -> Record:
        """What a run's record says of it."""
        blocks = {"blocks": self.blocks} if self.blocks else {}
        return {"k": self.k, "epochs": self.epochs, **blocks}


@dataclass(frozen=True)
class Run:
    """What is done in a run.

    `edges`: standard deviation of the new edges, as a share of the trained weights'. `lr`: the learning rate, as a
    share of the task's.
    """

    method: Method
    stages: tuple[Stage, ...]
    rate: Rate = "paper"
    edges: float = 0.0
    lr: float = 1.0

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def header(self, task: Task, seed: int) -> Record:
        """What tells a run's record from others."""
        given = {"edges": self.edges} if self.edges else {}
        given |= {"lr": self.lr} if self.lr != 1 else {}
        return {
            "kind": "run", "experiment": task.experiment, "network": task.network, "data": task.data,
            "metric": task.metric, "method": self.method, "rate": self.rate, **given, "seed": seed,
            "epochs": self.epochs, "stages": [stage.header() for stage in self.stages],
        }  # fmt: skip


@dataclass(frozen=True)
class Piece(stages.Stage):
    """Epochs of a stage that have the same settings, at whose end the networks may be tested.

    `stage`: its number in the run. `whole`: whether its network is the whole. `apart`: whether each network takes
    batches in an order of its own.
    """

    stage: int = 0
    whole: bool = False
    tested: bool = False
    apart: bool = False


class Experiment:
    """A task from one seed's first weights. What the runs have in common, parts above all, is trained once."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed, self.model = task, seed, task.model(seed)
        self._splits: dict[tuple[int, str], Split] = {}
        self._known: dict[tuple[int, int, Rate, bool, float, int, int], tuple[Networks, list[Record]]] = {}

    def split(self, k: int, rate: Rate = "paper") -> Split:
        """The network in k parts, which start from slices of its weights, scaled where the recipe does so."""
        init = (RECIPE if rate == "recipe" else Recipe("paper")).init
        if (k, init) not in self._splits:
            self._splits[k, init] = onnxpart.split(self.model, k, init=init)
        return self._splits[k, init]

    def run(self, run: Run) -> Record:
        """Train from the first weights to the end.

        :returns: the run's record: header, the curve of all networks, and the whole's final loss and metric.
        """
        if run.method == "fit":
            return self._fitted(run)
        if len(run.stages) == 1:
            split, models = self._models(run, 0)
            first = Networks(split, [import_onnx(split.whole if run.method == "duplicated" else models[0])])
            curve = self._train(first, self.pieces(run, 0, whole=True))[1]
        elif run.method == "rounds":
            curve = self._train(self._divided(run, 0), self._all_pieces(run))[1]
        else:
            parts, before = self._parts(run)
            shown = [point for point in before if point["part"] == 0] if run.method == "widen" else before
            curve = shown + self._train(parts, self._all_pieces(run, 1))[1]
        final = {name: curve[-1][name] for name in ("loss", "metric")}
        return {**run.header(self.task, self.seed), "curve": curve, "final": final}

    def _fitted(self, run: Run) -> Record:
        """Run the command; `trained`: the stages that it chose."""
        task, k = self.task, run.stages[0].k
        settings = replace(task.settings, epochs=run.epochs, seed=self.seed, lr=task.settings.lr * run.lr)
        options = replace(task.options, settings=settings)
        with TemporaryDirectory() as folder:
            out = Path(folder) / "fit"
            found = fit(onnxpart.load(self.model), options, out, lambda *_: ignore, k=k, data=task.samples)
            module = import_onnx(onnx.load(str(found.file)))
        curve = [
            {"epoch": number, "stage": 1, "part": None, "loss": round(point.loss or 0.0, 5)}
            for number, point in enumerate(found.whole, found.merge_at + 1)
        ]
        loss, metric = evaluate(module, task.test, task.loss, task.measure, settings)
        trained = [Stage(k, found.merge_at).header(), Stage(1, len(found.whole)).header()]
        final = {"loss": round(loss, 5), "metric": round(metric or 0.0, 5)}
        return {**run.header(task, self.seed), "trained": trained, "curve": curve, "final": final}

    def parts(self, run: Run) -> Networks:
        """The parts of the first stage when it ends."""
        return self._parts(run)[0]

    def _parts(self, run: Run) -> tuple[Networks, list[Record]]:
        """The same with their curve; those that trained for fewer epochs at the same rates train on."""
        stage = run.stages[0]
        length = stage.epochs if run.rate in ("restart", "recipe") else run.epochs
        key = (stage.k, stage.blocks, run.rate, run.method == "own order", run.lr, length, stage.epochs)
        if key not in self._known:
            split, models = self._models(run, 0)
            networks, start, curve = Networks(split, [import_onnx(model) for model in models]), 0, list[Record]()
            earlier = [known for known in self._known if known[:-1] == key[:-1] and known[-1] < stage.epochs]
            if earlier:
                start = max(earlier)[-1]
                known, curve = self._known[max(earlier)]
                for module, arrays in zip(networks.modules, known.weights, strict=True):
                    load_weights(module, arrays)
                networks = replace(networks, states=known.states)
            networks, further = self._train(networks, self.pieces(run, 0, start))
            self._known[key] = networks, curve + further
        return self._known[key]

    def _models(self, run: Run, number: int) -> tuple[Split, list[ModelProto]]:
        """The networks of a stage, untrained, and the split that they are of."""
        stage = run.stages[number]
        split = self.split(max(stage.k, 2), run.rate)  # any for the whole: it is not divided
        models = [self.model] if stage.k == 1 else split.parts
        return split, [onnxpart.shallow(model, stage.blocks) if stage.blocks else model for model in models]

    def _all_pieces(self, run: Run, first: int = 0) -> list[Piece]:
        """The pieces of all stages from one on: of parts, then of the whole, which is tested as it begins, too."""
        last = len(run.stages) - 1
        found: list[Piece] = []
        for number in range(first, last + 1):
            start = sum(stage.epochs for stage in run.stages[:number])
            begin = self._begin(run, number) if number else stages.Stage.begin
            settings = self.task.settings
            found.append(Piece("", range(start, start), settings, begin, number, number == last, number == last))
            found += self.pieces(run, number, whole=number == last)
        return found

    def _begin(self, run: Run, number: int) -> Callable[[Networks], Networks]:
        """What makes the networks of a stage of those before it."""
        before, here = run.stages[number - 1 : number + 1]
        if (before.k, before.blocks) == (here.k, here.blocks) and here.k == 1:
            return self._anew(run, lambda networks: networks)  # with a schedule of its own
        if before.blocks and here.k == before.k:
            new: New = "zero" if run.method == "deepen from zero" else "copies"
            models = self._models(run, number)[1]
            grown = [onnxpart.growth(model, onnxpart.shallow(model, before.blocks), new) for model in models]
            return self._anew(run, partial(stages.deepen_networks, models=models, grown=grown))
        if number < len(run.stages) - 1:
            if run.method == "levels":
                return partial(stages.merge_to_parts, k=run.stages[number].k)
            return lambda before: stages.divide_anew(before, self._divided(run, number))
        if run.method == "widen":
            return partial(stages.widen_part, seed=self.seed)
        return self._anew(run, partial(stages.merge_parts, edges=Edges(run.edges, seed=self.seed)))

    def _anew(self, run: Run, begin: Callable[[Networks], Networks]) -> Callable[[Networks], Networks]:
        """The same with optimizers that start anew, where the recipe's do."""
        if run.rate == "recipe" and not RECIPE.merges_state(self.task.settings.optimizer):
            return lambda before: replace(begin(before), states=None)
        return begin

    def _divided(self, run: Run, number: int) -> Networks:
        """The untrained parts of a round, divided at random."""
        seed = 1000 * self.seed + number
        return stages.parts_of(onnxpart.split(self.model, run.stages[number].k, order="random", seed=seed))

    def pieces(self, run: Run, number: int, start: int | None = None, *, whole: bool = False) -> list[Piece]:
        """What a stage is made of: pieces of the same settings, with a test every few epochs and at the end.

        :param start: the epoch to begin with; the stage's first when omitted.
        """
        every, first = self.task.every, sum(stage.epochs for stage in run.stages[:number])
        start, stop = first if start is None else start, first + run.stages[number].epochs
        apart = run.method == "own order" and not whole
        marks = [start, *range(start + every - start % every, stop, every), stop]
        return [
            Piece("", epochs, settings, stage=number, whole=whole, tested=epochs.stop == mark > begin, apart=apart)
            for begin, mark in pairwise(marks)
            for settings, epochs in self._schedule(run, number, begin, mark)
        ]

    def _schedule(self, run: Run, number: int, start: int, stop: int) -> Iterator[tuple[Settings, range]]:
        """Settings for the epochs from `start` to `stop`, which may change in between."""
        settings = replace(self.task.settings, seed=self.seed, lr=self.task.settings.lr * run.lr)
        k, total = run.stages[number].k, run.epochs
        if run.rate == "restart":
            whole = number == len(run.stages) - 1 and number > 0
            lr = settings.lr * (self.task.restart if whole else 1.0)
            first, last = _alike(run, number)
            yield replace(settings, first=first, epochs=last, lr=lr, schedule="cosine"), range(start, stop)
        elif run.rate == "recipe":
            first = sum(stage.epochs for stage in run.stages[:number])
            span = range(first, first + run.stages[number].epochs)
            last = number == len(run.stages) - 1
            yield RECIPE.whole(settings, span) if last else RECIPE.parts(settings, k, span.stop), range(start, stop)
        elif run.rate == "cosine":
            yield replace(settings, epochs=total, schedule="cosine"), range(start, stop)
        else:
            first, second = self.task.drops
            ends = 0, total - first - second, total - second, total
            for (low, high), factor in zip(pairwise(ends), (1.0, 0.1, 0.01), strict=True):
                if max(low, start) < min(high, stop):
                    epochs = range(max(low, start), min(high, stop))
                    yield replace(settings, epochs=total, lr=settings.lr * factor, schedule="constant"), epochs

    def _train(self, first: Networks, pieces: Sequence[Piece]) -> tuple[Networks, list[Record]]:
        """Train the networks of the pieces; return those of the last one, and the points of the curve."""
        networks, curve = first, list[Record]()
        for piece, networks in zip(pieces, stages.run_stages(first, pieces, self._learn), strict=True):
            curve += self._test(piece, networks) if piece.tested else []
        return networks, curve

    def _learn(self, stage: stages.Stage, networks: Networks) -> list[Result]:
        task, modules = self.task, networks.modules
        if isinstance(stage, Piece) and stage.apart:
            return [result for part in range(len(modules)) for result in self._learn_apart(stage, networks, part)]
        engine: EngineKind = "auto" if len(modules) > 1 else "series"
        return train(
            modules, task.learn, task.loss, stage.settings, engine=engine, epochs=stage.epochs, states=networks.states
        )

    def _learn_apart(self, stage: stages.Stage, networks: Networks, part: int) -> list[Result]:
        """Train a part on batches in an order of its own."""
        task, states = self.task, networks.states
        learn = replace(task.learn, seed=seed_of(self.seed, part))  # type: ignore[type-var]
        state = None if states is None else [states[part]]
        return train([networks.modules[part]], learn, task.loss, stage.settings, epochs=stage.epochs, states=state)

    def _test(self, piece: Piece, networks: Networks) -> Iterator[Record]:
        """A point of the curve for each network."""
        task = self.task
        for part, module in enumerate(networks.modules):
            loss, metric = evaluate(module, task.test, task.loss, task.measure, Settings(0, device="cpu"))
            point = {"epoch": piece.epochs.stop, "stage": piece.stage, "part": None if piece.whole else part}
            yield {**point, "loss": round(loss, 5), "metric": round(metric or 0.0, 5)}


def _alike(run: Run, number: int) -> tuple[int, int]:
    """Where the schedule of a stage begins and ends, which rounds with as many parts have in common."""
    alike = [i for i, stage in enumerate(run.stages) if stage.k == run.stages[number].k]
    return sum(stage.epochs for stage in run.stages[: alike[0]]), sum(s.epochs for s in run.stages[: alike[-1] + 1])
