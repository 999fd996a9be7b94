"""The whole method in one call: split, train the parts, merge weights and momenta, train the whole on.

Parts may train with few of their blocks, and get the others before they merge. Instead of several parts there may be
one, and copies of it fill the whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import onnx
from torch import nn

from onnxpart.emission.shallow import shallow
from onnxpart.emission.split import PLAN, WHOLE, Split, part_files
from onnxpart.errors import CheckpointError, MergeError, ModelError, UsageError
from onnxpart.inspection.sizes import measure
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.merging import folder as folders
from onnxpart.merging.cross_weights import ZERO, Edges
from onnxpart.merging.deepen import Growth, growth
from onnxpart.merging.net2wider import check_alike
from onnxpart.merging.optimizer_state import save_trained
from onnxpart.planning.plan import Plan
from onnxpart.storage.atomic import replacing_folder
from onnxpart.storage.outputs import check_folder
from onnxpart.storage.remote import Place, Remote, exists
from onnxpart.torch.data.sources import Data, read_by
from onnxpart.torch.runs import estimate
from onnxpart.torch.runs.goal import Goal, GoalOrPatience
from onnxpart.torch.runs.outcome import COPIES, ONE_PART, SHORTER, Check, Fit, Grow, Times, Traffic, times_of
from onnxpart.torch.runs.recipe import SHARE, Recipe, checks, enough, epochs_of_parts, remaining
from onnxpart.torch.runs.rounds import Rounds, rounds_of
from onnxpart.torch.runs.stages import (
    Ensemble,
    Networks,
    Stage,
    Train,
    deepen_networks,
    divide_anew,
    merge_parts,
    parts_of,
    run_stages,
    widen_part,
)
from onnxpart.torch.runs.task import RunOptions, Task, check_test, learn, opened, prepare
from onnxpart.torch.runs.trained_file import deviation, with_weights
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.data_parallel import gradient_bytes, ring
from onnxpart.torch.training.events import Epoch, Note, OnEvent
from onnxpart.torch.training.fully_sharded import sharded_bytes
from onnxpart.torch.training.job import Ending, Result
from onnxpart.torch.training.ray_cluster import check_nodes, connected
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import evaluate

CHECKPOINTS, TRAINED = "checkpoints", "trained.onnx"
PARTS, THE_WHOLE, BASELINE = "parts", "whole", "baseline"
"""The names of stages; the first is also the name of the split's folder."""
Progress = Callable[[str, Task, range], OnEvent]
"""Stage, its task and its epochs -> what receives its news."""


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
    grow: Grow = "merge",
    blocks: int | None = None,
    edges: Edges = ZERO,
    goal: Goal = Goal(),  # noqa: B008
    baseline: bool = False,
    force: bool = False,
    data: Data | None = None,
    kept: Remote | None = None,
    on_found: Callable[[Fit], object] = lambda _: None,
) -> Fit:
    """Train a network by the paper's method, and write it to `out`/trained.onnx.

    :param options: its epochs are those that the whole alone would have, and its patience is that with the whole and
        its baseline.
    :param k: a number of parts; auto takes the one that `estimate` advises, or that of the resumed run.
    :param recipe: how each is trained.
    :param merge_at: epochs of the parts; the whole trains the rest. When omitted the recipe chooses: `paper` half of
        them; `auto` all, or fewer once they no longer lower the loss of the parts' ensemble on the test data, and the
        whole then trains for a fifth as many.
    :param rounds: the number of rounds that the parts' epochs are divided into (see `rounds.Rounds`). :param order: of
        the units (see `split`); contiguous when omitted, always random in several rounds. :param init: the parts' first
        weights; the recipe's when omitted.
    :param grow: `widen` trains the first of the parts alone, and fills the whole with copies of it.
    :param blocks: how many blocks of each stack the parts train with (see `emission.shallow`). The others are added
        before the merge: such that add nothing at first, or copies if no zeros among their weights do that. All when
        omitted.
    :param edges: how cross weights start in the whole; those of frozen parameters are kept in each round.
    :param goal: what ends training early: of the parts, which then merge, and of each network alone.
    :param baseline: whether to compare with the whole trained alone for all epochs, with the settings that it has after
        merging, and with the controls (see `Fit`).
    :param out: a folder for the last round's split with its trained parts, the trained network, and checkpoints. The
        checkpoints are of no use when this returns.
    :param data: the data, if they are open already.
    :param kept: where the run is kept, if not in `out`, which is then a `remote_run.working_folder`.
    :param on_found: called with the results so far: when the network is trained and written, after the baseline, and
        after each control.
    :raises OnnxpartError: when something doesn't fit or fails; the run can then be resumed.
    """
    most = options.settings.epochs
    if goal.minutes is not None and (merge_at is not None or rounds > 1):
        raise UsageError("a budget in minutes chooses when the parts merge; leave out --merge-at and --rounds.")
    data = opened(model.proto, options) if data is None else data
    check_test(data, "--metric-target", goal.target)
    if k == "auto":
        begun = options.resume and (out / PARTS).is_dir()
        k = folders.read_plan(out / PARTS).k if begun else estimate.chosen(model, options, data)
    chosen = merge_at is None and recipe.kind == "auto"
    options = replace(options, settings=_within(goal, model, k, options, chosen, data, kept or out))
    settings = options.settings
    longest = recipe.longest(settings.epochs) if merge_at is None else merge_at
    if not 0 < longest <= settings.epochs:
        raise UsageError(f"--merge-at {merge_at} isn't within the {settings.epochs} epochs; choose one of them.")
    if blocks is not None and rounds > 1:
        raise UsageError("parts with fewer blocks train in one round; leave out --rounds or --blocks.")
    if grow == "widen" and (rounds > 1 or edges != ZERO):
        raise UsageError(
            "with --grow widen one part is trained, and nothing is merged; leave out --rounds and --edges, or --grow."
        )
    planned = rounds_of(model, k, longest, rounds, order, settings.seed, init or recipe.init)
    edges.check(planned.last.plan)
    if options.resume:
        _check_same(out, kept or out, planned.last.plan)
    parts = planned.last.parts
    if grow == "widen":
        check_alike(planned.last.partition)
        parts = parts[:1]
    first = parts if blocks is None else [shallow(part, blocks) for part in parts]
    grown = None if blocks is None else list(map(_growth, parts, first))
    task = prepare(list(first), options, data)
    with _reached(options, k):
        if kept is not None or not options.resume:
            _start(out, kept, planned.last, force, [*model.files, *read_by(options.data)])
        growing = _Growing(grow, blocks, grown)
        found = _Run(planned, task, options, recipe, goal, out, kept or out, progress, growing, chosen)
        return found.fit(edges, on_found, most if baseline else 0)


@contextmanager
def _reached(options: RunOptions, k: int) -> Iterator[None]:
    """Keep a connection to the Ray cluster, which must have room for the whole's workers; other engines need none."""
    if options.engine != "ray":
        yield
        return
    with connected(options.cluster) as ray:
        check_nodes(ray, options.cluster.for_whole(k))
        yield


@dataclass(frozen=True)
class _Growing:
    """How parts become the whole, which blocks they train with, and how the other blocks start."""

    grow: Grow
    blocks: int | None
    grown: Sequence[Growth] | None

    def __str__(self) -> str:
        """Its text in a checkpoint; empty if parts with all blocks merge."""
        return ("" if self.blocks is None else f", {self.blocks} blocks") + (", widen" if self.grow == "widen" else "")


@dataclass(frozen=True)
class _Run:
    """A run of `fit`: its stages, each with news and checkpoints under its name.

    `chosen`: whether the recipe chooses when the parts merge, and so how many epochs the whole has.
    """

    rounds: Rounds
    task: Task
    options: RunOptions
    recipe: Recipe
    goal: Goal
    out: Path
    kept: Place
    progress: Progress
    growing: _Growing
    chosen: bool

    def fit(self, edges: Edges, on_found: Callable[[Fit], object], baseline: int) -> Fit:
        """Train the parts, merge them, and train the whole on; write what comes out of each stage.

        :param on_found: see there. :param baseline: the most epochs of the whole alone; 0 if nothing is to be compared.
        """
        rounds, task, out = self.rounds, self.task, self.out
        parts, ensemble = self._parts(edges)
        trained = len(parts.curves[0])
        if self.growing.grown is not None:
            parts = deepen_networks(parts, rounds.last.parts[: len(parts.modules)], self.growing.grown, task.build)
        files = part_files(out / PARTS, len(parts.modules))
        trained_parts = zip(parts.modules, files, strict=True)
        save_trained(files, ((with_weights(module, path), None) for module, path in trained_parts))
        merged, whole = self._whole(parts, trained, edges)
        module, curve = whole.modules[0], [epoch for found in whole.curves for epoch in found]
        times = times_of(parts.seconds, curve)
        state = whole.states[0] if whole.states else None
        save_trained([out / TRAINED], [(with_weights(module, out / PARTS / WHOLE), state)])
        found = Fit(
            out / TRAINED,
            rounds.last.partition,
            measure(rounds.last.analysis, rounds.last.plan),
            [*rounds.spans[:-1], range(rounds.spans[-1].start, trained)],
            task.metric,
            task.objective.note,
            parts.curves,
            ensemble,
            merged,
            curve,
            [],
            {},
            times,
            deviation(module, task.objective, out / TRAINED, task.batch()),
            edges.keeping(rounds.model.frozen).kept(rounds.last.plan),
            self.goal,
            self.growing.grow,
            self.growing.blocks,
            trained if self.chosen else trained + len(curve),
            self._traffic(parts.modules, module),
            (parts.gpu_memory, whole.gpu_memory),
        )
        on_found(found)
        if baseline:
            found = replace(found, baseline=self._baseline(baseline, times))
            on_found(found)
            untiring = replace(self, options=replace(self.options, patience=None))  # a control has all of its time
            for name, control in untiring.controls(parts, range(trained, trained + len(curve)), times, found.baseline):
                found = replace(found, controls={**found.controls, name: control})
                on_found(found)
        return found

    def _traffic(self, parts: Sequence[nn.Module], whole: nn.Module) -> Traffic | None:
        """Return what the workers of a cluster send; if each part has several workers, the whole has all of them."""
        if self.options.engine != "ray":
            return None
        each = self.options.cluster.workers_per_part or 1
        every = each * self.rounds.k

        def sent(module: nn.Module, workers: int) -> float:
            """Bytes of each worker for a batch of a module."""
            if self.options.cluster.sharded:
                return sharded_bytes(module, workers)
            return ring(workers, gradient_bytes(module))

        alone = every * sent(whole, every)
        return Traffic(
            sum(each * sent(part, each) for part in parts),
            alone if self.options.cluster.workers_per_part else 0.0,
            alone,
            len(self.task.data.train),
        )

    def _parts(self, edges: Edges) -> tuple[Networks, list[Check]]:
        """Train the parts round by round, or in one round until they no longer pay; return the ensemble's results."""
        rounds, task, longest = self.rounds, self.task, self.rounds.spans[-1].stop
        settings = self.recipe.parts(self.options.settings, rounds.k, longest)
        told = self.progress(PARTS, task, range(longest))
        if self.options.resume and not checkpoint.all_in(self.kept / CHECKPOINTS):
            told(Note(f"{self.kept / CHECKPOINTS} contains nothing to resume; the run starts from the beginning"))
        narrow, wide = estimate.width(rounds.last)
        if narrow < wide and rounds.k > 1:
            badly = f"they may learn badly with less than {wide}, so that a smaller -k may do better"
            told(Note(f"parts have {narrow} units in their large layers; {badly}"))
        pieced = len(rounds.spans) == 1 and (self.chosen or self.goal.watched)
        if self.chosen and task.data.test is None:
            told(Note(f"without test data there is no sign of when to merge; the parts train for {longest} epochs"))

        def divided(before: Networks, number: int) -> Networks:
            return divide_anew(before, self._round(number), edges) if number else before

        spans = checks(range(longest)) if pieced else rounds.spans
        stages = [
            Stage(f"{PARTS}/to{span.stop}", span, settings, partial(divided, number=0 if pieced else number))
            for number, span in enumerate(spans)
        ]
        ensemble: list[Check] = []
        running = run_stages(self._round(0), stages, self._trainer(told))
        for stage, networks in zip(stages, running, strict=True):
            if pieced and task.data.test is not None:
                judged = self._judged(Ensemble(networks.modules))
                ensemble.append(Check(stage.epochs.stop, networks.seconds, *judged))
            why = self._why_merge(ensemble, networks.seconds) if pieced else ""
            if why and stage is not stages[-1]:
                told(Note(f"the parts merge after {stage.epochs.stop} epochs: {why}"))
                break
        return networks, ensemble

    def _why_merge(self, ensemble: Sequence[Check], seconds: float) -> str:
        """Return in words why the parts merge now; empty if they train on."""
        if ensemble and self.goal.reached(self.task.metric, ensemble[-1].loss, ensemble[-1].metric):
            return "their ensemble is as good as the target"
        if self.goal.spent_on_parts(seconds):
            return "their share of the budget is spent"
        hardly = self.chosen and enough([check.loss for check in ensemble])
        return "their ensemble hardly improves" if hardly else ""

    def _whole(self, parts: Networks, trained: int, edges: Edges) -> tuple[tuple[float, float | None] | None, Networks]:
        """Merge the parts, and train the whole on; return its results right after merging, and the network."""
        settings, left = self.options.settings, self.options.settings.epochs - trained
        if self.chosen:
            left = remaining(trained)
        elif trained < self.rounds.spans[-1].stop:
            left = min(left, remaining(trained))
        span = range(trained, trained + left)
        whole = self.recipe.whole(settings, span)

        def merged(before: Networks) -> Networks:
            if self.growing.grow == "widen":
                return widen_part(before, seed=settings.seed, build=self.task.build)
            found = merge_parts(before, replace(edges, seed=settings.seed), self.task.build)
            return found if self.recipe.merges_state(settings.optimizer) else replace(found, states=None)

        told = self.progress(THE_WHOLE, self.task, span)
        begin = Stage(THE_WHOLE, range(trained, trained), whole, merged)
        (first,) = run_stages(parts, [begin], self._trainer(told))
        judged = None if self.task.data.test is None else self._judged(first.modules[0])
        if judged is not None and self.goal.reached(self.task.metric, *judged):
            return judged, first
        return judged, self._trained(Stage(THE_WHOLE, span, whole), first, parts.seconds)

    def _baseline(self, most: int, times: Times) -> list[Epoch]:
        """Train the whole alone, for as long as the budget allows; return its curve."""
        if self.goal.steps is not None:
            most = min(max(self.goal.steps // self.options.settings.steps(len(self.task.data.train)), 1), most)
        if self.goal.minutes is not None and times.epoch is not None:
            most = min(max(round(60 * self.goal.minutes / times.epoch), 1), most)
        return self._alone(BASELINE, most)

    def controls(
        self, parts: Networks, span: range, times: Times, alone: list[Epoch]
    ) -> Iterator[tuple[str, list[Epoch]]]:
        """Train the controls; yield names and curves. COPIES is left out if parts differ in shape, or are copied
        anyway.

        :param span: the epochs of the whole. :param alone: the baseline's curve.
        """
        settings, recipe, k = self.options.settings, self.recipe, self.rounds.k
        if span and self.growing.grow != "widen":
            try:
                copies = widen_part(parts, seed=settings.seed, build=self.task.build)
            except MergeError as error:
                self.progress(COPIES, self.task, span)(Note(f"the control of copies is left out: {error}"))
            else:
                yield COPIES, self._curve(Stage(COPIES, span, recipe.whole(settings, span)), copies)
        fewer = round((times.parts + times.whole) * len(alone) / alone[-1].seconds)
        if fewer < len(alone):
            yield SHORTER, self._alone(SHORTER, max(fewer, 1))
        longer = range(k * span.start)
        rate = recipe.parts(settings, k, span.start).lr
        part = replace(recipe.whole(replace(settings, epochs=longer.stop), longer), lr=rate)
        split = self.rounds.split(0)
        one = Networks(split, [self.task.build(split.parts[0])])
        yield ONE_PART, self._curve(Stage(ONE_PART, longer, part), one)

    def _alone(self, name: str, count: int) -> list[Epoch]:
        """Train the whole from its own first weights for so many epochs; return its curve."""
        epochs = range(count)
        settings = self.recipe.whole(replace(self.options.settings, epochs=count), epochs)
        first = Networks(self.rounds.last, [self.task.build(redraft(self.rounds.model).model())])
        return self._curve(Stage(name, epochs, settings), first)

    def _curve(self, stage: Stage, first: Networks) -> list[Epoch]:
        """Train the only network of a stage; return its curve."""
        return list(self._trained(stage, first).curves[0])

    def _trained(self, stage: Stage, first: Networks, before: float = 0.0) -> Networks:
        """Train the only network of a stage until its epochs end, the goal is reached, or it no longer becomes better.

        :param before: seconds of the budget that are already spent.
        """
        told, metric = self.progress(stage.name, self.task, stage.epochs), self.task.metric
        ending = GoalOrPatience(self.goal, metric, self.options.patience_by(metric), before)
        if not stage.epochs:
            return first
        (networks,) = run_stages(first, [stage], self._trainer(told, ending))
        curve = networks.curves[0]
        if len(curve) < len(stage.epochs):
            why = ending.why(curve) or "the budget is spent"  # of several workers, by another one's clock
            told(Note(f"{stage.name} ends after epoch {stage.epochs.start + len(curve)}: {why}"))
        return networks

    def _round(self, number: int) -> Networks:
        """Return the untrained parts of a round; those of the last one are the task's modules."""
        if number == len(self.rounds.spans) - 1:
            return Networks(self.rounds.last, self.task.modules)
        return parts_of(self.rounds.split(number), self.task.build)

    def _trainer(self, told: OnEvent, ending: Ending | None = None) -> Train:
        """Return the function that trains the networks of a stage; an engine that was chosen by trial stays.

        :param ending: of the network of a stage; parts have none.
        """
        engine = self.options.engine

        def train(stage: Stage, networks: Networks) -> list[Result]:
            """Train a stage with checkpoints in the folder of its name; one network has the workers of all parts."""
            nonlocal engine
            alone = len(networks.modules) == 1
            cluster = self.options.cluster.for_whole(self.rounds.k) if alone else self.options.cluster
            results = learn(
                replace(self.task, modules=networks.modules),
                replace(self.options, settings=stage.settings, engine=engine, cluster=cluster),
                stage.epochs,
                self.kept / CHECKPOINTS / stage.name,
                told,
                plan=f"{networks.split.plan.digest}{self.growing}",
                states=networks.states,
                seconds=networks.seconds,
                ending=ending,
            )
            engine = results[0].engine if engine == "auto" else engine
            return results

        return train

    def _judged(self, module: nn.Module) -> tuple[float, float | None]:
        """Return the loss and the metric of a module over the test data."""
        task = self.task
        assert task.data.test is not None
        return evaluate(module, task.data.test, task.loss, task.metric.measure, self.options.settings)


def _within(goal: Goal, model: Model, k: int, options: RunOptions, chosen: bool, data: Data, kept: Place) -> Settings:
    """Return the settings with the epochs that the budget allows, by measured steps; a resumed run keeps its epochs."""
    settings, seconds = options.settings, (0.0, 0.0)
    if goal.minutes is not None:
        begun = checkpoint.all_in(kept / CHECKPOINTS / PARTS) if options.resume else []
        if begun:
            return replace(settings, epochs=checkpoint.about(begun[0])["settings"]["epochs"])
        found = estimate.estimate(model, options, [k], data)
        apart = options.engine in ("processes", "ray")
        seconds = (found.rows[0].one if apart else found.rows[0].together) / 1000, found.whole / 1000
    most, share = settings.epochs, 0.5
    if chosen:
        most, share = most + remaining(most), SHARE
    epochs = goal.epochs(most, settings.steps(len(data.train)), seconds, share)
    return replace(settings, epochs=epochs_of_parts(epochs) if chosen else epochs)


def _growth(part: onnx.ModelProto, first: onnx.ModelProto) -> Growth:
    """What a part's new blocks start as: blocks that add nothing, or else copies."""
    try:
        return growth(part, first, "zero")
    except MergeError:
        return growth(part, first, "copies")


def _start(out: Path, kept: Remote | None, divided: Split, force: bool, inputs: list[Path]) -> None:
    """Write the split into a fresh folder; `inputs`: files that are read, which mustn't be in it.

    A run that is kept in a storage has its plan there from now on.
    """
    if kept is not None:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        divided.write(out / PARTS)
        (kept / PARTS / PLAN).put(out / PARTS / PLAN)
        return
    if os.path.lexists(out) and not force:
        raise ModelError(f"{out} exists already; go on with --resume, give another folder, or --force to replace it.")
    check_folder(out, force, inputs)
    with replacing_folder(out) as fresh:
        (fresh / PARTS).mkdir()
        divided.write(fresh / PARTS)


def _check_same(out: Path, kept: Place, plan: Plan) -> None:
    """Check that a folder holds a run of the same split that hasn't ended; `kept`: where its checkpoints are."""
    if not (out / PARTS).is_dir():
        raise CheckpointError(f"{kept} holds no run to resume; leave out --resume to start one.")
    if folders.read_plan(out / PARTS) != plan:
        raise CheckpointError(
            f"{kept} holds a run of another split; resume with the same model, -k, rounds, order and seed."
        )
    if exists(kept / TRAINED) and not checkpoint.all_in(kept / CHECKPOINTS):
        raise CheckpointError(f"{kept} holds a run that has ended; its result is {kept / TRAINED}.")
