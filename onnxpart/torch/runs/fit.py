"""The whole method in one call: split, train the parts, merge weights and momenta, train the whole on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

from onnxpart.emission.initial import INITS
from onnxpart.emission.split import WHOLE, Split, part_file
from onnxpart.errors import CheckpointError, ModelError, UsageError
from onnxpart.inspection.sizes import Sizes, measure
from onnxpart.ir.model import Model
from onnxpart.merging import folder as folders
from onnxpart.merging.optimizer_state import leave_state
from onnxpart.planning.plan import Plan
from onnxpart.storage.atomic import replacing_folder
from onnxpart.storage.outputs import check_folder
from onnxpart.torch.data.sources import read_by
from onnxpart.torch.importer.module import ImportedModule
from onnxpart.torch.runs.rounds import Rounds, rounds_of
from onnxpart.torch.runs.stages import Networks, Stage, Train, divide_anew, merge_parts, parts_of, run_stages
from onnxpart.torch.runs.task import RunOptions, Task, learn, prepare
from onnxpart.torch.runs.trained_file import deviation, write_weights
from onnxpart.torch.training import checkpoint
from onnxpart.torch.training.events import Epoch, Note, OnEvent
from onnxpart.torch.training.job import Result
from onnxpart.torch.training.ray_cluster import connected
from onnxpart.torch.training.train import evaluate

CHECKPOINTS, TRAINED = "checkpoints", "trained.onnx"
PARTS, THE_WHOLE = "parts", "whole"
"""The stages; the first is the split's folder, too."""
Progress = Callable[[str, Task, range], OnEvent]
"""Stage (`parts` or `whole`), its task and its epochs -> what is told its news."""


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
class Fit:
    """What came out: curves of the parts and of the whole, its loss and metric right after merging, sizes, times.

    `rounds` are the epochs of the parts, which were merged after each of them. `note` says where the loss was taken.
    `deviation` is ONNX Runtime's from the trained module (see `trained_file`).
    """

    file: Path
    plan: Plan
    sizes: Sizes
    rounds: Sequence[range]
    metric: str
    note: str
    parts: Sequence[Sequence[Epoch]]
    merged: tuple[float, float | None] | None
    whole: list[Epoch]
    times: Times
    deviation: float

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
    k: int = 2,
    merge_at: int | None = None,
    rounds: int = 1,
    order: str | None = None,
    init: str = INITS[0],
    restart: float | None = None,
    edges: float = 0.0,
    force: bool = False,
) -> Fit:
    """Train a network by the paper's method, and write it to `out`/trained.onnx.

    :param merge_at: epochs of the parts; the whole trains the rest. Half of all when omitted.
    :param rounds: into which the parts' epochs are divided (see `rounds.Rounds`). :param order: of the units (see
        `split`); contiguous when omitted, always random in several rounds.
    :param restart: the rate from which the whole has a schedule of its own, over its epochs, as the parts have one over
        theirs; when omitted, one schedule goes over all epochs.
    :param edges: how the edges between parts start in the whole (see `cross_weights.draw_edges`).
    :param out: a folder: the last round's split with its trained parts, the trained network, and checkpoints, which
        are of no use when this returns.
    :raises OnnxpartError: when something doesn't fit, or fails; what was trained can be resumed, then.
    """
    settings = options.settings
    merge_at = settings.epochs // 2 if merge_at is None else merge_at
    if not 0 < merge_at <= settings.epochs:
        raise UsageError(f"merging at epoch {merge_at} isn't possible in {settings.epochs} epochs; choose one of them.")
    planned = rounds_of(model, k, merge_at, rounds, order, settings.seed, init)
    both = _both(options, merge_at, restart)
    if options.resume:
        _check_same(out, planned.last.plan)
    task = prepare(list(planned.last.parts), options)
    if not options.resume:
        _start(out, planned.last, force, [*model.files, *read_by(options.data)])
    with connected(options.cluster) if options.engine == "ray" else nullcontext():
        return _stages(planned, task, both, out, progress, edges)


def _both(options: RunOptions, merge_at: int, restart: float | None) -> tuple[RunOptions, RunOptions]:
    """Return how to train the parts, and the whole."""
    if restart is None:
        return options, options
    if not restart > 0:
        raise UsageError(f"restart is {restart}; it must be positive.")
    parts = replace(options.settings, epochs=merge_at)
    whole = replace(options.settings, first=merge_at, lr=restart)
    return replace(options, settings=parts), replace(options, settings=whole)


def _stages(
    rounds: Rounds, task: Task, both: tuple[RunOptions, RunOptions], out: Path, progress: Progress, edges: float
) -> Fit:
    """Train the parts, merge them, and train the whole on; write what comes out of each stage."""
    later = both[1]
    stages = _planned(rounds, task, both, edges)
    running = run_stages(_parts(rounds, task, 0), stages, _trainer(rounds, task, later, out, progress))
    *_, parts = islice(running, len(rounds.spans))
    for p, module in enumerate(parts.modules):
        write_weights(module, out / PARTS / part_file(p), out / PARTS / part_file(p))
    merged = _judged(task, next(running).modules[0], later.settings.device)
    whole = next(running)
    module, curve = whole.modules[0], [epoch for found in whole.curves for epoch in found]
    write_weights(module, out / PARTS / WHOLE, out / TRAINED)
    leave_state(whole.states[0] if whole.states else None, out / TRAINED)
    return Fit(
        out / TRAINED,
        rounds.last.plan,
        measure(rounds.last.analysis, rounds.last.plan),
        rounds.spans,
        task.loss.metric,
        task.objective.note,
        parts.curves,
        merged,
        curve,
        _times(parts.seconds, curve),
        deviation(module, task.objective, out / TRAINED, task.batch()),
    )


def _planned(rounds: Rounds, task: Task, both: tuple[RunOptions, RunOptions], edges: float) -> list[Stage]:
    """Return the stages: the parts round by round, the whole as it was merged, and the whole trained on."""
    first, last = (options.settings for options in both)
    merge_at = rounds.spans[-1].stop

    def divided(before: Networks, number: int) -> Networks:
        return divide_anew(before, _parts(rounds, task, number)) if number else before

    return [
        *(
            Stage(f"{PARTS}/round{number}", span, first, partial(divided, number=number))
            for number, span in enumerate(rounds.spans)
        ),
        Stage(
            THE_WHOLE,
            range(merge_at, merge_at),
            last,
            partial(merge_parts, edges=edges, seed=last.seed, build=task.build),
        ),
        Stage(THE_WHOLE, range(merge_at, last.epochs), last),
    ]


def _parts(rounds: Rounds, task: Task, number: int) -> Networks:
    """Return the untrained parts of a round; those of the last one are the task's modules."""
    if number == len(rounds.spans) - 1:
        return Networks(rounds.last, task.modules)
    return parts_of(rounds.split(number), task.build)


def _trainer(rounds: Rounds, task: Task, options: RunOptions, out: Path, progress: Progress) -> Train:
    """Return what trains the networks of a stage, with news and checkpoints under its name."""
    merge_at, epochs = rounds.spans[-1].stop, options.settings.epochs
    spans = {PARTS: range(merge_at), THE_WHOLE: range(merge_at, epochs)}
    told = {name: progress(name, task, span) for name, span in spans.items()}
    if options.resume and not checkpoint.exist(out / CHECKPOINTS):
        told[PARTS](Note(f"{out / CHECKPOINTS} holds nothing to resume; the run begins anew"))

    def train(stage: Stage, networks: Networks) -> list[Result]:
        """Train a stage with checkpoints in the folder of its name."""
        return learn(
            replace(task, modules=networks.modules),
            replace(options, settings=stage.settings),
            stage.epochs,
            out / CHECKPOINTS / stage.name,
            told[stage.name.partition("/")[0]],
            plan=networks.split.plan.digest,
            states=networks.states,
            seconds=networks.seconds,
        )

    return train


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


def _judged(task: Task, module: ImportedModule, device: str) -> tuple[float, float | None] | None:
    if task.data.test is None:
        return None
    metric = task.loss.measure if task.loss.metric else None
    return evaluate(module, task.data.test, task.loss, metric, device)


def _times(parts: float, whole: list[Epoch]) -> Times:
    """Return the seconds of both stages; parts that share a process count each other's seconds already."""
    ends = [0.0, *(epoch.seconds for epoch in whole)]
    durations = [after - before for before, after in pairwise(ends)]
    return Times(parts, ends[-1], median(durations) if durations else None)
