"""The whole method in one call: split, train the parts, merge weights and momenta, train the whole on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from torch import nn

from onnxpart.emission.split import WHOLE, Split, part_files
from onnxpart.errors import CheckpointError, MergeError, ModelError, UsageError
from onnxpart.inspection.sizes import Sizes, measure
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.ir.trainable import frozen
from onnxpart.merging import folder as folders
from onnxpart.merging.cross_weights import ZERO, Edges
from onnxpart.merging.optimizer_state import save_trained
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import Plan
from onnxpart.storage.atomic import replacing_folder
from onnxpart.storage.outputs import check_folder
from onnxpart.torch.data.sources import read_by
from onnxpart.torch.runs import estimate
from onnxpart.torch.runs.recipe import Recipe, checks, enough, remaining
from onnxpart.torch.runs.rounds import Rounds, rounds_of
from onnxpart.torch.runs.stages import (
    Ensemble,
    Networks,
    Stage,
    Train,
    divide_anew,
    merge_parts,
    parts_of,
    run_stages,
    widen_part,
)
from onnxpart.torch.runs.task import RunOptions, Task, learn, opened, prepare
from onnxpart.torch.runs.trained_file import deviation, with_weights
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.events import Epoch, Note, OnEvent
from onnxpart.torch.training.job import Result
from onnxpart.torch.training.ray_cluster import connected
from onnxpart.torch.training.train import evaluate

CHECKPOINTS, TRAINED = "checkpoints", "trained.onnx"
PARTS, THE_WHOLE, BASELINE = "parts", "whole", "baseline"
"""The stages; the first is the split's folder, too."""
SHORTER, ONE_PART, COPIES = "shorter", "one part", "copies"
"""The controls, which are stages, too: other ways to spend about as much time."""
Progress = Callable[[str, Task, range], OnEvent]
"""Stage, its task and its epochs -> what is told its news."""


@dataclass(frozen=True)
class Times:
    """Seconds of training: of the parts as they ran, of the whole after them, and the median epoch of the whole."""

    parts: float
    whole: float
    epoch: float | None

    def alone(self, epochs: int) -> float | None:
        """Return what the whole would take for all epochs, at its median epoch."""
        return None if self.epoch is None else epochs * self.epoch

    def speedup(self, epochs: int) -> float | None:
        """Return how many times as fast the method was as that."""
        alone = self.alone(epochs)
        return None if alone is None else alone / (self.parts + self.whole)


@dataclass(frozen=True)
class Check:
    """What the ensemble of the parts, the mean of their outputs, gives on the test data after some epochs."""

    epoch: int
    seconds: float
    loss: float
    metric: float | None


@dataclass(frozen=True)
class Fit:
    """What came out: curves of the parts and of the whole, its loss and metric right after merging, sizes, times.

    `rounds` are the epochs of the parts, which were merged after each of them. `ensemble`: where it was looked at.
    `baseline`: the curve of the whole trained alone, if that was asked for; `controls`: then those of SHORTER, the
    whole for as many epochs as take the method's time, ONE_PART, a part trained for K times the parts' epochs, and
    COPIES, the whole that begins as copies of the first part. `note` says where the loss was taken. `deviation` is ONNX
    Runtime's from the trained module (see `trained_file`). `kept` names the initializers whose
    weights between parts are as they were in the network.
    """

    file: Path
    partition: Partition
    sizes: Sizes
    rounds: Sequence[range]
    metric: str
    note: str
    parts: Sequence[Sequence[Epoch]]
    ensemble: Sequence[Check]
    merged: tuple[float, float | None] | None
    whole: list[Epoch]
    baseline: list[Epoch]
    controls: Mapping[str, list[Epoch]]
    times: Times
    deviation: float
    kept: Sequence[str]

    @property
    def plan(self) -> Plan:
        """By which the parts were merged last."""
        return self.partition.plan

    @property
    def merge_at(self) -> int:
        """How many epochs the parts had, in all."""
        return self.rounds[-1].stop


def fit(
    model: Model,
    options: RunOptions,
    out: Path,
    progress: Progress,
    *,
    k: int | Literal["auto"] = 2,
    recipe: Recipe = Recipe(),  # noqa: B008
    merge_at: int | None = None,
    rounds: int = 1,
    order: str | None = None,
    init: str | None = None,
    edges: Edges = ZERO,
    baseline: bool = False,
    force: bool = False,
) -> Fit:
    """Train a network by the paper's method, and write it to `out`/trained.onnx.

    :param options: with the most epochs of parts and whole together. :param k: a number of parts; auto is what
        `estimate` advises, or that of the run that is resumed. :param recipe: how each is trained.
    :param merge_at: epochs of the parts; the whole trains the rest. When omitted the recipe chooses: `paper` half of
        all; `auto` four fifths, or fewer once they no longer lower the loss of the parts' ensemble on the test data,
        and the whole then trains for a fourth as many.
    :param rounds: into which the parts' epochs are divided (see `rounds.Rounds`). :param order: of the units (see
        `split`); contiguous when omitted, always random in several rounds. :param init: the parts' first weights; the
        recipe's when omitted.
    :param edges: how the edges between parts start in the whole; those of parameters that the model says are frozen are
        kept, in each round.
    :param baseline: whether the whole is also trained alone for all epochs, as it is after merging, to compare; and the
        controls (see `Fit`).
    :param out: a folder: the last round's split with its trained parts, the trained network, and checkpoints, which
        are of no use when this returns.
    :raises OnnxpartError: when something doesn't fit, or fails; what was trained can be resumed, then.
    """
    settings = options.settings
    longest = recipe.longest(settings.epochs) if merge_at is None else merge_at
    if not 0 < longest <= settings.epochs:
        raise UsageError(f"merging at epoch {merge_at} isn't possible in {settings.epochs} epochs; choose one of them.")
    data = opened(model.proto, options)
    if k == "auto":
        begun = options.resume and (out / PARTS).is_dir()
        k = folders.read_plan(out / PARTS).k if begun else estimate.chosen(model, options, data)
    planned = rounds_of(model, k, longest, rounds, order, settings.seed, init or recipe.init)
    edges.check(planned.last.plan)
    if options.resume:
        _check_same(out, planned.last.plan)
    task = prepare(list(planned.last.parts), options, data)
    if not options.resume:
        _start(out, planned.last, force, [*model.files, *read_by(options.data)])
    with connected(options.cluster) if options.engine == "ray" else nullcontext():
        found = _Run(planned, task, options, recipe, out, progress)
        return found.fit(edges, stops=merge_at is None and recipe.kind == "auto", baseline=baseline)


@dataclass(frozen=True)
class _Run:
    """A run of `fit`: its stages, each with news and checkpoints under its name."""

    rounds: Rounds
    task: Task
    options: RunOptions
    recipe: Recipe
    out: Path
    progress: Progress

    def fit(self, edges: Edges, *, stops: bool, baseline: bool) -> Fit:
        """Train the parts, merge them, and train the whole on; write what comes out of each stage.

        :param stops: whether the parts merge as soon as they no longer pay.
        """
        rounds, task, out = self.rounds, self.task, self.out
        parts, ensemble = self._parts(edges, stops)
        trained = len(parts.curves[0])
        files = part_files(out / PARTS, len(parts.modules))
        trained_parts = zip(parts.modules, files, strict=True)
        save_trained(files, ((with_weights(module, path), None) for module, path in trained_parts))
        merged, whole = self._whole(parts, trained, edges)
        module, curve = whole.modules[0], [epoch for found in whole.curves for epoch in found]
        times = _times(parts.seconds, curve)
        alone = self._baseline() if baseline else []
        controls = self._controls(parts, range(trained, trained + len(curve)), times, alone) if baseline else {}
        state = whole.states[0] if whole.states else None
        save_trained([out / TRAINED], [(with_weights(module, out / PARTS / WHOLE), state)])
        return Fit(
            out / TRAINED,
            rounds.last.partition,
            measure(rounds.last.analysis, rounds.last.plan),
            [*rounds.spans[:-1], range(rounds.spans[-1].start, trained)],
            task.loss.metric,
            task.objective.note,
            parts.curves,
            ensemble,
            merged,
            curve,
            alone,
            controls,
            times,
            deviation(module, task.objective, out / TRAINED, task.batch()),
            edges.keeping(frozen(rounds.model.proto)).kept(rounds.last.plan),
        )

    def _parts(self, edges: Edges, stops: bool) -> tuple[Networks, list[Check]]:
        """Train the parts round by round, or in one round until they no longer pay; return what the ensemble gave."""
        rounds, task, longest = self.rounds, self.task, self.rounds.spans[-1].stop
        settings = self.recipe.parts(self.options.settings, rounds.k, longest)
        told = self.progress(PARTS, task, range(longest))
        if self.options.resume and not checkpoint.exist(self.out / CHECKPOINTS):
            told(Note(f"{self.out / CHECKPOINTS} holds nothing to resume; the run begins anew"))
        looked = stops and len(rounds.spans) == 1 and task.data.test is not None
        if stops and task.data.test is None:
            told(Note(f"without test data nobody can see when to merge; the parts train for {longest} epochs"))

        def divided(before: Networks, number: int) -> Networks:
            return divide_anew(before, self._round(number), edges) if number else before

        spans = checks(longest) if looked else rounds.spans
        stages = [
            Stage(f"{PARTS}/to{span.stop}", span, settings, partial(divided, number=0 if looked else number))
            for number, span in enumerate(spans)
        ]
        ensemble: list[Check] = []
        running = run_stages(self._round(0), stages, self._trainer(told))
        for stage, networks in zip(stages, running, strict=True):
            if looked:
                loss, metric = self._judged(Ensemble(networks.modules))
                ensemble.append(Check(stage.epochs.stop, networks.seconds, loss, metric))
                if enough([check.loss for check in ensemble]) and stage is not stages[-1]:
                    told(Note(f"the parts merge after {stage.epochs.stop} epochs: their ensemble hardly improves"))
                    break
        return networks, ensemble

    def _whole(self, parts: Networks, trained: int, edges: Edges) -> tuple[tuple[float, float | None] | None, Networks]:
        """Merge the parts, and train the whole on; return what it gave right after merging, and the network."""
        settings, rounds = self.options.settings, self.rounds
        left = settings.epochs - trained
        span = range(trained, trained + (left if trained == rounds.spans[-1].stop else min(left, remaining(trained))))
        whole = self.recipe.whole(settings, span)

        def merged(before: Networks) -> Networks:
            found = merge_parts(before, replace(edges, seed=settings.seed), self.task.build)
            return found if self.recipe.merges_state(settings.optimizer) else replace(found, states=None)

        stages = [Stage(THE_WHOLE, range(trained, trained), whole, merged), Stage(THE_WHOLE, span, whole)]
        running = run_stages(parts, stages, self._trainer(self.progress(THE_WHOLE, self.task, span)))
        first = next(running)
        judged = None if self.task.data.test is None else self._judged(first.modules[0])
        return judged, next(running)

    def _baseline(self) -> list[Epoch]:
        """Train the whole alone, from its own first weights; return its curve."""
        return self._alone(BASELINE, self.options.settings.epochs)

    def _controls(self, parts: Networks, span: range, times: Times, alone: list[Epoch]) -> dict[str, list[Epoch]]:
        """Train the controls; return their curves. Where parts differ in shape there are no copies of one.

        :param span: the epochs of the whole. :param alone: the baseline's curve.
        """
        settings, recipe, k = self.options.settings, self.recipe, self.rounds.k
        fewer = round((times.parts + times.whole) * len(alone) / alone[-1].seconds)
        longer = range(k * span.start)
        rate = recipe.parts(settings, k, span.start).lr
        part = replace(recipe.whole(replace(settings, epochs=longer.stop), longer), lr=rate)
        split = self.rounds.split(0)
        one = Networks(split, [self.task.build(split.parts[0])])
        curves = {
            SHORTER: self._alone(SHORTER, min(max(fewer, 1), len(alone))),
            ONE_PART: self._trained(Stage(ONE_PART, longer, part), one),
        }
        try:
            copies = widen_part(parts, seed=settings.seed, build=self.task.build)
        except MergeError as error:
            self.progress(COPIES, self.task, span)(Note(f"the control of copies is left out: {error}"))
            return curves
        if span:
            curves[COPIES] = self._trained(Stage(COPIES, span, recipe.whole(settings, span)), copies)
        return curves

    def _alone(self, name: str, count: int) -> list[Epoch]:
        """Train the whole from its own first weights for so many epochs; return its curve."""
        epochs = range(count)
        settings = self.recipe.whole(replace(self.options.settings, epochs=count), epochs)
        first = Networks(self.rounds.last, [self.task.build(redraft(self.rounds.model).model())])
        return self._trained(Stage(name, epochs, settings), first)

    def _trained(self, stage: Stage, first: Networks) -> list[Epoch]:
        """Train the only network of a stage; return its curve."""
        told = self.progress(stage.name, self.task, stage.epochs)
        (networks,) = run_stages(first, [stage], self._trainer(told))
        return list(networks.curves[0])

    def _round(self, number: int) -> Networks:
        """Return the untrained parts of a round; those of the last one are the task's modules."""
        if number == len(self.rounds.spans) - 1:
            return Networks(self.rounds.last, self.task.modules)
        return parts_of(self.rounds.split(number), self.task.build)

    def _trainer(self, told: OnEvent) -> Train:
        """Return what trains the networks of a stage; an engine that was chosen by trial stays."""
        engine = self.options.engine

        def train(stage: Stage, networks: Networks) -> list[Result]:
            """Train a stage with checkpoints in the folder of its name."""
            nonlocal engine
            results = learn(
                replace(self.task, modules=networks.modules),
                replace(self.options, settings=stage.settings, engine=engine),
                stage.epochs,
                self.out / CHECKPOINTS / stage.name,
                told,
                plan=networks.split.plan.digest,
                states=networks.states,
                seconds=networks.seconds,
            )
            engine = results[0].engine if engine == "auto" else engine
            return results

        return train

    def _judged(self, module: nn.Module) -> tuple[float, float | None]:
        """Return the loss and the metric of a module over the test data."""
        task = self.task
        assert task.data.test is not None
        metric = task.loss.measure if task.loss.metric else None
        return evaluate(module, task.data.test, task.loss, metric, self.options.settings.device)


def _start(out: Path, divided: Split, force: bool, inputs: list[Path]) -> None:
    """Write the split into a fresh folder; `inputs` are what is read, which mustn't be in it."""
    if os.path.lexists(out) and not force:
        raise ModelError(f"{out} exists already; go on with --resume, give another folder, or --force to replace it.")
    check_folder(out, force, inputs)
    with replacing_folder(out) as fresh:
        (fresh / PARTS).mkdir()
        divided.write(fresh / PARTS)


def _check_same(out: Path, plan: Plan) -> None:
    """Check that a folder holds a run of the same split that hasn't ended."""
    if not (out / PARTS).is_dir():
        raise CheckpointError(f"{out} holds no run to resume; leave out --resume to start one.")
    if folders.read_plan(out / PARTS) != plan:
        raise CheckpointError(
            f"{out} holds a run of another split; resume with the same model, -k, rounds, order and seed."
        )
    if (out / TRAINED).exists() and not (out / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{out} holds a run that has ended; its result is {out / TRAINED}.")


def _times(parts: float, whole: list[Epoch]) -> Times:
    """Return the seconds of both stages; parts that share a process count each other's seconds already."""
    ends = [0.0, *(epoch.seconds for epoch in whole)]
    durations = [after - before for before, after in pairwise(ends)]
    return Times(parts, ends[-1], median(durations) if durations else None)
