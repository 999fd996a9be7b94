"""One process per part: the processes share only the data, and tell only how far each part is."""

from __future__ import annotations

import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxpart.errors import Interrupted, OnnxpartError, Resumable, UsageError
from onnxpart.torch.data.shared import folder_name, shared
from onnxpart.torch.tensors import unsharded
from onnxpart.torch.training import loop
from onnxpart.torch.training.engine import device_of, put
from onnxpart.torch.training.events import Event, OnEvent
from onnxpart.torch.training.job import Job, Result, alone
from onnxpart.torch.training.series import Series

_PATIENCE = 0.2
"""Seconds between two looks at whether the run was interrupted."""


@dataclass(frozen=True)
class Trained:
    """What a process returns: a part's tensors by the module's keys, and its result."""

    tensors: dict[str, Tensor]
    result: Result


def train_part(
    job: Job,
    threads: int,
    on_event: OnEvent,
    stop: threading.Event | None = None,
    kind: type[Series] = Series,
) -> Trained:
    """Train the only part of a job, in a process of its own."""
    torch.set_num_threads(threads)
    (result,) = loop.run(job, kind, device_of(job.settings.device), on_event, stop)
    return Trained({key: unsharded(tensor) for key, tensor in job.modules[0].state_dict().items()}, result)


def run(job: Job, on_event: OnEvent) -> list[Result]:
    """Train each part of a job in a process of its own; the processes divide the CPU's threads.

    :raises UsageError: when data or loss can't be sent to another process.
    :raises OnnxpartError: when a part fails or its process ends; the other processes are then ended.
    """
    context = torch.multiprocessing.get_context("spawn")
    stop = context.Event()
    folder = Path(tempfile.gettempdir()) / folder_name() if len(job.numbers) > 1 else None
    workers: dict[Connection, tuple[int, SpawnProcess]] = {}
    with loop.interruptible(job.checkpoints) as interrupted:
        try:
            for i, number in enumerate(job.numbers):
                mine, theirs = context.Pipe()
                one = _placed(alone(job, i), i)
                content = pickle.dumps(one.modules), replace(one, modules=[])
                threads = max(1, torch.get_num_threads() // len(job.numbers))
                process = context.Process(target=_work, args=(theirs, *content, threads, stop, folder))
                with _masked():
                    start(process.start)
                theirs.close()
                workers[mine] = number, process
            return _collect(job, workers, on_event, stop, interrupted)
        finally:
            for _, process in workers.values():
                process.kill()  # it ignores anything milder
                process.join()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sharing(job: Job, folder: Path | None) -> Iterator[Job]:
    """The job with data that it reads once with the other processes of this machine, by a folder; alone without one."""
    if folder is None:
        yield job
        return
    with shared(folder, job.loader, job.test) as (loader, test):
        yield replace(job, loader=loader, test=test)


@contextmanager
def _masked() -> Iterator[None]:
    """Block the signals that stop a run; a process that is started meanwhile inherits that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, loop.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(send: Callable[[], Any]) -> Any:
    """Call the function that sends a job to another process.

    :raises UsageError: when something in it can't be sent.
    """
    try:
        return send()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"data, loss or metric can't be sent to another process ({error}); define them at the top of a module, "
            "or use the engine series."
        ) from None


def _placed(job: Job, i: int) -> Job:
    """Give a part a GPU of its own if there are several."""
    if job.settings.device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return job
    device = f"cuda:{i % torch.cuda.device_count()}"
    return replace(job, settings=replace(job.settings, device=device))


def _work(connection: Connection, modules: bytes, job: Job, threads: int, stop: Any, folder: Path | None) -> None:
    """What a process does. Ctrl-C and the signals to end reach it through its parent."""
    for number in loop.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, loop.SIGNALS)
    try:
        with sharing(replace(job, modules=pickle.loads(modules)), folder) as one:
            trained = train_part(one, threads, partial(_send, connection), stop)
        _send(connection, trained)
    except OnnxpartError as error:
        _send(connection, error)
    finally:
        connection.close()


def _send(connection: Connection, message: Event | Trained | OnnxpartError) -> None:
    connection.send_bytes(pickle.dumps(message))  # not by shared memory, which would end with the process


def _receive(connection: Connection) -> Event | Trained | OnnxpartError | None:
    """Return the next message; None if the other side is gone."""
    try:
        message: Event | Trained | OnnxpartError = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
    return message


def _collect(
    job: Job,
    workers: dict[Connection, tuple[int, SpawnProcess]],
    on_event: OnEvent,
    stop: Any,
    interrupted: threading.Event,
) -> list[Result]:
    """Pass on the news of all parts until each has its result."""
    results: dict[int, Trained] = {}
    halted: Interrupted | None = None
    waiting = set(workers)
    while waiting:
        if interrupted.is_set():
            stop.set()
        for connection in wait(list(waiting), _PATIENCE):
            assert isinstance(connection, Connection)
            number, process = workers[connection]
            message = _receive(connection)
            if isinstance(message, Trained):
                results[number] = message
            elif isinstance(message, Interrupted):
                halted = message
            elif isinstance(message, Exception):
                raise message
            elif message is not None:
                on_event(message)
                continue
            else:
                process.join()
                raise lost(job, f"part {number}: its process ended with code {process.exitcode}")
            waiting.discard(connection)
    if halted:
        raise halted
    return adopt(job, [results[number] for number in job.numbers])


def lost(job: Job, what: str) -> OnnxpartError:
    """Return the error that says what was lost, and what to do."""
    if job.checkpoints is None:
        return OnnxpartError(f"{what}; start again.")
    return Resumable(f"{what}; resume from {job.checkpoints.folder} to go on.")


def adopt(job: Job, trained: Iterable[Trained]) -> list[Result]:
    """Put weights that were trained elsewhere into the job's modules."""
    results = []
    for module, found in zip(job.modules, trained, strict=True):
        put(module, found.tensors)
        module.eval()
        results.append(found.result)
    return results
