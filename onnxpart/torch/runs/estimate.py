"""Whether dividing pays, before anything is trained: a few measured steps of the whole, of all parts, and of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from statistics import median

from onnxpart.emission.split import Split, split
from onnxpart.errors import PartitionError, UsageError
from onnxpart.inspection.sizes import measure
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.torch.data.sources import Data
from onnxpart.torch.runs.recipe import SHARE
from onnxpart.torch.runs.task import RunOptions, Task, prepare
from onnxpart.torch.training.choose_engine import choose, step_seconds
from onnxpart.torch.training.engine import Engine, device_of
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.series import Series

KS = (2, 3, 4, 8)
WIDE, CHANNELS = 128, 32
"""Units, and channels of images, with which a part learns on its own, in the layers with most of its weights.

With half as many some did and some didn't, with fewer none (see measured.md).
"""
PAYS = 1.05
"""The speed-up from which on a K is advised; measured again, one that is less may be none."""
_ALIKE = 1.1
"""Speed-ups that differ by less are the same: measured again, their order may be another."""
_ROUNDS = 7
_UNSTEADY = 1.0
"""If the whole's steps spread more than this share of their median, nothing is advised."""
_SLOTS = {"sgd": 1, "adam": 2, "adamw": 2}


@dataclass(frozen=True)
class Estimate:
    """What K parts would take: milliseconds for a step of all of them in series, and for one of the slowest alone.

    `width`, and the `least` with which parts learn on their own: see `width`. `bytes`: of all parts' weights, gradients
    and optimizer states. `series`, `parallel`: the speed-up over the whole alone, where the parts have as many epochs,
    and the merged whole its share after them. `why_not`: why the network can't be divided into K; the figures are then
    0.
    """

    k: int
    width: int = 0
    parameters: float = 0.0
    bytes: int = 0
    together: float = 0.0
    one: float = 0.0
    series: float = 0.0
    parallel: float = 0.0
    why_not: str = ""
    least: int = WIDE

    @property
    def wide(self) -> bool:
        """Whether parts are wide enough to learn on their own."""
        return self.width >= self.least

    @property
    def told(self) -> str:
        """Its speed-up, in words."""
        return (
            f"training is {self.series:.2f} times as fast on one machine, and {self.parallel:.2f} times with a machine "
            "for each part"
        )


@dataclass(frozen=True)
class Estimates:
    """Estimates of several K, and the whole: milliseconds of its step, their spread as a share, and its bytes."""

    whole: float
    spread: float
    bytes: int
    rows: Sequence[Estimate]

    @property
    def best(self) -> Estimate | None:
        """The fastest K on one machine among those that are wide enough and pay; of several as fast it is the least."""
        found = [row for row in self.rows if row.wide and row.series >= PAYS]
        if self.spread >= _UNSTEADY:
            return None
        fastest = max((row.series for row in found), default=0.0)
        return min((row for row in found if row.series * _ALIKE > fastest), key=lambda row: row.k, default=None)

    @property
    def advice(self) -> str:
        """The advice, in sentences."""
        if self.spread >= _UNSTEADY:
            return f"The whole's steps differ by {self.spread:.0%}: this machine is too busy to tell; try again later."
        best = self.best
        if best is not None:
            return f"Use -k {best.k}: {best.told}."
        if all(row.why_not for row in self.rows):
            return f"Nothing is to be trained in parts: {self.rows[0].why_not}"
        wide = [row for row in self.rows if row.wide]
        if not wide:
            least = max(row.least for row in self.rows)
            return f"Dividing doesn't pay: parts with less than {least} units may learn badly; no K leaves that many."
        most = max(wide, key=lambda row: (row.series, row.parallel))
        return f"Dividing doesn't pay: with -k {most.k} {most.told}."


def estimate(model: Model, options: RunOptions, ks: Sequence[int] = KS, data: Data | None = None) -> Estimates:
    """Measure steps of the whole and of parts in turn, on the first batch; nothing is trained or written.

    :param options: data, loss and settings as for `fit`. :param data: the data, if they are open already.
    :raises OnnxpartError: when data or loss don't fit, or the model can't be imported.
    """
    device = device_of(options.settings.device)
    task = prepare([redraft(model).model()], options, data)
    batches = list(islice(task.data.train.epoch(0), options.settings.accumulate))
    engines: dict[tuple[str, int], Engine] = {("whole", 1): Series(_job(task, options), device)}
    splits, refused = dict[int, Split](), dict[int, str]()
    for k in ks:
        try:
            splits[k] = split(model, k)
        except PartitionError as error:
            refused[k] = str(error)
            continue
        modules = [task.build(part) for part in splits[k].parts]
        largest = max(range(k), key=lambda p: sum(x.numel() for x in modules[p].parameters()))
        engines["one", k] = Series(_job(replace(task, modules=[task.build(splits[k].parts[largest])]), options), device)
        together = _job(replace(task, modules=modules), options)
        engines["all", k] = choose(together, device)[0](together, device)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in engines}
    for turn in range(_ROUNDS + 1):
        for key, engine in engines.items():
            taken = step_seconds(engine, batches, device)
            if turn:  # the first one sets torch up
                seconds[key].append(1000 * taken)
    steps, wholes = {key: median(found) for key, found in seconds.items()}, seconds["whole", 1]
    whole = steps["whole", 1]
    rows = [
        Estimate(k, why_not=refused[k])
        if k in refused
        else _row(splits[k], options, whole, steps["all", k], steps["one", k])
        for k in ks
    ]
    held = sum(p.nbytes for p in task.modules[0].parameters())
    return Estimates(whole, (max(wholes) - min(wholes)) / whole, held * _copies(options), rows)


def chosen(model: Model, options: RunOptions, data: Data) -> int:
    """Return the K that is advised.

    :raises UsageError: when no K is advised; the message is the advice.
    """
    found = estimate(model, options, data=data)
    if found.best is None:
        raise UsageError(f"{found.advice} Train the whole with `onnxpart train`, or give -k.")
    return found.best.k


def _row(done: Split, options: RunOptions, whole: float, together: float, one: float) -> Estimate:
    """The figures of a split by its measured steps."""
    sizes, (units, least) = measure(done.analysis, done.plan), width(done)
    after = whole * (1 - SHARE) / SHARE
    return Estimate(
        done.plan.k,
        units,
        max(part.parameters for part in sizes.parts) / sizes.whole.parameters,
        sum(part.bytes for part in sizes.parts) * _copies(options),
        together,
        one,
        whole / (together + after),
        whole / (one + after),
        least=least,
    )


def width(done: Split) -> tuple[int, int]:
    """Return how many units the layers of a part have, at their narrower end, and how many they need at least.

    That is the median over its weights by their size, counting the divided axes. Weights of more than two axes have
    channels: a convolution's, or a locally connected layer's.
    """
    found = list[tuple[int, int, int]]()
    for name in done.analysis.state.weights:
        if name in done.plan.by_name:
            weight = done.plan.by_name[name]
            shapes = [weight.part_shape(part) for part in range(done.plan.k)]
            divided = [n for shape in shapes for n, of in zip(shape, weight.shape, strict=True) if n < of]
            least = CHANNELS if len(weight.shape) > 2 else WIDE
            found += [(min(divided), prod(shapes[0]), least)] if divided else []
    half = sum(size for _, size, _ in found) / 2
    for count, size, least in sorted(found):
        half -= size
        if half <= 0:
            return count, least
    return 0, WIDE


def _job(task: Task, options: RunOptions) -> Job:
    numbers = tuple(range(len(task.modules)))
    return Job(task.modules, numbers, task.data.train, task.loss, options.settings, range(1))


def _copies(options: RunOptions) -> int:
    """Return how many numbers training keeps for each weight: itself, its gradient, the optimizer's."""
    return 2 + _SLOTS[options.settings.optimizer]
