"""The commands that train, in PyTorch, which is imported when one of them runs."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from onnxpart.cli import tables
from onnxpart.cli.config import Config, options_of, written
from onnxpart.cli.models import loaded, named
from onnxpart.cli.options import EdgesText, Force, Json, ModelFile, Outputs, taking
from onnxpart.cli.reporting import pages
from onnxpart.emission.initial import InitKind
from onnxpart.emission.split import part_files
from onnxpart.errors import Resumable, UsageError, needs
from onnxpart.frontend.load import load
from onnxpart.merging import folder
from onnxpart.merging.cross_weights import Edges
from onnxpart.page import write as page
from onnxpart.page.content import content
from onnxpart.planning.plan import OrderKind
from onnxpart.report.records import PARTITION
from onnxpart.storage.atomic import write_bytes
from onnxpart.storage.remote import Remote, place_of

if TYPE_CHECKING:
    from onnxpart.torch.data.images import Normalize
    from onnxpart.torch.runs.task import RunOptions, Task

Engine = Literal["auto", "series", "fused", "processes", "ray"]
AmpDtype = Literal["bfloat16", "float16"]
Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["constant", "cosine", "step", "onecycle", "wsd"]
LogTo = Literal["tensorboard", "wandb", "mlflow"]
RecipeName = Literal["auto", "paper"]
_RATES = {"adam": 1e-3, "adamw": 1e-3, "sgd": 1e-2}
"""By optimizer, where no rate is given."""
RUN = "run.yaml"
"""In a run's folder: its options."""
_AMOUNT = re.compile(r"(\d+)|(\d+(?:\.\d+)?) ?m(?:in)?")


@dataclass(frozen=True)
class Training:
    """The options that `train` and `fit` have in common."""

    data: Annotated[
        str,
        typer.Option(
            help="The samples: mnist5k; cifar10:FOLDER (binary version); npz:FILE or FILE.npz (arrays named after "
            "the graph's inputs, and `target`; with test_ in front for testing); folder:PATH (images by class); "
            "hf:NAME_OR_FOLDER (a data set of the library datasets, with columns of the same names); module:function "
            "(gives a torch Dataset, a DataLoader or another iterable of batches, or a pair to learn and to test). "
            "Files and folders may be in a storage, as in npz:s3://bucket/data.npz.",
            show_default=False,
        ),
    ]
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Passes over the data. With fit: those that the whole alone would have.",
            show_default=False,
        ),
    ]
    loss: Annotated[str, typer.Option(help="The loss: cross_entropy, mse, bce or module:function.")] = "cross_entropy"
    label_smoothing: Annotated[
        float, typer.Option(help="Share of a label that goes to all classes alike, for cross_entropy.")
    ] = 0.0
    class_weights: Annotated[
        str | None,
        typer.Option(metavar="NUMBER,..", help="Weights of the classes, in order, for cross_entropy."),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            help="What is measured on the test data by torchmetrics: accuracy, f1 (its mean over classes), auroc or "
            "module:function (gives a Metric). If omitted, the error rate, or R2 for mse.",
            show_default=False,
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="EPOCHS",
            help="End the training of a network that isn't better for so many epochs, by its metric on the test data "
            "(see --metric), or its loss for mse. In fit that is the whole, not the parts. The best weights are kept. "
            "A schedule that decays hasn't come to its end then; constant fits.",
            show_default=False,
        ),
    ] = None
    engine: Annotated[
        Engine, typer.Option(help="How parts are trained: one after the other, fused into one, or in a process each.")
    ] = "auto"
    optimizer: Annotated[Optimizer, typer.Option(help="The optimizer, of torch.optim.")] = "adamw"
    lr: Annotated[float | None, typer.Option(help="Learning rate. If omitted, 0.001, and 0.01 for sgd.")] = None
    momentum: Annotated[float, typer.Option(help="Momentum of sgd.")] = 0.9
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="How the learning rate changes. If omitted, it is constant, and in fit the whole's is cosine.",
            show_default=False,
        ),
    ] = None
    clip: Annotated[float | None, typer.Option(help="Largest norm that a part's gradient may have.")] = None
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 100
    workers: Annotated[int, typer.Option(min=0, help="Processes that read data that aren't in memory.")] = 0
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Batches in an epoch, for data without a length.", show_default=False)
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,..",
            help="What is subtracted from images, whose pixels are from 0 to 1: one number, or one per channel.",
        ),
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="NUMBER,..", help="What images are then divided by, as with --mean.")
    ] = None
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, or auto. If omitted, Ray runs on this machine alone."),
    ] = None
    cpus_per_part: Annotated[float, typer.Option(min=0, help="CPU cores that Ray keeps for each worker of a part.")] = (
        1.0
    )
    gpus_per_part: Annotated[float, typer.Option(min=0, help="GPUs that Ray keeps for each worker of a part.")] = 0.0
    workers_per_part: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Workers that share each batch of a part, by Ray Train. The whole then has those of all parts.",
            show_default=False,
        ),
    ] = None
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp",
            help="Let each worker keep a shard of weights, gradients and optimizer state (FSDP2's fully_shard). If "
            "omitted, each has all of them (DistributedDataParallel).",
        ),
    ] = False
    device: Annotated[str, typer.Option(help="Where to train: auto (cuda, else cpu), cpu, cuda, cuda:i or mps.")] = (
        "auto"
    )
    amp: Annotated[bool, typer.Option("--amp", help="Compute the forward pass in --amp-dtype (mixed precision).")] = (
        False
    )
    amp_dtype: Annotated[
        AmpDtype, typer.Option(help="The type of --amp; with float16 gradients are scaled, and overflows skip a step.")
    ] = "bfloat16"
    compile: Annotated[bool, typer.Option("--compile", help="Compile the networks with torch.compile.")] = False
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of samples and of dropout.")] = 0
    checkpoint_every: Annotated[
        str,
        typer.Option(
            metavar="STEPS|Nmin",
            help="When to write a checkpoint: every so many steps, or minutes, as in 5min, and after each epoch.",
        ),
    ] = "10min"
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep of each part.")] = 2
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints of a run that was stopped.")] = (
        False
    )
    log_to: Annotated[
        LogTo | None,
        typer.Option(
            help="Where curves and options are also shown, by the tracker's own settings. If omitted, TensorBoard, "
            "if it is installed.",
            show_default=False,
        ),
    ] = None
    as_json: Json = False

    def options(self) -> RunOptions:
        """Return the options as the training takes them.

        :raises UsageError: for values that make no sense, or without PyTorch.
        """
        task = _runs().task
        if self.workers_per_part and self.engine != "ray":
            raise UsageError("several workers per part need the engine ray; add --engine ray.")
        if self.fsdp and not self.workers_per_part:
            raise UsageError("--fsdp shards a network among its workers; add --workers-per-part.")
        known = {field.name for field in fields(task.Settings)}
        settings = {name: value for name, value in vars(self).items() if name in known and value is not None}
        settings.setdefault("lr", _RATES.get(self.optimizer))
        every = steps_or_minutes(self.checkpoint_every)
        if every is None:
            text = self.checkpoint_every
            raise UsageError(
                f"--checkpoint-every {text!r} is neither steps nor minutes; give steps such as 500, or minutes such "
                "as 5min."
            )
        options: RunOptions = task.RunOptions(
            self.data,
            self.loss,
            task.Settings(**settings),
            self.engine,
            task.Cluster(
                self.address, self.cpus_per_part, self.gpus_per_part, self.workers_per_part, sharded=self.fsdp
            ),
            self.batch_size,
            self.workers,
            *every,
            self.keep,
            self.resume,
            self.steps_per_epoch,
            self._normalize(),
            self.label_smoothing,
            self._weights(),
            self.metric,
            self.patience,
        )
        return options

    def _weights(self) -> tuple[float, ...]:
        if self.class_weights is None:
            return ()
        try:
            return tuple(float(weight) for weight in self.class_weights.split(","))
        except ValueError:
            raise UsageError(f"--class-weights {self.class_weights} aren't numbers; give them as in 1,5,2.") from None

    def _normalize(self) -> Normalize | None:
        """Return how images are normalised, if they are.

        :raises UsageError: for texts that aren't numbers, or one without the other.
        """
        if self.mean is None and self.std is None:
            return None
        try:
            mean, std = (tuple(float(number) for number in (text or "").split(",")) for text in (self.mean, self.std))
        except ValueError:
            raise UsageError(
                f"--mean {self.mean} and --std {self.std} aren't possible; give numbers to both, as in "
                "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."
            ) from None
        found: Normalize = _runs().task.Normalize(mean, std)
        return found


def steps_or_minutes(text: str) -> tuple[int | None, float | None] | None:
    """Return a number of steps, or else of minutes; None where the text is neither, or 0."""
    found = _AMOUNT.fullmatch(text)
    if found is None or not float(found[1] or found[2]):
        return None
    return (int(found[1]), None) if found[1] else (None, float(found[2]))


def edges_of(text: str, seed: int = 0) -> Edges:
    """Return how cross weights start, from the option's text.

    :raises UsageError: when it says nothing of the kind.
    """
    how, _, names = text.partition(":")
    if how == "keep":
        return Edges(keep=frozenset(names.split(",")) if names else None, seed=seed)
    try:
        spread = float(text)
    except ValueError:
        spread = -1.0
    if not 0 <= spread < inf:
        raise UsageError(f"--edges {text!r} isn't known; give a number such as 0.5, or keep, or keep:NAME,NAME.")
    return Edges(spread, seed=seed)


def _with_training(
    command: Callable[..., None], only: Collection[str] | None = None, **fixed: Any
) -> Callable[..., None]:
    """Return the command with the options of `Training` in place of its argument `training`.

    :param only: the names of those that it takes; all when omitted. :param fixed: what others are that have no default.
    """
    taken = [field for field in fields(Training) if only is None or field.name in only]

    def run(**given: Any) -> None:
        common = {field.name: given.pop(field.name) for field in taken}
        command(**given, training=Training(**fixed, **common))

    hints, missing = get_type_hints(Training, include_extras=True), inspect.Parameter.empty
    more = {field.name: (hints[field.name], missing if field.default is MISSING else field.default) for field in taken}
    return taking(run, command, more, without=("training",))


@_with_training
def train(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|FILE", help="A folder that `split` wrote, or an ONNX file.", show_default=False),
    ],
    training: Training,
) -> None:
    """Train all parts of a split, or one network. The trained weights replace those in the files.

    Checkpoints are in DIR/training (or FILE.training) until training ends; metrics.jsonl stays there.
    """
    _need_runtime()
    options = training.options()
    if source.is_dir():
        plan = folder.read_plan(source)
        files, place = part_files(source, plan.k), source / "training"
        folder.read_parts(plan, files)
        digest = hashlib.sha256(plan.to_json().encode()).hexdigest()
    else:
        files, place, digest = [source], source.with_suffix(".training"), load(source).digest
    runs = _runs()
    tracked = {"resume": options.resume, "log_to": training.log_to, "options": options_of(context)}
    with _resumable(), runs.progress.RunProgress(place, tables.console(stderr=True), **tracked) as progress:

        def told(task: Task) -> Any:
            progress.note(task.objective.note)
            return progress.stage(
                runs.progress.PARTS if source.is_dir() else source.stem, range(training.epochs), task.metric.name
            )

        done = runs.task.train_files(files, options, place / "checkpoints", told, plan=digest)
    if training.as_json:
        found = [{**asdict(each), "file": str(each.file)} for each in done]
        tables.show_json({"trained": found, "metrics": str(place / "metrics.jsonl")})
        return
    for each in done:
        told_of = runs.progress.told(each.curve[each.epoch - 1], each.metric)
        best = f", after epoch {each.epoch}" if each.epoch < len(each.curve) else ""
        tables.show(
            f"{each.file}: {told_of}{best}; {each.curve[-1].seconds:.1f} s",
            f"  ONNX Runtime differs from the trained module by {each.deviation:.1e} of the output's standard "
            "deviation",
        )
    memory = max((each.gpu_memory for each in done if each.gpu_memory is not None), default=None)
    if memory is not None:
        tables.show(runs.fit_report.taken(memory, runs.progress.PARTS if source.is_dir() else "network"))


@_with_training
def fit(
    context: typer.Context,
    model: ModelFile,
    training: Training,
    config: Config = None,  # noqa: ARG001
    k: Annotated[str, typer.Option("-k", metavar="K|auto", help="Number of parts, or what `estimate` advises.")] = "2",
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="How parts and whole are trained: auto chooses rates by optimizer and K, and the whole has a schedule "
            "of its own; paper has one schedule for both, and merges momenta."
        ),
    ] = "auto",
    parts_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the parts. If omitted, K times the whole's, and with sgd the same as the whole's."
        ),
    ] = None,
    merge_at: Annotated[
        int | None,
        typer.Option(
            help="Epochs of the parts; the whole trains the rest. If omitted, the parts train as long as their "
            "ensemble improves on the test data, for at most all epochs, and the whole then for a fifth as many; in "
            "the recipe paper, each for half of them."
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            help="Rounds into which the parts' epochs are divided. After each, the parts merge, and the "
            "whole is divided again at random."
        ),
    ] = 1,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR|URL",
            help="Folder to write, also in a storage, as in s3://bucket/run. If omitted, MODEL's name with _fit, in "
            "this folder.",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        OrderKind | None,
        typer.Option(
            help="In which order units go to the parts. If omitted, contiguous, and random in several rounds.",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        InitKind | None,
        typer.Option(help="The parts' first weights. If omitted, scaled, and slices in the recipe paper."),
    ] = None,
    grow: Annotated[
        Literal["merge", "widen"],
        typer.Option(
            help="How the whole starts: K parts merge, or one part is trained and copies of it fill the whole."
        ),
    ] = "merge",
    blocks: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Blocks of each stack that the parts train with (see shallow). The others are put in before the parts "
            "merge, and add nothing at first. If omitted, the parts have all blocks.",
            show_default=False,
        ),
    ] = None,
    edges: EdgesText = "0",
    outputs: Outputs = None,
    metric_target: Annotated[
        float | None,
        typer.Option(
            help="End training at this metric on the test data (see --metric), or at this loss for mse.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS|Nmin",
            help="End training after these steps of parts and whole, or minutes, as in 10min, and after "
            "EPOCHS at most.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also train the whole alone, and report which reached its quality first; and controls: "
            "the whole for a "
            "shorter time, one part for a longer time, copies of one part.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Split a network, train its parts, merge, and train the whole on.

    DIR gets trained.onnx, the report (report.md, report.json, pictures), the partition as a page (partition.html),
    metrics.jsonl, the split (parts/), and, from the start on, the options (run.yaml).
    """
    _need_runtime()
    draw, settings = pages().fit_pictures, written(options_of(context))
    options, how, network = training.options(), edges_of(edges), loaded(model, outputs)
    place = place_of(out) if out is not None else named(model, "fit")
    kept = place if isinstance(place, Remote) else None
    runs = _runs()
    chosen = runs.recipe.Recipe(recipe, parts_lr, training.schedule)
    amount = (None, None) if budget is None else steps_or_minutes(budget)
    if amount is None:
        raise UsageError(
            f"--budget {budget!r} is neither steps nor minutes; give steps such as 5000, or minutes such as 10min."
        )
    goal = runs.goal.Goal(metric_target, *amount)
    parts = k if k == "auto" else _number(k)
    tracked = {"resume": options.resume, "log_to": training.log_to, "options": options_of(context)}
    with (
        _resumable(),
        runs.remote_run.working_folder(place, options.resume) as target,
        runs.progress.RunProgress(target, tables.console(stderr=True), **tracked) as progress,
    ):

        def told(stage: str, task: Task, epochs: range) -> Any:
            if stage == runs.fit.PARTS:  # the folder is there now
                write_bytes(target / RUN, settings)
                if kept is not None:
                    (kept / RUN).put(target / RUN)
                progress.note(task.objective.note)
            return progress.stage(stage, epochs, task.metric.name)

        ways = {"merge_at": merge_at, "rounds": rounds, "order": order, "init": init, "grow": grow, "blocks": blocks,
                "edges": how, "baseline": baseline, "goal": goal, "kept": kept}  # fmt: skip
        found = runs.fit.fit(network, options, target, told, k=parts, recipe=chosen, **ways, force=force)
        trained = place / runs.fit.TRAINED
        data = {**runs.fit_report.report(found, options, str(model), chosen, how), "trained": str(trained)}
        shown = page.page(content(found.partition, found.sizes))
        runs.fit_report.save(data, target, {**draw(data), PARTITION: shown.encode(), RUN: settings})
    if training.as_json:
        tables.show_json(data)
        return
    tables.show(*runs.fit_report.page(data)[2:], f"wrote {trained} and {place / runs.fit_report.PAGE}")


def _number(k: str) -> int:
    """Return a number of parts.

    :raises UsageError: when it is none.
    """
    if not k.isascii() or not k.isdigit():
        raise UsageError(f"{k!r} isn't a number of parts; give one such as 2, or auto.")
    return int(k)


@partial(
    _with_training,
    only=("data", "loss", "optimizer", "batch_size", "steps_per_epoch", "mean", "std", "device", "amp", "amp_dtype",
          "as_json"),
    epochs=1,
)  # fmt: skip
def estimate(
    model: ModelFile,
    training: Training,
    ks: Annotated[str, typer.Option("-k", metavar="K,..", help="Numbers of parts to try.")] = "2,3,4,8",
    outputs: Outputs = None,
) -> None:
    """Measure a few training steps, and advise which K pays.

    They are steps of the whole and of K parts. Nothing is trained or written.
    """
    try:
        numbers = [int(k) for k in ks.split(",")]
    except ValueError:
        raise UsageError(f"-k {ks!r} aren't numbers of parts; give them as in 2,4.") from None
    options, runs = training.options(), _runs()
    with tables.busy("measuring steps"):
        found = runs.estimate.estimate(loaded(model, outputs), options, numbers)
    if training.as_json:
        tables.show_json({**asdict(found), "advice": found.advice, "best": found.best and found.best.k})
        return
    tables.show(tables.estimates(found), found.advice)


@contextmanager
def _resumable() -> Iterator[None]:
    """Let the error of training that ended early say how to go on.

    :raises Resumable: with that.
    """
    try:
        yield
    except Resumable as error:
        raise type(error)(f"{str(error).removesuffix('.')}: give the same command with --resume.") from None


def _runs() -> Any:
    """Return `onnxpart.torch.runs`, which is imported when a command trains.

    :raises UsageError: when PyTorch isn't installed.
    """
    with needs("training", "train"):
        return import_module("onnxpart.torch.runs")


def _need_runtime() -> None:
    """Check that the trained file can be run before anything is trained.

    :raises UsageError: when ONNX Runtime isn't installed.
    """
    with needs("checking the trained file", "gpu"):
        import_module("onnxruntime")
