"""The loop over epochs and steps: one for all engines. It keeps count, writes checkpoints, and goes on from them."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from onnxpart.errors import CheckpointError, DataError, Interrupted, OnnxpartError, UsageError
from onnxpart.torch.data.batch import Batch, Loader, Stream
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training import checkpoint, optim
from onnxpart.torch.training.checkpoint import Checkpoints, PartState
from onnxpart.torch.training.engine import Engine, synchronize, using
from onnxpart.torch.training.events import Epoch, EpochEnd, Event, Note, OnEvent, Steps
from onnxpart.torch.training.job import Job, Result
from onnxpart.torch.training.metrics import Meter

_PENDING = 16
"""Steps whose losses are read together, so that not every step waits for the GPU."""
_SHARE = 50
"""An epoch ends with a checkpoint if the time since the last one is at least this many times the time that it took."""
_HANGUP = getattr(signal, "SIGHUP", None)
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, _HANGUP) if number is not None)
"""What asks a run to stop."""
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
"""What torch says where memory runs out on a CPU, in CUDA itself, and in its libraries."""
_NO_EFFECT = ("device", "compile")
"""Settings that may change between a checkpoint and the run that goes on from it."""


@dataclass
class Position:
    """Where a run is: the epoch, its next batch, steps since epoch 0, and sums over the epoch.

    `losses`: for each part, the sum over the epoch's samples so far. `curves`: the finished epochs. `best`: the index
    of that whose weights are to be kept.
    """

    epoch: int
    step: int
    losses: list[float]
    curves: list[list[Epoch]]
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: int | None = None


def resumable(checkpoints: Checkpoints, numbers: Sequence[int]) -> int | None:
    """Return the newest step at which all these parts have checkpoints; None if there are no checkpoints.

    :raises CheckpointError: when a new run would mix them with its own, or when the parts have none of the same step.
    """
    found = [set(checkpoint.steps(checkpoints, number)) for number in numbers]
    if not any(found):
        return None
    if not checkpoints.resume:
        raise CheckpointError(
            f"{checkpoints.folder} holds checkpoints of an earlier run; resume it, or remove them to start again."
        )
    common = set.intersection(*found)
    if not common:
        raise CheckpointError(
            f"the parts' checkpoints in {checkpoints.folder} are of different steps; resume with the engine processes."
        )
    return max(common)


def run(
    job: Job,
    kind: Callable[[Job, torch.device], Engine],
    device: torch.device,
    on_event: OnEvent,
    stop: threading.Event | None = None,
) -> list[Result]:
    """Train the parts of a job, in place; return a result for each (see `train.train`).

    :param kind: makes the engine. :param stop: set to write a checkpoint and stop; when omitted, Ctrl-C and the signals
        to end set it.
    :raises OnnxpartError: when memory runs out, too.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with interruptible(job.checkpoints) if stop is None else nullcontext(stop) as asked, using(device):
        with memory("the set-up", lambda: job.numbers):
            engine = kind(job, device)
            test = None if job.test is None else near(job.test, device)
            job = replace(job, loader=near(job.loader, device), test=test)
        return _Run(job, engine, on_event, asked).train()


@contextmanager
def memory(what: str, busy: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Say where memory ran out, and what to do.

    :param busy: gives the numbers of the parts that are worked on.
    :raises OnnxpartError: with that.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OnnxpartError) as error:
        if not _out_of_memory(error):
            raise
        raise OnnxpartError(
            f"{_named(busy())}: out of memory in {what}; "
            "take smaller batches and accumulate, mixed precision, or the engine series."
        ) from None


def near(loader: Loader, device: torch.device) -> Loader:
    """Return a loader whose samples are on a GPU, if they are in memory and take a fourth of the free space at most."""
    if device.type != "cuda" or not isinstance(loader, TensorLoader):
        return loader
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(x.nbytes for x in (*loader.inputs, loader.target))
    return loader.to(device) if size <= free // 4 else loader


class _Run:
    def __init__(self, job: Job, engine: Engine, on_event: OnEvent, stop: threading.Event) -> None:
        self.job, self.engine, self.on_event, self.stop = job, engine, on_event, stop
        self.steps = job.settings.steps(len(job.loader))
        count, start = len(job.numbers), job.epochs.start
        self.at = Position(start, start * self.steps, [0.0] * count, [[] for _ in range(count)], seconds=job.seconds)
        self.pending: list[tuple[int, Tensor]] = []
        self.clock = self.saved = time.perf_counter()
        self.newest: int | None = None
        self.best: PartState | None = None
        self.cost = 0.0
        self.told_end = False

    def train(self) -> list[Result]:
        """Go on from a checkpoint or the given states, to the end."""
        job = self.job
        if job.checkpoints:
            checkpoint.prepare(job.checkpoints)
        if not self._resume():
            self._take_over()
        first, last = job.settings.first, job.settings.epochs
        rates = islice(optim.rates(job.settings, (last - first) * self.steps), self.at.step - first * self.steps, None)
        try:
            for epoch in range(self.at.epoch, job.epochs.stop):
                if self._ended():
                    break
                self._epoch(epoch, rates)
                self._close(epoch)
                self._keep()
                if job.checkpoints and any(self.engine.together(self._cheap(job.checkpoints))):
                    self._save(job.checkpoints)
            if job.checkpoints and self.newest != self.at.step:
                self._save(job.checkpoints)
            if job.ending and self.best and self.at.best == job.ending.kept(self.at.curves[0]):
                self.engine.load(0, self.best)
        finally:
            self.engine.finish()
        kind, device = job.settings.optimizer, self.engine.device
        taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        states = [self.engine.part(i) for i in range(len(job.numbers))]
        return [
            Result(curve, optim.to_state(kind, state.taken, state.slots, state.scaler), self.engine.kind, taken)
            for curve, state in zip(self.at.curves, states, strict=True)
        ]

    def _ended(self) -> bool:
        """Whether training ends before its epochs do: for all processes that train a network as soon as for one."""
        ending = self.job.ending
        return ending is not None and any(self.engine.together(bool(ending.why(self.at.curves[0]))))

    def _keep(self) -> None:
        """Copy the state of the network if it is the best so far."""
        ending, curve = self.job.ending, self.at.curves[0]
        if ending is not None and ending.kept(curve) == len(curve) - 1:
            self.best, self.at.best = self.engine.part(0).copied(), len(curve) - 1

    # -- one epoch -------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, rates: Iterator[float]) -> None:
        """Train from the position to the end of its epoch."""
        job, at = self.job, self.at
        batches = job.loader.epoch(epoch, at.batch)
        self.clock = time.perf_counter()
        while group := list(islice(batches, job.settings.accumulate)):
            self.pending.append((sum(len(target) for _, target in group), self._step(group, next(rates))))
            at.batch += len(group)
            at.step += 1
            if len(self.pending) == _PENDING:
                self._look()
            if job.checkpoints is None:
                continue
            stops, due = self.engine.together(self.stop.is_set(), self._due(job.checkpoints))
            if stops or due:
                self._look()
                self._save(job.checkpoints)
                self.clock = time.perf_counter()
                if stops:
                    raise Interrupted(f"stopped at step {at.step}; resume from {job.checkpoints.folder} to go on.")
        self._look()

    def _step(self, group: list[Batch], rate: float) -> Tensor:
        with memory(f"batch {self.at.batch} of epoch {self.at.epoch}", lambda: self.engine.busy):
            return self.engine.step(group, rate, self.at.step)

    def _look(self) -> None:
        """Read the losses of the steps since the last look, and stop if one is NaN or infinite."""
        at, first = self.at, self.at.step - len(self.pending)
        losses = torch.stack([loss for _, loss in self.pending]).tolist() if self.pending else []
        for step, row in enumerate(losses, first):
            for i, loss in enumerate(row):
                if not math.isfinite(loss):
                    self._check_data()
                    raise self._diverged(i, f"the loss is {loss} at step {step}")
        for (size, _), row in zip(self.pending, losses, strict=True):
            at.losses = [total + size * loss for total, loss in zip(at.losses, row, strict=True)]
            at.samples += size
        self.pending.clear()
        synchronize(self.engine.device)  # the last step goes on after its loss is known
        now = time.perf_counter()
        at.seconds += now - self.clock
        self.clock = now
        if losses:
            total = len(self.job.loader)
            self._tell(Steps(self.job.numbers, at.epoch, at.batch, total, at.samples, losses, at.seconds))

    def _close(self, epoch: int) -> None:
        """End an epoch: evaluate, and note it in the curves."""
        job, at = self.job, self.at
        with memory(f"the test of epoch {self.at.epoch}", lambda: self.engine.busy):
            judged = evaluated(self.engine, job.test) if job.test is not None else []
        for i, number in enumerate(job.numbers):
            result = Epoch(at.seconds, at.losses[i] / max(at.samples, 1))
            if judged:
                loss, metric = judged[i]
                result = Epoch(result.seconds, result.train_loss, loss, metric if job.metric else None)
            at.curves[i].append(result)
            self._tell(EpochEnd(number, epoch, result))
            if job.settings.scaled and self.engine.part(i).scaler.get("scale", 1.0) < 1.0:
                raise self._diverged(i, f"gradients overflow float16 at any scale in epoch {epoch}")
        at.epoch, at.batch, at.samples, at.losses = epoch + 1, 0, 0, [0.0] * len(at.losses)
        if isinstance(job.loader, Stream) and job.loader.passes and not self.told_end:
            self.told_end = True
            self._tell(
                Note(f"the data end after {job.loader.passes[0]} batches, and are then read from their beginning")
            )

    def _tell(self, event: Event) -> None:
        try:
            self.on_event(event)
        except OSError:  # the terminal is gone, which is why this run is to stop
            if not self.stop.is_set():
                raise

    def _check_data(self) -> None:
        """Read the batches of this epoch again, up to here.

        :raises DataError: when one isn't finite: the loss is then the data's fault.
        """
        for number, (inputs, target) in enumerate(islice(self.job.loader.epoch(self.at.epoch), self.at.batch)):
            if not all(bool(values.isfinite().all()) for values in (*inputs, target)):
                where = f"batch {number} of epoch {self.at.epoch}"
                raise DataError(f"{where} holds values that are NaN or infinite; leave those samples out.")

    def _diverged(self, i: int, what: str) -> OnnxpartError:
        checkpoints, number = self.job.checkpoints, self.job.numbers[i]
        last = ""
        if checkpoints and (kept := checkpoint.steps(checkpoints, number)):
            last = f"; the last good checkpoint is {checkpoint.path_of(checkpoints, number, kept[-1])}"
        return OnnxpartError(f"part {number}: {what}; lower the rate or clip the gradient{last}.")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _due(self, checkpoints: Checkpoints) -> bool:
        """Whether it is time for a checkpoint; of several processes the one that writes it knows."""
        by_step = checkpoints.every_steps is not None and self.at.step % checkpoints.every_steps == 0
        minutes = (time.perf_counter() - self.saved) / 60
        by_time = checkpoints.every_minutes is not None and minutes >= checkpoints.every_minutes
        return checkpoints.written and (by_step or by_time)

    def _cheap(self, checkpoints: Checkpoints) -> bool:
        """Whether one at the end of an epoch takes no more than a fiftieth of the time since the last one."""
        wanted = checkpoints.written and checkpoints.every_minutes is not None
        return wanted and time.perf_counter() - self.saved >= _SHARE * self.cost

    def _identity(self, i: int) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self.job.settings).items() if key not in _NO_EFFECT}
        checkpoints = self.job.checkpoints
        plan, given = (checkpoints.plan, checkpoints.given) if checkpoints else ("", {})
        epochs = [self.job.epochs.start, self.job.epochs.stop]
        return {"plan": plan, "given": given, "part": self.job.numbers[i], "settings": settings, "epochs": epochs,
                "batches": len(self.job.loader)}  # fmt: skip

    def _known_as(self, i: int, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint must say so that a run can resume: the same, or fewer epochs if the rates so far are the
        same.

        A schedule that isn't constant is stretched over the new epochs, if this run trains them itself.
        """
        mine = self._identity(i)
        settings, theirs = mine["settings"], about.get("settings", {})
        before, (start, stop) = theirs.get("epochs", 0), mine["epochs"]
        ended = (about.get("epochs") or [start, stop])[1]
        if before < settings["epochs"] and ended <= stop and (settings["schedule"] == "constant" or ended < stop):
            mine |= {"settings": settings | {"epochs": before}, "epochs": [start, ended]}
        return mine

    def _save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of each part, and remove older ones; or help another process to do so."""
        at, began = self.at, time.perf_counter()
        states = [replace(self.engine.part(i), best=self.best) for i in range(len(self.job.numbers))]
        if checkpoints.written:
            self._write(checkpoints, states)
        self.saved, self.newest = time.perf_counter(), at.step
        self.cost = self.saved - began

    def _write(self, checkpoints: Checkpoints, states: Sequence[PartState]) -> None:
        """Write these states as the checkpoints of the parts, and remove older ones."""
        at = self.at
        data = self.job.loader.state() if isinstance(self.job.loader, Stream) else None
        for i, state in enumerate(states):
            if not all(state.tensors[key].isfinite().all() for key, _ in self.job.modules[i].named_parameters()):
                raise self._diverged(i, f"weights are no longer numbers at step {at.step}")
        for i, (number, state) in enumerate(zip(self.job.numbers, states, strict=True)):
            mine = {**asdict(at), "losses": [at.losses[i]], "curves": [[asdict(epoch) for epoch in at.curves[i]]]}
            about = {**self._identity(i), "engine": self.engine.kind, "position": mine, "data": data}
            checkpoint.save(checkpoints, number, at.step, state, about)
        for number in self.job.numbers:
            checkpoint.prune(checkpoints, number)

    def _resume(self) -> bool:
        """Go on from the newest checkpoints, if there are any."""
        checkpoints, numbers = self.job.checkpoints, self.job.numbers
        step = resumable(checkpoints, numbers) if checkpoints else None
        if checkpoints is None or step is None:
            return False
        for i, number in enumerate(numbers):
            path = checkpoint.path_of(checkpoints, number, step)
            state, found = checkpoint.load(path, self._known_as(i, checkpoint.about(path)))
            have, want = _shapes(state), _shapes(self.engine.part(i))
            if have != want:
                raise CheckpointError(f"{path} is of another model; resume with the parts that it was written for.")
            self.engine.load(i, state)
            position = found["position"]
            self.at.losses[i] = position["losses"][0]
            self.at.curves[i] = [Epoch(**epoch) for epoch in position["curves"][0]]
            for key in ("epoch", "step", "batch", "samples", "seconds", "best"):
                setattr(self.at, key, position[key])
            self.best = state.best
        self.newest = step
        again = ""
        if isinstance(self.job.loader, Stream) and not (found["data"] and self.job.loader.restore(found["data"])):
            again = "; the data are read again up to there"
        self.on_event(Note(f"{_named(numbers)}: resumed at step {step} from {checkpoints.folder}{again}"))
        return True

    def _take_over(self) -> None:
        """Go on from the states that the job has, if it has any."""
        for i, state in enumerate(self.job.states or []):
            tensors = self.engine.part(i).tensors
            named = {key: tensors[key] for key, _ in self.job.modules[i].named_parameters()}
            slots = optim.from_state(state, self.job.settings.optimizer, named)
            self.engine.load(i, PartState(tensors, slots, state.step, state.scaler))


@torch.no_grad()
def evaluated(engine: Engine, loader: Loader) -> list[tuple[float, float]]:
    """Return the mean loss and metric of each part over the samples of a loader."""
    total: Tensor | None = None
    count, metric = 0, engine.job.metric
    meters = [metric.started(engine.device) for _ in engine.job.numbers] if isinstance(metric, Meter) else []
    for batch in loader.epoch(0):
        size = len(batch[1])
        judged = engine.evaluate(batch, meters)
        judged = (judged.cpu() if judged.device.type == "mps" else judged).double() * size  # mps has no float64
        total, count = judged if total is None else total + judged, count + size
    if total is None:
        raise UsageError("the test data hold no samples; give at least one, or none of them.")
    losses, metrics = (total / count).tolist()
    return list(zip(losses, [meter.value() for meter in meters] or metrics, strict=True))


@contextmanager
def interruptible(checkpoints: Checkpoints | None) -> Iterator[threading.Event]:
    """Turn Ctrl-C and the signals to end into a flag if there are checkpoints to write; a second one stops at once.

    A hangup that is ignored, as under nohup, stays so.
    """
    stop = threading.Event()
    if checkpoints is None or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(*_: object) -> None:
        stop.set()
        for number in before:
            ends = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ends)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: now for number, now in before.items() if (number, now) != (_HANGUP, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, note)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _out_of_memory(error: BaseException) -> bool:
    causes = [cause for cause in (error, error.__cause__) if cause is not None]
    kinds = (MemoryError, torch.OutOfMemoryError)
    return any(isinstance(cause, kinds) or any(text in str(cause) for text in _NO_MEMORY) for cause in causes)


def _named(numbers: Sequence[int]) -> str:
    return f"part {numbers[0]}" if len(numbers) == 1 else f"parts {', '.join(map(str, numbers))}"


def _shapes(state: PartState) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.tensors.items()}
