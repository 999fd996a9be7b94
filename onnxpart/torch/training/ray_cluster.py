"""Parts as tasks on a Ray cluster: data and parts are sent once, and a lost task goes on from its checkpoint.

If a part has several workers, its task is a run of Ray Train, which restarts all of them when one is lost.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onnxpart.errors import Interrupted, OnnxpartError, UsageError, needs, reason
from onnxpart.storage.remote import Place, Remote, unlink
from onnxpart.torch.data.shared import folder_name
from onnxpart.torch.training import loop
from onnxpart.torch.training.data_parallel import DataParallel
from onnxpart.torch.training.events import Note, OnEvent, ignore
from onnxpart.torch.training.fully_sharded import FullySharded
from onnxpart.torch.training.job import Job, Result, alone
from onnxpart.torch.training.processes import Trained, adopt, lost, sharing, start, train_part

_PATIENCE = 0.2
"""Seconds between two looks for messages of the tasks."""
_INTERVAL = 2.0
"""Seconds between two looks at the cluster itself."""
_SILENCE = 30.0
"""Seconds to wait for a restart of the cluster's head; after 60, Ray itself would end this process."""
_STOP = threading.Event()
"""Set when a worker's process is to stop."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, by its address (`auto`: the one this machine is in; None: one on this machine, for the run).

    `workers_per_part`: each takes a share of every batch; the whole then has the workers of all parts. `cpus_per_part`
    and `gpus_per_part` are reserved for each worker; parts wait until they are free. A task whose worker dies is
    restarted up to `retries` times. `sharded`: whether a network's workers keep a shard of it each (see
    `FullySharded`).
    """

    address: str | None = None
    cpus_per_part: float = 1.0
    gpus_per_part: float = 0.0
    workers_per_part: int | None = None
    retries: int = 3
    sharded: bool = False

    def for_whole(self, k: int) -> Cluster:
        """The cluster as the whole of `k` parts uses it."""
        return replace(self, workers_per_part=self.workers_per_part and self.workers_per_part * k)


def run(job: Job, cluster: Cluster, on_event: OnEvent) -> list[Result]:
    """Train each part of a job as a task on a cluster; checkpoints must be in a folder that all nodes reach.

    :raises UsageError: without Ray, when the cluster can't be reached, or no node is large enough.
    :raises OnnxpartError: when a part fails or is lost too often, or the cluster is lost.
    """
    if job.checkpoints:  # a restarted task resumes, and a new one must not
        for number in job.numbers:
            loop.resumable(job.checkpoints, [number])
        folder = job.checkpoints.folder
        folder = folder.resolve() if isinstance(folder, Path) else folder
        job = replace(job, checkpoints=replace(job.checkpoints, folder=folder, resume=True))
    with connected(cluster) as ray, loop.interruptible(job.checkpoints) as interrupted:
        try:
            watch = Watch(ray, job, cluster, on_event)
            watch.check()
            return _run(watch, interrupted)
        except ray.exceptions.RayError as error:
            raise lost(job, f"the Ray cluster failed ({reason(error)})") from None


@dataclass
class Watch:
    """A run on a cluster; it checks head and nodes from time to time."""

    ray: Any
    job: Job
    cluster: Cluster
    on_event: OnEvent
    looked: float = 0.0
    short: str = ""

    @property
    def head(self) -> str:
        """The address of the cluster's head."""
        own = self.cluster.address or ""
        return own if "://" in own else str(self.ray.get_runtime_context().gcs_address)

    def check(self) -> None:
        """Wait until the head answers, and check that the raylet of this process does.

        :raises OnnxpartError: when the head doesn't answer for a while, or the raylet is gone: Ray would end this
            process.
        """
        until = time.monotonic() + _SILENCE
        while (error := _silence(self.head)) is not None:
            if time.monotonic() > until:
                reason = f"its head at {self.head} doesn't answer: {error.strerror or error}"
                raise lost(self.job, f"the Ray cluster failed ({reason})")
            time.sleep(_PATIENCE)
        here = self.ray.get_runtime_context().get_node_id()
        for node in () if "://" in self.head else self.ray.nodes():
            address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            if node["NodeID"] == here and _silence(address) is not None:
                raise lost(self.job, f"the Ray cluster failed (the raylet of this process, at {address}, is gone)")

    def look(self) -> None:
        """Check the cluster if that is due, and tell once if the remaining nodes don't suffice."""
        if time.monotonic() < self.looked + _INTERVAL:
            return
        self.check()
        before, self.short = self.short, _shortage(self.ray, self.cluster)
        if self.short and not before:
            self.on_event(Note(f"{self.short}; training waits for nodes"))
        self.looked = time.monotonic()

    def clear(self, tasks: list[Any], queues: list[Any]) -> None:
        """End what is left of the run, if there is a cluster."""
        if _silence(self.head) is not None:
            return
        with suppress(self.ray.exceptions.RayError):
            for task in tasks:
                self.ray.cancel(task, force=True)
            for queue in queues:
                queue.shutdown()


def _run(watch: Watch, interrupted: threading.Event) -> list[Result]:
    """Start a task for each part, pass on their news, and stop them on request; Ray restarts lost tasks."""
    ray, job, cluster = watch.ray, watch.job, watch.cluster
    queue, strategies = import_module("ray.util.queue").Queue, import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    news, halt = (queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))
    workers = cluster.workers_per_part or 1
    kept = (cluster.cpus_per_part, cluster.gpus_per_part) if workers == 1 else (0, 0)
    again = {"max_retries": cluster.retries, "retry_exceptions": [ray.exceptions.RayError]}
    task = ray.remote(num_cpus=kept[0], num_gpus=kept[1], **again)(_task if workers == 1 else _group)
    folder = None if len(job.numbers) * workers == 1 else folder_name()  # the same on each machine
    shared = ray.put(start(lambda: pickle.dumps((replace(job, modules=[], states=None), folder))))
    tasks = {}
    for i, number in enumerate(job.numbers):
        one = alone(job, i)
        part = ray.put(pickle.dumps((one.modules, one.numbers, one.states)))
        tasks[task.remote(sys.path, shared, part, cluster, news, halt)] = number
    results: dict[int, Trained] = {}
    waiting, halted = list(tasks), False
    try:
        while waiting:
            watch.look()
            if interrupted.is_set() and not halted:
                halted = True
                halt.put(None)
            done, waiting = ray.wait(waiting, timeout=_PATIENCE)
            for event in news.get_nowait_batch(news.size()):
                if isinstance(event, OnnxpartError):
                    raise event
                watch.on_event(event)
            for found in done:
                outcome = _outcome(ray, job, found, tasks[found])
                if outcome is not None:
                    results[tasks[found]] = outcome
    finally:
        watch.clear(waiting, [news, halt])
        if folder is not None:  # workers on this machine that were killed leave it
            shutil.rmtree(Path(tempfile.gettempdir()) / folder, ignore_errors=True)
    if len(results) < len(tasks):
        assert job.checkpoints is not None
        raise Interrupted(f"stopped; resume from {job.checkpoints.folder} to go on.")
    return adopt(job, [results[number] for number in job.numbers])


def _outcome(ray: Any, job: Job, task: Any, number: int) -> Trained | None:
    """Return a task's result; None if it was interrupted."""
    try:
        result = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise lost(job, f"part {number}: its task failed ({reason(error.cause)})") from None
    except ray.exceptions.RayError as error:
        raise lost(job, f"part {number}: its worker was lost ({reason(error)})") from None
    if isinstance(result, Interrupted):
        return None
    if isinstance(result, OnnxpartError):
        raise result
    trained: Trained = result
    return trained


def _task(
    paths: list[str], shared: bytes, part: bytes, cluster: Cluster, news: Any, halt: Any
) -> Trained | OnnxpartError:
    """Work of a part's only worker; an error that a user can act on is a result, not a reason to try again.

    When its machine will go, it writes a checkpoint and ends, and Ray starts another worker.
    """
    job, folder = _received(paths, shared, part)
    before = signal.getsignal(signal.SIGTERM)
    _listen()
    try:
        with _stopping(halt) as stop, sharing(job, folder) as one:
            return train_part(one, _threads(cluster), news.put, stop)
    except OnnxpartError as error:
        if isinstance(error, Interrupted) and halt.empty():
            os.kill(os.getpid(), signal.SIGKILL)
        return error
    finally:
        signal.signal(signal.SIGTERM, before)


def _group(
    paths: list[str], shared: bytes, part: bytes, cluster: Cluster, news: Any, halt: Any
) -> Trained | OnnxpartError:
    """Let several workers train a part: a run of Ray Train; its files are beside the checkpoints until it ends."""
    job, _ = _received(paths, shared, part)
    train, trainer = import_module("ray.train"), import_module("ray.train.torch").TorchTrainer
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # data may have relative paths
    folder = Path(tempfile.mkdtemp()) if job.checkpoints is None else job.checkpoints.folder / "ray"
    storage = {"storage_path": str(folder)}
    if isinstance(folder, Remote):
        arrow = import_module("pyarrow.fs")
        found, path = folder.reached()
        storage = {"storage_path": path, "storage_filesystem": arrow.PyFileSystem(arrow.FSSpecHandler(found))}
    needs = {"CPU": cluster.cpus_per_part, "GPU": cluster.gpus_per_part}
    scaling = train.ScalingConfig(
        num_workers=cluster.workers_per_part, use_gpu=cluster.gpus_per_part > 0, resources_per_worker=needs
    )
    failures = train.FailureConfig(max_failures=cluster.retries)
    run = train.RunConfig(name=f"part{job.numbers[0]}", failure_config=failures, **storage)
    content = {"content": (paths, shared, part, cluster, news, halt)}
    try:
        done = trainer(_member, train_loop_config=content, scaling_config=scaling, run_config=run).fit()
    finally:
        _remove(folder / f"part{job.numbers[0]}")
    result: Trained | OnnxpartError = done.return_value
    return result


def _remove(folder: Place) -> None:
    """Remove what Ray Train wrote into the folder of a part, and the folder around it, if that is empty now."""
    if isinstance(folder, Remote):
        unlink([folder / name for name in folder.files()])
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _member(config: dict[str, Any]) -> Trained | Interrupted | None:
    """Work of one of a part's several workers; the first one writes checkpoints, tells news and gives the result.

    An error that a user can act on is told, and ends all of them. When the machine of one will go, all stop at the
    same step and fail once the checkpoint is written, and Ray Train starts others.
    """
    paths, shared, part, cluster, news, halt = config["content"]
    (job, folder), first = _received(paths, shared, part), dist.get_rank() == 0
    if job.checkpoints:
        job = replace(job, checkpoints=replace(job.checkpoints, written=first))
    if torch.cuda.is_available() and cluster.gpus_per_part:
        torch.cuda.set_device(import_module("ray.train.torch").get_device())
    actor = import_module("ray").get_runtime_context().current_actor
    actor.__ray_call__.remote(_listen)  # in its main thread, which alone may set what a signal does
    kind = FullySharded if cluster.sharded else DataParallel
    try:
        with _stopping(halt) as stop, sharing(job, folder) as one:
            trained = train_part(one, _threads(cluster), news.put if first else ignore, stop, kind)
    except Interrupted as error:
        dist.barrier()
        if halt.empty():
            raise
        return error
    except OnnxpartError as error:
        news.put(error)
        raise
    return trained if first else None


def _received(paths: list[str], shared: bytes, part: bytes) -> tuple[Job, Path | None]:
    """The job that was sent to a worker, which finds the user's own modules where the driver does.

    And the folder by which the workers on its machine read data once; None for an only worker.
    """
    sys.path.extend(path for path in paths if path not in sys.path)
    modules, numbers, states = pickle.loads(part)
    found, folder = pickle.loads(shared)
    job: Job = replace(found, modules=modules, numbers=numbers, states=states)
    return job, folder and Path(tempfile.gettempdir()) / folder


def _threads(cluster: Cluster) -> int:
    return max(1, int(cluster.cpus_per_part))


def _listen(_: object = None) -> None:
    """Let SIGTERM, by which a machine tells that it will go, be noted; a second one ends this process at once."""

    def note(number: int, _: object) -> None:
        _STOP.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)


@contextmanager
def _stopping(halt: Any) -> Iterator[threading.Event]:
    """An event that is set once the driver says so, or SIGTERM that this machine will go."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_PATIENCE):
            if not halt.empty():
                _STOP.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield _STOP
    finally:
        ended.set()
        thread.join()
        _STOP.clear()


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to the cluster; an earlier connection stays.

    :raises UsageError: without Ray, when the cluster can't be reached, or when it is too small at the start.
    """
    with needs("the engine ray", "ray"):
        ray: Any = import_module("ray")
        if cluster.workers_per_part:
            import_module("ray.train")
    if ray.is_initialized():
        yield ray
        return
    try:
        if cluster.address is None:
            ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        else:
            _knock(cluster.address)
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises plain ones, too, as when a node is slow to start
        where = cluster.address or "on this machine"
        raise UsageError(f"the Ray cluster {where} can't be reached ({reason(error)}); check its address.") from None
    try:
        check_nodes(ray, cluster)
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check that somebody listens at an address; Ray itself would try for minutes.

    :raises OSError: when nobody listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _silence(address: str) -> OSError | None:
    """Return why nobody answers at an address, if so."""
    try:
        _knock(address)
    except OSError as error:
        return error
    return None


def check_nodes(ray: Any, cluster: Cluster) -> None:
    """Check that the workers of a part fit on the nodes; otherwise its task would wait for ever.

    :raises UsageError: when they don't.
    """
    if short := _shortage(ray, cluster):
        raise UsageError(f"{short}; ask for less.")


def _shortage(ray: Any, cluster: Cluster) -> str:
    """Return what the nodes lack for the workers of a part; empty if they fit."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": cluster.cpus_per_part, "GPU": cluster.gpus_per_part}
    if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        return (
            f"no node has {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs for a part (the largest: {most['CPU']:g} "
            f"and {most['GPU']:g})"
        )
    counted = {kind: count for kind, count in wanted.items() if count}
    room = sum(
        min(int(round(node.get(kind, 0) / count, 4)) for kind, count in counted.items()) for node in nodes if counted
    )
    if counted and room < (cluster.workers_per_part or 1):
        return (
            f"the cluster has room for {room} workers with {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs each, not "
            f"for {cluster.workers_per_part or 1} at a time"
        )
    return ""
