"""Parts as tasks on a Ray cluster: data and parts are shipped once, and a lost task goes on from its checkpoint."""

from __future__ import annotations

import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from onnxpart.errors import Interrupted, OnnxpartError, UsageError, needs
from onnxpart.torch.training import loop
from onnxpart.torch.training.events import Event, OnEvent
from onnxpart.torch.training.job import Job, Result, alone
from onnxpart.torch.training.processes import Trained, adopt, lost, start, train_part

_PATIENCE = 0.2
"""Seconds between two looks at what the tasks have to say."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, by its address (`auto`: the one this machine is in; None: one on this machine, for the run).

    `cpus_per_part` and `gpus_per_part` are kept for each part; parts wait until there are as many. A task whose worker
    dies is started again, up to `retries` times.
    """

    address: str | None = None
    cpus_per_part: float = 1.0
    gpus_per_part: float = 0.0
    retries: int = 3


def run(job: Job, cluster: Cluster, on_event: OnEvent) -> list[Result]:
    """Train each part of a job as a task on a cluster; checkpoints must be in a folder that all nodes reach.

    :raises UsageError: without Ray, when the cluster can't be reached, or has no node that is large enough.
    :raises OnnxpartError: when a part fails, or is lost too often.
    """
    if job.checkpoints:  # a task that is started again resumes; so must none that is new
        for number in job.numbers:
            loop.resumable(job.checkpoints, [number])
        folder = job.checkpoints.folder.resolve()
        job = replace(job, checkpoints=replace(job.checkpoints, folder=folder, resume=True))
    with connected(cluster) as ray:
        _check_nodes(ray, cluster)
        with loop.interruptible(job.checkpoints) as interrupted:
            return _run(ray, job, cluster, on_event, interrupted)


def _run(ray: Any, job: Job, cluster: Cluster, on_event: OnEvent, interrupted: threading.Event) -> list[Result]:
    """Start a task for each part, pass on their news, and stop them where asked; Ray starts again what is lost."""
    news = import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0})
    options = {
        "num_cpus": cluster.cpus_per_part,
        "num_gpus": cluster.gpus_per_part,
        "max_retries": cluster.retries,
    }
    task = ray.remote(**options)(_task)
    threads = max(1, int(cluster.cpus_per_part))
    shared = ray.put(start(lambda: pickle.dumps(replace(job, modules=[], states=None))))
    tasks = {}
    for i, number in enumerate(job.numbers):
        one = alone(job, i)
        part = ray.put(pickle.dumps((one.modules, one.numbers, one.states)))
        tasks[task.remote(sys.path, shared, part, threads, news)] = number
    results: dict[int, Trained] = {}
    waiting, halted = list(tasks), False
    try:
        while waiting:
            if interrupted.is_set() and not halted:
                halted = True
                for found in waiting:
                    ray.cancel(found, force=False)  # which is Ctrl-C for the task
            done, waiting = ray.wait(waiting, timeout=_PATIENCE)
            for event in news.get_nowait_batch(news.size()):
                on_event(event)
            for found in done:
                outcome = _outcome(ray, job, found, tasks[found])
                if outcome is not None:
                    results[tasks[found]] = outcome
    finally:
        for found in waiting:
            ray.cancel(found, force=True)
        news.shutdown()
    if len(results) < len(tasks):
        assert job.checkpoints is not None
        raise Interrupted(f"stopped; resume from {job.checkpoints.folder} to go on.")
    return adopt(job, [results[number] for number in job.numbers])


def _outcome(ray: Any, job: Job, task: Any, number: int) -> Trained | None:
    """Return what a task brought; None when it was interrupted."""
    try:
        result = ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayTaskError as error:
        raise OnnxpartError(lost(job, number, f"its task failed ({error.cause})")) from None
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OnnxpartError(lost(job, number, f"its worker was lost ({reason})")) from None
    if isinstance(result, Interrupted):
        return None
    if isinstance(result, OnnxpartError):
        raise result
    trained: Trained = result
    return trained


def _task(paths: list[str], shared: bytes, part: bytes, threads: int, news: Any) -> Trained | OnnxpartError:
    """What a worker does; errors that a user can act on are a result, not a reason to try again.

    It finds the user's own modules where the driver does.
    """
    sys.path.extend(path for path in paths if path not in sys.path)
    modules, numbers, states = pickle.loads(part)
    job: Job = replace(pickle.loads(shared), modules=modules, numbers=numbers, states=states)

    def tell(event: Event) -> None:
        news.put(event)

    try:
        return train_part(job, threads, tell)
    except OnnxpartError as error:
        return error


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to the cluster; a connection that was there before stays.

    :raises UsageError: without Ray, or when the cluster can't be reached.
    """
    with needs("the engine ray", "ray"):
        ray: Any = import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    try:
        if cluster.address is None:
            ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        else:
            _knock(cluster.address)
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        where = cluster.address or "on this machine"
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(f"the Ray cluster {where} can't be reached ({reason}); check its address.") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether somebody listens at an address; Ray itself would try for minutes.

    :raises OSError: when nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_nodes(ray: Any, cluster: Cluster) -> None:
    """Check that a part fits on some node; else its task would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": cluster.cpus_per_part, "GPU": cluster.gpus_per_part}
    if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        raise UsageError(
            f"no node has {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs for a part (the largest: {most['CPU']:g} "
            f"and {most['GPU']:g}); ask for less."
        )
