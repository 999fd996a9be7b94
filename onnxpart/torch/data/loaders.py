"""Batches: the graph's inputs and a target, in an order that depends only on a seed and the epoch's number."""

from __future__ import annotations

import base64
import io
import math
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError, OnnxpartError, reason
from onnxpart.torch.data.batch import TARGET, Batch, Prepare

_WAITS = hasattr(signal, "sigwaitinfo")
"""Whether a process can tell who ends it."""


@dataclass(frozen=True)
class TensorLoader:
    """Samples in memory: `inputs` in the graph's order and `target`, each [N, ...]; the last batch may be smaller."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse data without samples, or of unequal lengths.

        :raises DataError: when they are.
        """
        lengths = {len(tensor) for tensor in (*self.inputs, self.target)}
        if len(lengths) > 1:
            counts = ", ".join(str(len(tensor)) for tensor in (*self.inputs, self.target))
            raise DataError(f"inputs and target have {counts} samples; give the same number of each.")
        if lengths == {0}:
            raise DataError("the data hold no samples; give at least one.")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self.target) / self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on.

        The order of all batches goes to the samples' device at once: a GPU would wait for that of each batch.
        """
        order = _order(len(self.target), self.batch_size, self.seed, number, self.shuffle, self.target.device)
        for chosen in order[start:]:
            yield tuple(tensor[chosen.to(tensor.device)] for tensor in self.inputs), self.target[chosen]

    def to(self, device: torch.device) -> TensorLoader:
        """Return a loader of the same samples on a device."""
        return replace(self, inputs=tuple(x.to(device) for x in self.inputs), target=self.target.to(device))

    def prepared(self, prepare: Prepare) -> TensorLoader:
        """Return a loader of the samples that `prepare` makes of these, at once."""
        inputs, target = prepare((self.inputs, self.target))
        return replace(self, inputs=inputs, target=target)


@dataclass(frozen=True)
class DatasetLoader:
    """Samples of a torch Dataset with a length, read by `workers` processes (0: this one), which stay for all epochs.

    The dataset's random numbers depend only on the seed, the epoch and the batch, not on the workers. `names`: the
    graph's inputs (see `to_batch`). `drop_last`: whether a last batch that is smaller is left out.
    """

    dataset: torch_data.Dataset[Any]
    names: tuple[str, ...]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    workers: int = 0
    collate: Callable[[list[Any]], Any] = torch_data.default_collate
    drop_last: bool = False
    steps: tuple[Prepare, ...] = ()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        count: int = len(self.dataset)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""
        count: int = len(self.dataset)  # type: ignore[arg-type]
        order = _order(count, self.batch_size, self.seed, number, self.shuffle)
        reader: Any = self._idle.pop() if self._idle else self._reader()
        reader.sampler[:] = [(_mixed(self.seed, number, i), order[i].tolist()) for i in range(start, len(self))]
        with _end_held_back():
            batches = iter(reader)
        while True:
            try:
                found = next(batches, None)
            except Exception as error:  # a worker that is gone; torch says in the cause what has ended it
                raise _unreadable(error.__cause__ if isinstance(error.__cause__, RuntimeError) else error) from None
            if found is None:
                self._idle.append(reader)
                return
            if isinstance(found, OnnxpartError):
                raise found
            yield _prepared(to_batch(found, self.names), self.steps)

    def prepared(self, prepare: Prepare) -> DatasetLoader:
        """Return a loader of the samples that `prepare` makes of these, batch by batch."""
        return replace(self, steps=(*self.steps, prepare))

    @cached_property
    def _idle(self) -> list[torch_data.DataLoader[Any]]:
        """Torch's loaders whose epoch was read to its end, with their workers."""
        return []

    def _reader(self) -> torch_data.DataLoader[Any]:
        """Return a loader of torch; its sampler is the list of the seeds and indices of an epoch's batches."""
        chosen: Any = []
        return torch_data.DataLoader(
            _Seeded(self.dataset, self.collate),
            sampler=chosen,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # otherwise it would draw a seed that nobody needs from torch's own
            persistent_workers=self.workers > 0,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process, which has workers of its own."""
        return {name: value for name, value in vars(self).items() if name != "_idle"}


@dataclass(frozen=True)
class ForeignLoader:
    """A DataLoader with its own order, or another iterable of batches; without a length, an epoch goes to its end.

    The generators are seeded for every batch, and left as they were.
    """

    loader: Iterable[Any]
    names: tuple[str, ...]
    seed: int = 0
    steps: tuple[Prepare, ...] = ()

    def __len__(self) -> int:
        """Return the number of batches in an epoch.

        :raises TypeError: when the loader has no length.
        """
        return len(self.loader)  # type: ignore[arg-type]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on; the batches before it are also read."""
        length = length_of(self.loader)
        batches = _begun(self.loader, _mixed(self.seed, number))
        for i in count():
            found = _next(batches, _mixed(self.seed, number, i))
            if length is not None and (found is None) != (i == length):
                raise _miscounted(f"{length} batches and yields {i if found is None else 'more'}")
            if found is None:
                return
            if i >= start:
                yield _prepared(to_batch(found, self.names), self.steps)

    def prepared(self, prepare: Prepare) -> ForeignLoader:
        """Return a loader of the samples that `prepare` makes of these, batch by batch."""
        return replace(self, steps=(*self.steps, prepare))


class Opened:
    """An iterable that a user's function makes: a new one in each process, and for each pass if it allows only one."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self.make = make
        self._made: Iterable[Any] | None = None

    @property
    def made(self) -> Iterable[Any]:
        """The iterable that the function made last."""
        if self._made is None:
            self._made = self.make()
        return self._made

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the data from their beginning."""
        if isinstance(self._made, Iterator):
            self._made = None
        return iter(self.made)

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process."""
        return {"make": self.make, "_made": None}


class StreamLoader:
    """Batches of data without a length, in their own order: every `length` of them are an epoch.

    An epoch goes on where the one before ended, and data that end begin again. The generators are seeded for every
    batch, and left as they were. To get a batch that doesn't come next, all batches before it are read.
    """

    def __init__(
        self, stream: Opened, names: tuple[str, ...], length: int, seed: int = 0, steps: tuple[Prepare, ...] = ()
    ) -> None:
        self.stream, self.names, self.length, self.seed, self.steps = stream, names, length, seed, steps
        self.passes: list[int] = []
        """For each time that the data ended, the number of batches that were read until then."""
        self._at = 0
        self._batches: Iterator[Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.length

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on.

        :raises DataError: when the data end, and yield nothing in the next pass.
        """
        for position in range(number * self.length + start, (number + 1) * self.length):
            if position < self._at:
                self.passes, self._at, self._batches = [], 0, None
            while self._at < position:
                self._read()
            yield _prepared(to_batch(self._read(), self.names), self.steps)

    def prepared(self, prepare: Prepare) -> StreamLoader:
        """Return a loader of the samples that `prepare` makes of these, batch by batch."""
        return StreamLoader(self.stream, self.names, self.length, self.seed, (*self.steps, prepare))

    def state(self) -> str | None:
        """Return the position of the data for `restore`; None if they can't tell it (they have no `state_dict`)."""
        stateful = _stateful(self.stream.made)
        if self._batches is None or stateful is None:
            return None
        content = io.BytesIO()
        torch.save([self._at, self.passes, stateful.state_dict()], content)
        return base64.b64encode(content.getvalue()).decode()

    def restore(self, state: str) -> bool:
        """Let the data go on from a position; return whether they can.

        :raises DataError: when they fail at it.
        """
        stateful = _stateful(self.stream.made)
        if stateful is None:
            return False
        try:
            self._at, self.passes, inner = torch.load(io.BytesIO(base64.b64decode(state)), weights_only=True)
        except pickle.UnpicklingError:  # it holds more than numbers, texts and tensors
            return False
        try:
            stateful.load_state_dict(inner)
        except (Exception, SystemExit) as error:  # a user's loader may raise anything
            raise _unreadable(error) from error
        self._batches = self._begun()
        return True

    def _read(self) -> Any:
        """Return the next batch; if a pass has ended, that of the next pass.

        Data that go on from a state at their end may first end again, and then begin once more where they ended.
        """
        for _ in range(3):
            batches = self._begun() if self._batches is None else self._batches
            found = _next(batches, _mixed(self.seed, len(self.passes), self._at))
            if found is not None:
                self._at, self._batches = self._at + 1, batches
                return found
            self._batches = None
            if self._at and self.passes[-1:] != [self._at]:
                self.passes.append(self._at)
        if not self._at:
            raise DataError("the data hold no samples; give at least one.")
        raise DataError(
            f"the data end after {self._at} batches and yield none from their beginning; let each pass yield some, or "
            "train for fewer epochs."
        )

    def _begun(self) -> Iterator[Any]:
        """Begin a pass, and tell the data its number."""
        made = self.stream.made
        tell = getattr(made, "set_epoch", None) or getattr(getattr(made, "dataset", None), "set_epoch", None)
        if tell is not None:  # streams of the library datasets then draw another order
            tell(len(self.passes))
        return _begun(self.stream, _mixed(self.seed, len(self.passes)))

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process, which reads the data from their beginning."""
        return {**vars(self), "passes": [], "_at": 0, "_batches": None}


def _stateful(stream: Any) -> Any:
    """Return what tells a stream's position: it, or the dataset that a DataLoader reads in this process; or None."""
    if not hasattr(stream, "state_dict") and isinstance(stream, torch_data.DataLoader) and not stream.num_workers:
        stream = stream.dataset
    return stream if hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict") else None


def length_of(found: object) -> int | None:
    """Return a length; None if there is none."""
    try:
        return len(found)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _begun(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """Begin a pass with seeded generators."""
    with _seeded(seed):
        try:
            return iter(batches)
        except (Exception, SystemExit) as error:  # a user's loader may raise anything
            raise _unreadable(error) from error


def _next(batches: Iterator[Any], seed: int) -> Any:
    """Return the next batch, read with seeded generators; None at the end."""
    with _seeded(seed):
        try:
            return next(batches, None)
        except (Exception, SystemExit) as error:  # a user's loader may raise anything
            raise _unreadable(error) from error


def _prepared(batch: Batch, steps: Sequence[Prepare]) -> Batch:
    for prepare in steps:
        batch = prepare(batch)
    return batch


class _Seeded(torch_data.Dataset[Any]):
    """Whole batches of a dataset, by seed and indices; errors are returned, so a worker hands them on unchanged."""

    def __init__(self, dataset: torch_data.Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, chosen: tuple[int, list[int]]) -> Any:
        seed, indices = chosen
        with _seeded(seed):
            try:
                many = getattr(self.dataset, "__getitems__", None)  # single samples are slow in datasets
                return self.collate(many(indices) if many else [self.dataset[i] for i in indices])
            except OnnxpartError as error:
                return error
            except (Exception, SystemExit) as error:  # a user's dataset may raise anything
                return _unreadable(error)


def _miscounted(what: str) -> DataError:
    return DataError(f"the loader says that it has {what}; make its length the number that it yields.")


def _unreadable(error: BaseException) -> DataError:
    return DataError(
        f"the data can't be read ({type(error).__name__}: {reason(error)}); check the code that yields them."
    )


def _ignore_interrupts(_: int) -> None:
    """Ignore Ctrl-C and the signals to end, which the process that trains handles; it alone ends this worker.

    Python ends workers by SIGTERM when it exits, and waits for them. Without `sigwaitinfo` torch's own handler stays.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if _WAITS:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by, args=(os.getppid(),), daemon=True).start()


@contextmanager
def _end_held_back() -> Iterator[None]:
    """Hold SIGTERM back in this thread.

    A worker that starts here has it blocked in all of its threads, also in those that libraries start before ours:
    torch does when it is told to use several.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if _WAITS else set()
    try:
        yield
    finally:
        if _WAITS:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_by(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch on the CPU, numpy and Python; afterwards they are as before."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _mixed(*numbers: int) -> int:
    """Return a seed of 63 bits made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _order(
    count: int, batch_size: int, seed: int, number: int, shuffle: bool, device: torch.device | None = None
) -> tuple[Tensor, ...]:
    """Return the indices of each batch of an epoch, on a device; they are the same on all devices."""
    generator = torch.Generator().manual_seed(_mixed(seed, number))
    order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
    return torch.split(order.to(device), batch_size)


def to_batch(found: Any, names: Sequence[str]) -> Batch:
    """Return a batch from what a dataset yields: (inputs, target), (input, .., target), or a dictionary.

    The keys of a dictionary, also one as `inputs`, are the graph's input names. The target's key is `target`, or the
    only key that is left. Other inputs go by position.

    :raises DataError: when inputs are missing or left over.
    """
    if isinstance(found, Mapping):
        rest = [name for name in found if name not in names]
        target = TARGET if TARGET in rest else rest[0] if len(rest) == 1 else None
        if target is None:
            listed = ", ".join(map(repr, found))
            raise DataError(f"the data have the entries {listed}, but no {TARGET!r}; give the target that name.")
        return _named(found, names), _tensor(found[target], target)
    if not isinstance(found, Sequence) or len(found) < 2:
        raise DataError(f"the data yield a {type(found).__name__}, not inputs and a target; yield (inputs, target).")
    *inputs, target = found
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return _named(inputs[0], names), _tensor(target, TARGET)
    if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)):
        inputs = list(inputs[0])
    if len(inputs) != len(names):
        listed = ", ".join(map(repr, names))
        raise DataError(f"the data yield {len(inputs)} inputs, the graph has {len(names)} ({listed}); yield as many.")
    return tuple(_tensor(x, name) for x, name in zip(inputs, names, strict=True)), _tensor(target, TARGET)


def _named(found: Mapping[str, Any], names: Sequence[str]) -> tuple[Tensor, ...]:
    missing = [name for name in names if name not in found]
    if missing:
        listed = ", ".join(map(repr, found))
        raise DataError(f"the data lack the graph's input {missing[0]!r} (they have {listed}); add it under that name.")
    return tuple(_tensor(found[name], name) for name in names)


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name!r} of the data is a {type(value).__name__}, not a tensor; yield tensors.") from None
