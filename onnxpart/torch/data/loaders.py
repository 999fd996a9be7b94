"""Batches: the graph's inputs and a target, in an order that depends on a seed and the epoch's number alone."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError
from onnxpart.torch.data.batch import TARGET, Batch, Prepare


@dataclass(frozen=True)
class TensorLoader:
    """Samples in memory: `inputs` in the graph's order and `target`, each [N, ...]; the last batch may be smaller."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse data of no samples or of unequal lengths.

        :raises DataError: when they are.
        """
        lengths = {len(tensor) for tensor in (*self.inputs, self.target)}
        if len(lengths) > 1:
            counts = ", ".join(str(len(tensor)) for tensor in (*self.inputs, self.target))
            raise DataError(f"inputs and target have {counts} samples; give as many of each.")
        if lengths == {0}:
            raise DataError("the data hold no samples; give at least one.")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self.target) / self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""
        for chosen in _order(len(self.target), self.batch_size, self.seed, number, self.shuffle)[start:]:
            yield tuple(tensor[chosen] for tensor in self.inputs), self.target[chosen]

    def prepared(self, prepare: Prepare) -> TensorLoader:
        """Return a loader of the samples that `prepare` makes of these, at once."""
        inputs, target = prepare((self.inputs, self.target))
        return replace(self, inputs=inputs, target=target)


@dataclass(frozen=True)
class DatasetLoader:
    """Samples of a torch Dataset with a length, read by `workers` processes (0: this one).

    What the dataset draws at random depends on the seed, the epoch and the batch alone, whatever the workers. `names`
    are the graph's inputs (see `to_batch`).
    """

    dataset: torch_data.Dataset[Any]
    names: tuple[str, ...]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    workers: int = 0
    collate: Callable[[list[Any]], Any] = torch_data.default_collate
    steps: tuple[Prepare, ...] = ()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(len(self.dataset) / self.batch_size)  # type: ignore[arg-type]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on."""
        count: int = len(self.dataset)  # type: ignore[arg-type]
        order = _order(count, self.batch_size, self.seed, number, self.shuffle)
        chosen = [(_mixed(self.seed, number, i), order[i].tolist()) for i in range(start, len(order))]
        loader = torch_data.DataLoader(
            _Seeded(self.dataset, self.collate),
            sampler=chosen,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # else it would draw a seed that nothing needs from torch's own
        )
        batches = iter(loader)
        while True:
            try:
                found = next(batches, None)
            except Exception as error:  # a worker that is gone
                raise _unreadable(error) from None
            if found is None:
                return
            if isinstance(found, DataError):
                raise found
            yield _prepared(to_batch(found, self.names), self.steps)

    def prepared(self, prepare: Prepare) -> DatasetLoader:
        """Return a loader of the samples that `prepare` makes of these, batch by batch."""
        return replace(self, steps=(*self.steps, prepare))


@dataclass(frozen=True)
class ForeignLoader:
    """A DataLoader whose order is its own; the generators are seeded for every batch, and left as they were."""

    loader: torch_data.DataLoader[Any]
    names: tuple[str, ...]
    seed: int = 0
    steps: tuple[Prepare, ...] = ()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on; those before it are read, too."""
        with _seeded(_mixed(self.seed, number)):
            batches = iter(self.loader)
        for i in range(len(self.loader)):
            with _seeded(_mixed(self.seed, number, i)):
                try:
                    found = next(batches, None)
                except (Exception, SystemExit) as error:  # a user's loader may raise anything
                    raise _unreadable(error) from error
            if found is None:
                raise _miscounted(f"{len(self.loader)} batches and yields {i}")
            if i >= start:
                yield _prepared(to_batch(found, self.names), self.steps)
        if next(batches, None) is not None:
            raise _miscounted(f"{len(self.loader)} batches and yields more")

    def prepared(self, prepare: Prepare) -> ForeignLoader:
        """Return a loader of the samples that `prepare` makes of these, batch by batch."""
        return replace(self, steps=(*self.steps, prepare))


def _prepared(batch: Batch, steps: Sequence[Prepare]) -> Batch:
    for prepare in steps:
        batch = prepare(batch)
    return batch


class _Seeded(torch_data.Dataset[Any]):
    """Whole batches of a dataset, by seed and indices; an error is returned, so that it comes whole from a worker."""

    def __init__(self, dataset: torch_data.Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, chosen: tuple[int, list[int]]) -> Any:
        seed, indices = chosen
        with _seeded(seed):
            try:
                return self.collate([self.dataset[i] for i in indices])
            except DataError as error:
                return error
            except (Exception, SystemExit) as error:  # a user's dataset may raise anything
                return _unreadable(error)


def _miscounted(what: str) -> DataError:
    return DataError(f"the loader says that it has {what}; let its length be the number of those.")


def _unreadable(error: BaseException) -> DataError:
    reason = str(error).strip().partition("\n")[0]
    return DataError(f"the data can't be read ({type(error).__name__}: {reason}); check what yields them.")


def _ignore_interrupts(_: int) -> None:
    """Let Ctrl-C and the signals to end be the business of the process that trains."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python; afterwards they are as before."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
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


def _order(count: int, batch_size: int, seed: int, number: int, shuffle: bool) -> tuple[Tensor, ...]:
    """Return the indices of each batch of an epoch."""
    generator = torch.Generator().manual_seed(_mixed(seed, number))
    order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
    return torch.split(order, batch_size)


def to_batch(found: Any, names: Sequence[str]) -> Batch:
    """Return a batch from what a dataset yields: (inputs, target), (input, .., target), or a dictionary.

    A dictionary, and `inputs` that are one, has the graph's input names; the target's is `target`, unless it is the
    only other. Others go by position.

    :raises DataError: when inputs are missing or left over.
    """
    if isinstance(found, Mapping):
        rest = [name for name in found if name not in names]
        target = TARGET if TARGET in rest else rest[0] if len(rest) == 1 else None
        if target is None:
            listed = ", ".join(map(repr, found))
            raise DataError(f"the data's entries are {listed}, none of them {TARGET!r}; name the target so.")
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
        raise DataError(f"the data lack the graph's input {missing[0]!r} (they have {listed}); name it so.")
    return tuple(_tensor(found[name], name) for name in names)


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{name!r} of the data is a {type(value).__name__}, no tensor; yield tensors.") from None
