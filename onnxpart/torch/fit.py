"""The whole method in one call: split, train the parts, merge weights and momenta, train the whole on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import onnxpart
from onnxpart import folder as folders
from onnxpart.errors import CheckpointError, ModelError, UsageError
from onnxpart.model import Model
from onnxpart.moments import leave_state, merge_states
from onnxpart.plan import Plan
from onnxpart.report import Sizes, measure
from onnxpart.split import PLAN, WHOLE, Split, part_file, split
from onnxpart.torch.cluster import connected
from onnxpart.torch.importer import import_onnx
from onnxpart.torch.job import Epoch, OnEvent
from onnxpart.torch.module import load_weights, weights
from onnxpart.torch.runs import Recipe, Task, learn, prepare
from onnxpart.torch.train import evaluate
from onnxpart.torch.written import deviation, read_whole, write_weights

CHECKPOINTS, TRAINED = "checkpoints", "trained.onnx"
PARTS, THE_WHOLE = "parts", "whole"
"""The stages; the first is the split's folder, too."""
Watch = Callable[[str, Task, range], OnEvent]
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

    `note` says where the loss was taken. `deviation` is ONNX Runtime's from the trained module (see `written`).
    """

    file: Path
    plan: Plan
    sizes: Sizes
    merge_at: int
    metric: str
    note: str
    parts: list[list[Epoch]]
    merged: tuple[float, float | None] | None
    whole: list[Epoch]
    times: Times
    deviation: float


def fit(
    model: Model,
    recipe: Recipe,
    out: Path,
    watch: Watch,
    *,
    k: int = 2,
    merge_at: int | None = None,
    order: str = "contiguous",
    init: str = "slices",
    force: bool = False,
) -> Fit:
    """Train a network by the paper's method, and write it to `out`/trained.onnx.

    :param merge_at: epochs of the parts; the whole trains the rest. Half of all when omitted.
    :param out: a folder: the split with its trained parts, the trained network, and checkpoints, which are of no use
        when this returns.
    :raises OnnxpartError: when something doesn't fit, or fails; what was trained can be resumed, then.
    """
    settings = recipe.settings
    merge_at = settings.epochs // 2 if merge_at is None else merge_at
    if not 0 < merge_at <= settings.epochs:
        raise UsageError(f"merging at epoch {merge_at} isn't possible in {settings.epochs} epochs; choose one of them.")
    divided = split(model, k, order=order, seed=settings.seed, init=init)
    if recipe.resume:
        _check_same(out, divided.plan)
    task = prepare(list(divided.parts), recipe)
    if not recipe.resume:
        _start(out, divided, force)
    with connected(recipe.cluster) if recipe.engine == "ray" else nullcontext():
        return _stages(divided, task, recipe, out, watch, merge_at)


def _stages(divided: Split, task: Task, recipe: Recipe, out: Path, watch: Watch, merge_at: int) -> Fit:
    """Train the parts, merge them, and train the whole on; write what comes out of each stage."""
    parts_folder, checkpoints, settings = out / PARTS, out / CHECKPOINTS, recipe.settings
    digest, before, after = divided.plan.digest, range(merge_at), range(merge_at, settings.epochs)
    told = watch(PARTS, task, before)
    results = learn(task, recipe, before, checkpoints / PARTS, told, plan=digest)
    files = [parts_folder / part_file(p) for p in range(divided.plan.k)]
    for path, module in zip(files, task.modules, strict=True):
        write_weights(module, path, path)
    source = parts_folder / WHOLE
    whole = replace(task, modules=[import_onnx(task.objective.cut(read_whole(source)))])
    load_weights(whole.modules[0], onnxpart.merge(divided.plan, [weights(module) for module in task.modules]))
    merged = _judged(whole, settings.device)
    state = merge_states(divided.plan, [result.state for result in results])
    told = watch(THE_WHOLE, whole, after)
    (result,) = learn(whole, recipe, after, checkpoints / THE_WHOLE, told, plan=digest, states=[state])
    write_weights(whole.modules[0], source, out / TRAINED)
    leave_state(result.state, out / TRAINED)
    curves = [found.curve for found in results]
    return Fit(
        out / TRAINED,
        divided.plan,
        measure(divided.analysis, divided.plan),
        merge_at,
        task.loss.metric,
        task.objective.note,
        curves,
        merged,
        result.curve,
        _times(curves, result.curve),
        deviation(whole.modules[0], whole.objective, out / TRAINED, whole.batch()),
    )


def _start(out: Path, divided: Split, force: bool) -> None:
    """Write the split into a fresh folder."""
    if out.exists() and not force:
        raise ModelError(f"{out} exists already; go on with --resume, give another folder, or --force to replace it.")
    if out.is_dir() and any(out.iterdir()) and not (out / PARTS / PLAN).is_file():
        raise ModelError(f"{out} holds other files than a training run's; give another folder.")
    try:
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)
        divided.save(out / PARTS)
    except OSError as error:
        raise ModelError(f"{out} can't be written ({error.strerror}); choose another folder.") from None


def _check_same(out: Path, plan: Plan) -> None:
    """Check that a folder holds a run of the same split that hasn't ended."""
    if not (out / PARTS).is_dir():
        raise CheckpointError(f"{out} holds no run to resume; leave out --resume to start one.")
    if folders.read_plan(out / PARTS) != plan:
        raise CheckpointError(f"{out} holds a run of another split; resume with the same model, -k, order and seed.")
    if (out / TRAINED).exists() and not (out / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{out} holds a run that has ended; its result is {out / TRAINED}.")


def _judged(task: Task, device: str) -> tuple[float, float | None] | None:
    if task.data.test is None:
        return None
    metric = task.loss.measure if task.loss.metric else None
    return evaluate(task.modules[0], task.data.test, task.loss, metric, device)


def _times(parts: list[list[Epoch]], whole: list[Epoch]) -> Times:
    """Return the seconds of both stages; parts that share a process count each other's seconds already."""
    ends = [0.0, *(epoch.seconds for epoch in whole)]
    durations = [after - before for before, after in pairwise(ends)]
    return Times(max(curve[-1].seconds for curve in parts), ends[-1], median(durations) if durations else None)
