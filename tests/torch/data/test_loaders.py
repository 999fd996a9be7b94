"""Batches: every sample once, in an order that only seed and epoch decide, and the same from any batch on."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from multiprocessing import active_children
from threading import Thread
from time import sleep
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import data as torch_data

from onnxpart.errors import DataError
from onnxpart.torch.data.batch import Batch, Loader
from onnxpart.torch.data.loaders import DatasetLoader, ForeignLoader, Opened, StreamLoader, TensorLoader, to_batch

COUNT = 7


class Noisy(torch_data.Dataset[Any]):
    """Samples with noise of their own, drawn when they are read."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.rand(2), i


class Stream(torch_data.IterableDataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Any:
        return (Noisy()[i] for i in range(COUNT))


def in_memory(seed: int, batch_size: int, shuffle: bool) -> Loader:
    x = torch.arange(COUNT)
    return TensorLoader((x[:, None] * 1.0,), x, batch_size, seed, shuffle)


def on_disk(seed: int, batch_size: int, shuffle: bool) -> Loader:
    return DatasetLoader(Noisy(), ("x",), batch_size, seed, shuffle)


def streamed(seed: int, batch_size: int, shuffle: bool) -> Loader:  # noqa: ARG001
    return ForeignLoader(torch_data.DataLoader(Stream(), batch_size=batch_size), ("x",), seed)


def foreign(seed: int, batch_size: int, shuffle: bool) -> Loader:
    return ForeignLoader(torch_data.DataLoader(Noisy(), batch_size=batch_size, shuffle=shuffle), ("x",), seed)


LOADERS = [in_memory, on_disk, streamed, foreign]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip((*one[0], one[1]), (*other[0], other[1]), strict=True)
    )


@pytest.mark.parametrize("make", LOADERS)
@given(seed=st.integers(0, 9), number=st.integers(0, 9), size=st.integers(1, 9), start=st.integers(0, 9))
def test_an_epoch_depends_on_seed_and_number_alone(make: Any, seed: int, number: int, size: int, start: int) -> None:
    loader = make(seed, size, True)
    torch.manual_seed(start)
    state = torch.get_rng_state()
    batches = list(loader.epoch(number))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(batches) == len(loader)
    assert sorted(torch.cat([target for _, target in batches]).tolist()) == list(range(COUNT))
    assert equal(list(make(seed, size, True).epoch(number, start)), batches[start:])


@pytest.mark.parametrize("make", [in_memory, on_disk, foreign])
def test_epochs_and_seeds_are_ordered_differently_unless_nothing_is_shuffled(make: Any) -> None:
    def order(loader: Loader, number: int) -> tuple[int, ...]:
        return tuple(torch.cat([target for _, target in loader.epoch(number)]).tolist())

    assert len({order(make(seed, 2, True), number) for seed in (0, 1) for number in (0, 1)}) == 4
    assert order(make(0, 2, False), 1) == tuple(range(COUNT))


def test_workers_change_nothing() -> None:
    alone, apart = (list(DatasetLoader(Noisy(), ("x",), 3, workers=n).epoch(1)) for n in (0, 2))
    assert equal(alone, apart)


class Read(Noisy):
    """By which process a sample was read."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor(i), os.getpid()


def test_workers_stay_for_all_epochs() -> None:
    loader = DatasetLoader(Read(), ("x",), 3, workers=1)

    def readers(batches: Iterable[Batch]) -> set[int]:
        return set(torch.cat([target for _, target in batches]).tolist())

    first = readers(loader.epoch(0))
    assert first != {os.getpid()}
    assert readers(loader.epoch(1)) == first
    pairs = list(zip(loader.epoch(2), loader.epoch(2), strict=True))
    assert all(torch.equal(one[0][0], other[0][0]) for one, other in pairs)
    assert len(readers(batch for pair in pairs for batch in pair)) == 2
    assert readers(pickle.loads(pickle.dumps(loader)).epoch(0)) != first


class Interrupted(Noisy):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        os.kill(os.getpid(), signal.SIGTERM if i % 2 else signal.SIGINT)
        return super().__getitem__(i)


def test_an_interruption_does_not_reach_the_workers() -> None:
    assert len(list(DatasetLoader(Interrupted(), ("x",), 3, workers=1).epoch(0))) == 3


def test_an_interruption_does_not_reach_threads_of_libraries() -> None:
    """They start before ours; torch starts some when it is told to use several, and is then forked."""
    started = list[bool]()
    os.register_at_fork(after_in_child=lambda: started and Thread(target=sleep, args=(60,), daemon=True).start())
    started.append(True)
    try:
        assert len(list(DatasetLoader(Interrupted(), ("x",), 3, workers=1).epoch(0))) == 3
    finally:
        started.clear()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Killed(Noisy):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_what_ended_a_worker_is_said() -> None:
    with pytest.raises(DataError, match="is killed by signal: Killed"):
        next(DatasetLoader(Killed(), ("x",), 3, workers=1).epoch(0))


def test_workers_end_when_their_process_says_so() -> None:
    """As Python does when it exits; a worker that ignored it would be waited for without end."""
    others = active_children()
    batches = DatasetLoader(Noisy(), ("x",), 3, workers=1).epoch(0)
    next(batches)
    (worker,) = (process for process in active_children() if process not in others)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("make", [on_disk, foreign])
def test_reading_leaves_the_generators_of_gpus_alone(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    assert len(list(make(0, 3, True).epoch(0))) == 3
    assert seeded == []


class Failing(Noisy):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        raise KeyError(f"sample {i}\nof many")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_fails_is_one_sentence(workers: int) -> None:
    sentence = "the data can't be read (KeyError: 'sample 0\\nof many'); check the code that yields them."
    dataset = DatasetLoader(Failing(), ("x",), 3, shuffle=False, workers=workers)
    foreign = ForeignLoader(torch_data.DataLoader(Failing(), batch_size=3), ("x",))
    for loader in (dataset, foreign):
        with pytest.raises(DataError) as error:
            list(loader.epoch(0))
        assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (({"b": 2, "a": 1}, 3), "ab"),
        ({"b": 2, "a": 1, "target": 3}, "ab"),
        ({"b": 2, "a": 1, "label": 3}, "ab"),
        (((1, 2), 3), "ab"),
        ((1, 2, 3), "ab"),
        ([[1, 2], 3], "ab"),
        ((1, 3), "a"),
    ],
)
def test_inputs_go_by_name_or_by_position(found: Any, names: str) -> None:
    inputs, target = to_batch(found, tuple(names))
    assert [int(x) for x in inputs] == [1, 2][: len(names)]
    assert int(target) == 3


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"a": 1, "label": 2, "weight": 3}, "the data have the entries 'a', 'label', 'weight', but no 'target'"),
        (
            {"x": 1, "target": 2},
            "the data lack the graph's input 'a' (they have 'x', 'target'); add it under that name.",
        ),
        (({"x": 1}, 2), "the data lack the graph's input 'a' (they have 'x'); add it under that name."),
        ((1, 2, 3), "the data yield 2 inputs, the graph has 1 ('a'); yield as many."),
        (torch.zeros(3), "the data yield a Tensor, not inputs and a target; yield (inputs, target)."),
        (("text", 1), "'a' of the data is a str, not a tensor; yield tensors."),
    ],
)
def test_what_does_not_fit_is_named(found: Any, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        to_batch(found, ("a",))
    assert str(error.value).startswith(sentence)


def test_data_in_memory_have_samples_and_as_many_of_each() -> None:
    with pytest.raises(DataError, match="the data hold no samples"):
        TensorLoader((torch.zeros(0, 2),), torch.zeros(0), 1)
    with pytest.raises(DataError, match="inputs and target have 3, 2 samples"):
        TensorLoader((torch.zeros(3, 2),), torch.zeros(2), 1)


class Counted(torch_data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Twelve samples, of whatever length they are said to be."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((torch.zeros(4), torch.zeros(1)) for _ in range(12))


class Lying(torch_data.DataLoader[tuple[torch.Tensor, torch.Tensor]]):
    """A loader of three batches."""

    said = 3

    def __len__(self) -> int:
        return self.said


@pytest.mark.parametrize(("said", "yields"), [(3, None), (2, "yields more"), (5, "yields 3")])
def test_a_loader_that_lies_about_its_length_is_told(said: int, yields: str | None) -> None:
    loader = Lying(Counted(), batch_size=4)
    loader.said = said
    batches = ForeignLoader(loader, ("x",)).epoch(0)
    if yields is None:
        assert len(list(batches)) == 3
        return
    with pytest.raises(DataError, match=f"says that it has {said} batches and {yields}; make its length the number"):
        list(batches)


class Dying(torch_data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Twelve samples, at the fifth of which something happens."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if i == 5:
            self.what()
        return torch.zeros(4), torch.zeros(1)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_end_the_process_are_blamed(workers: int) -> None:
    loader = DatasetLoader(Dying(partial(sys.exit, 3)), ("x",), 4, workers=workers)
    with pytest.raises(DataError, match=r"the data can't be read \(SystemExit: 3\)"):
        list(loader.epoch(0))


# -- data without a length --------------------------------------------------------------------------------------------


def endless() -> Iterator[Batch]:
    """Batches with noise of their own, and their numbers."""
    return (((torch.rand(2, 1),), torch.full((2,), i)) for i in count())


class Short:
    """Five batches in each pass, in another order in each epoch that it is told."""

    number = 0

    def set_epoch(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Batch]:
        return (((torch.rand(2, 1),), torch.full((2,), (i + self.number) % 5)) for i in range(5))


def generated() -> Iterator[Batch]:
    """Five batches, once."""
    return iter(Short())


class Stateful(Short, torch_data.IterableDataset[Any]):
    """The same, which can go on where it was."""

    at = 0
    begins = 0
    read = 0

    def __iter__(self) -> Iterator[Batch]:
        begins, self.begins = self.begins, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= begins:
                self.at = i + 1
                Stateful.read += 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"at": torch.tensor(self.at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begins = int(state["at"])


def loaded() -> Iterable[Any]:
    return torch_data.DataLoader(Stateful(), batch_size=None)


def stream_of(make: Callable[[], Iterable[Any]], steps: int = 3) -> StreamLoader:
    return StreamLoader(Opened(make), ("x",), steps)


def numbers_of(batches: Iterable[Batch]) -> list[int]:
    return [int(target[0]) for _, target in batches]


@pytest.mark.parametrize("make", [endless, Short, generated, Stateful])
@settings(max_examples=25)
@given(
    number=st.integers(0, 4), start=st.integers(0, 3), others=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)))
)
def test_epochs_of_a_stream_are_the_same_whatever_was_read_before(
    make: Callable[[], Iterable[Any]], number: int, start: int, others: list[tuple[int, int]]
) -> None:
    loader, fresh = stream_of(make), stream_of(make)
    for other, batches in others:
        for _ in zip(range(batches), loader.epoch(other), strict=False):
            pass
    expected = [batch for n in range(number + 1) for batch in fresh.epoch(n)][3 * number + start :]
    assert equal(list(loader.epoch(number, start)), expected)


def test_a_stream_goes_on_from_epoch_to_epoch_and_begins_anew_at_its_end() -> None:
    assert numbers_of(batch for number in range(3) for batch in stream_of(endless).epoch(number)) == list(range(9))
    short, generator = stream_of(Short), stream_of(generated)
    assert numbers_of(batch for number in range(4) for batch in short.epoch(number)) == [*range(5), 1, 2, 3, 4, 0, 2, 3]
    assert short.passes == [5, 10]
    assert numbers_of(batch for number in range(4) for batch in generator.epoch(number))[5:] == [*range(5), 0, 1]
    read = iter(generated())
    with pytest.raises(DataError, match="the data end after 5 batches and yield none from their beginning; let each"):
        list(stream_of(lambda: read, 6).epoch(0))
    with pytest.raises(DataError, match="the data hold no samples; give at least one"):
        list(stream_of(lambda: ()).epoch(0))


def test_a_stream_in_another_process_is_made_there() -> None:
    loader = stream_of(generated)
    list(loader.epoch(0))
    assert equal(list(pickle.loads(pickle.dumps(loader)).epoch(1)), list(loader.epoch(1)))


@pytest.mark.parametrize("make", [Stateful, loaded])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_stream_that_has_a_state_is_not_read_again(make: Callable[[], Iterable[Any]], steps: int) -> None:
    loader, resumed = stream_of(make, 10), stream_of(make, 10)
    batches = loader.epoch(0)
    for _ in range(steps):
        next(batches)
    state = loader.state()
    Stateful.read = 0
    assert state is not None
    assert resumed.restore(state)
    assert numbers_of(resumed.epoch(0, steps)) == [*range(steps, 5), 1, 2, 3, 4, 0]
    assert Stateful.read == 10 - steps
    assert numbers_of(batches) == [*range(steps, 5), 1, 2, 3, 4, 0]
    assert stream_of(Short).state() is None
    assert not stream_of(Short).restore(state)


class Late(Stateful):
    """Data whose state at the end of a pass ends two passes, as a generator's does in torchdata's loader."""

    ended = 0

    def __iter__(self) -> Iterator[Batch]:
        self.ended -= 1
        return iter(()) if self.ended >= 0 else super().__iter__()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert int(state["at"]) == 5
        self.ended = 2


def test_a_state_at_the_end_of_the_data_is_gone_on_from() -> None:
    loader, resumed = stream_of(Late, 5), stream_of(Late, 5)
    assert numbers_of(loader.epoch(0)) == [*range(5)]
    state = loader.state()
    assert state is not None
    assert resumed.restore(state)
    assert numbers_of(resumed.epoch(1)) == numbers_of(loader.epoch(1)) == [1, 2, 3, 4, 0]
    assert resumed.passes == loader.passes == [5]


class Changed(Stateful):
    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: ARG002
        raise KeyError("shard 3")


def test_data_that_fail_at_a_state_are_one_sentence() -> None:
    loader = stream_of(Stateful)
    next(loader.epoch(0))
    state = loader.state()
    assert state is not None
    with pytest.raises(
        DataError, match=r"the data can't be read \(KeyError: 'shard 3'\); check the code that yields them"
    ):
        stream_of(Changed).restore(state)


def test_data_without_a_length_are_tested_with_to_their_end() -> None:
    loader = ForeignLoader(Opened(generated), ("x",))
    assert numbers_of(loader.epoch(0)) == numbers_of(loader.epoch(0)) == list(range(5))
    assert numbers_of(loader.epoch(0, 3)) == [3, 4]
