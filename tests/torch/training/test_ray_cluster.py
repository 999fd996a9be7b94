"""Parts as tasks on a local Ray cluster of two workers, one of which is killed in mid-training."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from onnxpart.errors import Interrupted, UsageError
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.ray_cluster import Cluster, connected
from onnxpart.torch.training.train import EpochEnd, Event, Note, Settings, train
from tests.networks.training import accuracy, check_equal, parts, small, stripes

torch.set_num_threads(1)
SETTINGS = Settings(epochs=2, lr=0.01, optimizer="adam", device="cpu", seed=3)


@dataclass(frozen=True)
class Deadly:
    """A loader that kills the first worker to come to the fourth batch of the second epoch, as `kill -9` does."""

    inner: TensorLoader
    mark: Path

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for i, batch in enumerate(self.inner.epoch(number, start), start):
            if (number, i) == (1, 3):
                try:
                    self.mark.touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def test_a_killed_worker_goes_on_to_the_same_result(tmp_path: Path) -> None:
    one, other = (parts(small(dropout=0.2, norm=True)) for _ in range(2))
    data, test, events, mark = stripes(), stripes(20, 60), list[Event](), tmp_path / "killed"
    series = train(one, data, F.cross_entropy, SETTINGS, engine="series", test=test, metric=accuracy)
    ray = train(
        other,
        Deadly(data, mark),
        F.cross_entropy,
        SETTINGS,
        engine="ray",
        test=test,
        metric=accuracy,
        checkpoints=Checkpoints(tmp_path / "kept", every_steps=2, every_minutes=None),
        on_event=events.append,
    )
    assert mark.exists()
    check_equal(series, ray, one, other)
    assert [e.text for e in events if isinstance(e, Note) and ": resumed at step 8 from" in e.text]
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


def test_what_the_cluster_cant_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cluster: Cluster) -> None:
        train(parts(small()), stripes(), F.cross_entropy, SETTINGS, engine="ray", cluster=cluster)

    with pytest.raises(UsageError, match=r"no node has 1000 CPUs and 0 GPUs for a part \(the largest: .* ask for less"):
        run(Cluster(cpus_per_part=1000))
    with pytest.raises(UsageError, match=r"the Ray cluster 127.0.0.1:1 can't be reached \(.*\); check its address"):
        run(Cluster("127.0.0.1:1"))

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package ray; .* `pip install '\.\[ray\]'`\."):
        run(Cluster())
