"""Parts as tasks on a local Ray cluster of two workers, which are ended in mid-training."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onnxpart.errors import CheckpointError, Interrupted, Resumable, UsageError
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training import ray_cluster
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.ray_cluster import Cluster, check_nodes, connected
from onnxpart.torch.training.train import EpochEnd, Event, Note, Settings, train
from tests.networks.training import accuracy, check_equal, parts, small, stripes

torch.set_num_threads(1)
SETTINGS = Settings(epochs=2, lr=0.01, optimizer="adam", device="cpu", seed=3)


@dataclass(frozen=True)
class Deadly:
    """A loader that ends the first worker to come to a batch: with notice in the first epoch, without in the second."""

    inner: TensorLoader
    marks: Path

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for i, batch in enumerate(self.inner.epoch(number, start), start):
            how = {(0, 2): signal.SIGTERM, (1, 3): signal.SIGKILL}.get((number, i))
            if how is not None:
                try:
                    (self.marks / how.name).touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), how)
            yield batch


def test_workers_that_are_ended_go_on_to_the_same_result(tmp_path: Path) -> None:
    one, other = (parts(small(dropout=0.2, norm=True)) for _ in range(2))
    data, test, events = stripes(), stripes(20, 60), list[Event]()
    series = train(one, data, F.cross_entropy, SETTINGS, engine="series", test=test, metric=accuracy)
    ray = train(
        other,
        Deadly(data, tmp_path),
        F.cross_entropy,
        SETTINGS,
        engine="ray",
        test=test,
        metric=accuracy,
        checkpoints=Checkpoints(tmp_path / "kept", every_steps=2, every_minutes=None),
        on_event=events.append,
    )
    check_equal(series, ray, one, other)
    resumed = [e.text.partition(" from ")[0][len("part 0: ") :] for e in events if isinstance(e, Note)]
    assert sorted(resumed) == ["resumed at step 3", "resumed at step 8"], "the first one had time for a checkpoint"
    assert {(e.part, e.epoch) for e in events if isinstance(e, EpochEnd)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@dataclass(frozen=True)
class Slow:
    """A loader that takes its time."""

    inner: TensorLoader

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.inner.epoch(number, start):
            time.sleep(0.1)
            yield batch


def test_ctrl_c_leaves_checkpoints_of_the_workers(tmp_path: Path) -> None:
    one, other, third = (parts(small()) for _ in range(3))
    settings, data = replace(SETTINGS, epochs=6), stripes()
    series = train(one, data, F.cross_entropy, settings, engine="series")

    ended: set[int] = set()

    def press(event: Event) -> None:
        """Press Ctrl-C once each part has trained an epoch: a worker that hasn't begun has nothing to keep."""
        if isinstance(event, EpochEnd) and event.part not in ended:
            ended.add(event.part)
            if len(ended) == len(other):
                os.kill(os.getpid(), signal.SIGINT)

    kept = Checkpoints(tmp_path / "kept")
    with connected(Cluster()):
        with pytest.raises(Interrupted, match=r"stopped; resume from .*kept to go on"):
            train(other, Slow(data), F.cross_entropy, settings, engine="ray", checkpoints=kept, on_event=press)
        assert {path.name.partition("-")[0] for path in kept.folder.iterdir()} == {"part0", "part1"}
        again = replace(kept, resume=True)
        ray = train(third, data, F.cross_entropy, settings, engine="ray", checkpoints=again)
    check_equal(series, ray, one, third)


def test_what_the_cluster_cant_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cluster: Cluster, kept: Checkpoints | None = None) -> None:
        modules = parts(small())
        train(modules, stripes(), F.cross_entropy, SETTINGS, engine="ray", cluster=cluster, checkpoints=kept)

    with pytest.raises(UsageError, match=r"no node has 1000 CPUs and 0 GPUs for a part \(the largest: .* ask for less"):
        run(Cluster(cpus_per_part=1000))
    with pytest.raises(UsageError, match=r"the Ray cluster 127.0.0.1:1 can't be reached \(.*\); check its address"):
        run(Cluster("127.0.0.1:1"))

    path = tmp_path / "file"
    path.touch()
    with pytest.raises(
        CheckpointError, match=r"file/kept can't be made \(Not a directory\); choose another folder for"
    ):
        run(Cluster(), Checkpoints(path / "kept"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package ray; .* `pip install '\.\[ray\]'`\."):
        run(Cluster())


def test_a_node_that_is_slow_to_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup.")  # what Ray raises

    monkeypatch.setattr("ray.init", slow)
    with (
        pytest.raises(
            UsageError, match=r"cluster on this machine can't be reached \(The current node timed out during"
        ),
        connected(Cluster()),
    ):
        pass


@dataclass(frozen=True)
class Nodes:
    """What is asked of Ray about a cluster: nodes of so many processors, all of whose raylets listen at one port."""

    processors: tuple[int, ...]
    port: int
    head: int
    gcs_address: str = ""

    def nodes(self) -> list[dict[str, object]]:
        return [
            {"Alive": True, "NodeID": str(i), "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": self.port,
             "Resources": {"CPU": count}} for i, count in enumerate(self.processors)
        ]  # fmt: skip

    def get_runtime_context(self) -> "Nodes":
        return replace(self, gcs_address=f"127.0.0.1:{self.head}")

    def get_node_id(self) -> str:
        return "0"


def test_workers_that_dont_fit_on_the_nodes() -> None:
    check_nodes(Nodes((2, 2), 1, 1), Cluster(workers_per_part=4))
    check_nodes(Nodes((1,), 1, 1), Cluster(cpus_per_part=0.2, workers_per_part=5))
    with pytest.raises(
        UsageError, match="room for 3 workers with 1 CPUs and 0 GPUs each, not for 4 at a time; ask for"
    ):
        check_nodes(Nodes((2, 1), 1, 1), Cluster(workers_per_part=4))


def test_a_cluster_that_is_gone_or_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_SILENCE", 0.0)
    monkeypatch.setattr(ray_cluster, "_INTERVAL", 0.0)
    (module,), news = parts(small())[:1], list[Event]()
    job = Job([module], (0,), stripes(), F.cross_entropy, SETTINGS, range(1), checkpoints=Checkpoints(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def watch(nodes: Nodes) -> ray_cluster.Watch:
            return ray_cluster.Watch(nodes, job, Cluster(workers_per_part=2), news.append)

        few = watch(Nodes((1,), port, port))
        few.look()
        few.look()
        short = "the cluster has room for 1 workers with 1 CPUs and 0 GPUs each, not for 2 at a time"
        assert news == [Note(f"{short}; training waits for nodes")]
        with pytest.raises(Resumable, match=r"\(the raylet of this process, at 127.0.0.1:1, is gone\); resume from "):
            watch(Nodes((2,), 1, port)).look()
        with pytest.raises(Resumable, match=r"\(its head at 127.0.0.1:1 doesn't answer: .*\); resume from .* to go on"):
            watch(Nodes((2,), port, 1)).look()
